"""PyTorch to Flax: the record, and everything that is wrong with a file in one line."""

import numpy as np
import pytest

from convert.architecture import leaf, recorded_architecture
from convert.source import open_source
from convert.tensor_file import write_tensors
from convert.to_flax import check_tensors, to_flax
from glide_jax.checkpoint import load_weights, read_record
from glide_jax.errors import GlideError
from glide_jax.models import ModelConfig
from tests.convert.state_dicts import architecture, options, state_dict

pytestmark = pytest.mark.usefixtures("torch")


@pytest.fixture
def source(tmp_path):
    write_tensors(tmp_path / "model.pt", state_dict(architecture("base-inpaint"), "bfloat16"))
    return open_source(str(tmp_path / "model.pt"))


def test_the_record_tells_the_model_and_where_it_came_from(tmp_path, source):
    model = architecture("base-inpaint")
    to_flax(source, tmp_path / "flax", options(model))
    record = read_record(tmp_path / "flax")
    assert set(record) == {"model", "diffusion", "source"}
    assert record["diffusion"] == {"diffusion_steps": 1000, "noise_schedule": "squaredcos_cap_v2"}
    assert record["model"] == model.record["model"] | {"channel_mult": [1, 2], "attention_resolutions": [8]}
    assert recorded_architecture(record, "").record == model.record
    assert record["source"]["name"] == "model.pt"
    assert record["source"]["sha256"] == source.sha256
    assert record["source"]["keys"] == list(model.torch_shapes)
    assert record["source"]["dtypes"] == dict.fromkeys(model.torch_shapes, "bfloat16")


def test_values_arrive_in_float32_under_our_names(tmp_path, source):
    model = architecture("base-inpaint")
    to_flax(source, tmp_path / "flax", options(model))
    params = load_weights(tmp_path / "flax", model.params)
    theirs = state_dict(model, "bfloat16")
    kernel = np.asarray(params["unet"]["input_conv"]["kernel"])
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), theirs["input_blocks.0.0.weight"].astype(np.float32))
    assert ModelConfig().in_channels + 4 == kernel.shape[2]
    for entry in model.keymap:
        restored = entry.to_torch(np.asarray(leaf(params, entry.path)))
        np.testing.assert_array_equal(restored, theirs[entry.torch].astype(np.float32))


def test_one_error_lists_every_offender():
    model = architecture("base")
    arrays = state_dict(model)
    del arrays["token_embedding.weight"], arrays["input_blocks.0.0.bias"]
    arrays |= {"clip_to_time.weight": np.ones(3), "extra": np.ones(1)}
    arrays["out.2.bias"] = np.zeros(5, np.float32)
    arrays["out.0.bias"] = np.zeros_like(arrays["out.0.bias"], np.int64)
    arrays["time_embed.0.bias"][3] = np.inf
    arrays["time_embed.2.bias"][0] = np.nan
    with pytest.raises(GlideError) as caught:
        check_tensors(arrays, model, "my.pt")
    assert str(caught.value) == (
        "my.pt does not fit the base model: "
        "missing: input_blocks.0.0.bias, token_embedding.weight; "
        "unexpected: clip_to_time.weight, extra; "
        "of another shape: out.2.bias (5,) instead of (6,); "
        "of another type than float32, float16, bfloat16, float64: out.0.bias int64; "
        "not finite in float32: time_embed.0.bias, time_embed.2.bias"
    )


def test_a_file_that_does_not_fit_leaves_nothing(tmp_path):
    arrays = state_dict(architecture("base"))
    del arrays["out.2.bias"]
    write_tensors(tmp_path / "model.pt", arrays)
    with pytest.raises(GlideError, match=r"model.pt does not fit the base model: missing: out.2.bias"):
        to_flax(open_source(str(tmp_path / "model.pt")), tmp_path / "flax", options(architecture("base")))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_an_existing_checkpoint_is_not_touched(tmp_path, source):
    (tmp_path / "flax").mkdir()
    with pytest.raises(GlideError, match="flax exists already; choose another --output or remove it"):
        to_flax(source, tmp_path / "flax", {})
    assert not list((tmp_path / "flax").iterdir())


def test_fine_tuned_checkpoints_with_compiled_names_are_read(tmp_path):
    model = architecture("base")
    arrays = state_dict(model, "float16")
    write_tensors(tmp_path / "ema_0.9999_1x000500.pt", {f"_orig_mod.{key}": a for key, a in arrays.items()})
    to_flax(open_source(str(tmp_path / "ema_0.9999_1x000500.pt")), tmp_path / "flax", options(model))
    assert read_record(tmp_path / "flax")["source"]["keys"] == list(arrays)
