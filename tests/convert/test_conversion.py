"""PyTorch to Flax and back: bytes, record, dtypes, and everything that is wrong with a file in one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from convert.architecture import parse_options, recorded_architecture
from convert.download import open_source
from convert.state_dict import DTYPES, read_state_dict, write_tensors
from convert.to_flax import check_tensors, convert_arrays, to_flax
from convert.to_torch import convert_params, to_torch
from glide_jax.checkpoint import CheckpointStore, load_weights, read_record, safetensors_file, save_weights
from glide_jax.errors import GlideError
from glide_jax.models import ModelConfig
from tests.convert.state_dicts import (
    ALL_KINDS,
    COSINE,
    architecture,
    assert_same_state_dict,
    options,
    random_bits,
    state_dict,
)

pytestmark = pytest.mark.usefixtures("torch")

# The kinds as others have them, and base models with every choice that changes their tensors.
MODELS = {kind: (kind, {}) for kind in ALL_KINDS} | {
    "base, three levels": ("base", {"channel_mult": (2, 1, 1), "num_res_blocks": 2, "use_scale_shift_norm": False}),
    "base, one level": ("base", {"channel_mult": (1,), "resblock_updown": False, "xf_padding": False}),
    "base, no text": ("base", {"resblock_updown": False, "xf_width": 0}),
}


def model_named(name):
    kind, changes = MODELS[name]
    return architecture(kind, **changes)


@pytest.mark.parametrize("name", MODELS)
def test_the_arrays_of_each_model_survive_both_conversions(name):
    model = model_named(name)
    source = state_dict(model)
    params = convert_arrays(dict(source), model)
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(lambda leaf: leaf.shape, model.params)
    assert_same_state_dict(convert_params(params, model), source)


@pytest.mark.parametrize(
    ("name", "dtypes"),
    [
        ("base, one level", sorted(DTYPES)),
        ("upsample-inpaint", ["float16"]),
        ("clip/text-enc", ["bfloat16", "float32"]),
        ("clip/image-enc", ["float32"]),
    ],
)
def test_torch_to_flax_to_torch_gives_back_every_byte(name, dtypes, tmp_path):
    """Through files, with mixed dtypes and keys in any order."""
    model, rng = model_named(name), np.random.default_rng(len(dtypes))
    keys = list(model.torch_shapes)
    rng.shuffle(keys)
    source = {key: random_bits(rng, model.torch_shapes[key], rng.choice(dtypes)) for key in keys}
    write_tensors(tmp_path / "there.pt", source)
    to_flax(open_source(str(tmp_path / "there.pt")), tmp_path / "flax", parse_options(options(model)))
    stored = load_weights(tmp_path / "flax", model.params)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(stored)} == {"float32"}
    to_torch(tmp_path / "flax", tmp_path / "back.pt")
    assert_same_state_dict(read_state_dict(tmp_path / "back.pt"), source)


@pytest.mark.parametrize("name", ["base, three levels", "upsample-inpaint", "clip/image-enc"])
def test_flax_to_torch_to_flax_gives_back_every_byte(name, tmp_path):
    model, rng = model_named(name), np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: random_bits(rng, leaf.shape, "float32"), model.params)
    save_weights(tmp_path / "there", params, model.record)
    to_torch(tmp_path / "there", tmp_path / "torch.pt")
    to_flax(open_source(str(tmp_path / "torch.pt")), tmp_path / "back", parse_options(options(model)))
    again = load_weights(tmp_path / "back", model.params)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        assert np.asarray(ours).tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    ("entry", "name", "value"), [("model", "norm_groups", 8), ("diffusion", "prediction_type", "v_prediction")]
)
def test_what_the_reference_cannot_run_is_not_converted(tmp_path, entry, name, value):
    model = architecture("base")
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), model.params)
    record = model.record | {entry: model.record[entry] | {name: value}}
    save_weights(tmp_path / "ours", params, record)
    with pytest.raises(GlideError, match=rf"always has {name} \w+ and cannot build .*ours \({value}\): write"):
        to_torch(tmp_path / "ours", tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_a_safetensors_file_tells_what_it_is_of(tmp_path, capsys):
    """Also of a model that no tensor tells apart from the published, and that the reference cannot run."""
    model = architecture("base", norm_groups=8, num_heads=2, num_head_channels=-1)
    record = model.record | {"diffusion": COSINE | {"prediction_type": "v_prediction"}}
    params = jax.tree.map(lambda leaf: random_bits(np.random.default_rng(0), leaf.shape, "float32"), model.params)
    save_weights(tmp_path / "ours", params, record)
    to_torch(tmp_path / "ours", tmp_path / "model.safetensors")
    capsys.readouterr()
    assert to_flax(open_source(str(tmp_path / "model.safetensors")), tmp_path / "again", {})[1] == {}
    assert {name: read_record(tmp_path / "again")[name] for name in record} == json.loads(json.dumps(record))
    again = load_weights(tmp_path / "again", model.params)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        assert np.asarray(ours).tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    "record",
    [
        {"depth": 3}, {"num_channels": 64}, {"channel_mult": 3}, {"norm_groups": 7}, {"noise_schedule": "quadratic"},
        {"num_res_blocks": 10**6}, {"xf_layers": 10**6}, [],
    ],
)  # fmt: skip
def test_a_record_that_lies_is_one_line(tmp_path, record):
    header = {"record": {"model": record}, "names": {}}
    safetensors_file.write(tmp_path / "model.safetensors", state_dict(architecture("base")), header)
    with pytest.raises(GlideError, match=r"^\S*model\.safetensors.* header .*$"):
        to_flax(open_source(str(tmp_path / "model.safetensors")), tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


@pytest.fixture
def source(tmp_path):
    write_tensors(tmp_path / "model.pt", state_dict(architecture("base-inpaint"), "bfloat16"))
    return open_source(str(tmp_path / "model.pt"))


def test_the_record_tells_the_model_and_where_it_came_from(tmp_path, source):
    model = architecture("base-inpaint")
    to_flax(source, tmp_path / "flax", options(model))
    record = read_record(tmp_path / "flax")
    assert set(record) == {"model", "diffusion", "source"}
    assert record["diffusion"] == COSINE
    assert record["model"] == model.record["model"] | {"channel_mult": [1, 2], "attention_resolutions": [8]}
    assert recorded_architecture(record, tmp_path / "flax").record == model.record
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
    flat = flatten_dict(params)
    for entry in model.keymap:
        restored = entry.to_torch(np.asarray(flat[entry.path]))
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
    with pytest.raises(GlideError, match="flax exists already; choose another name or remove it"):
        to_flax(source, tmp_path / "flax", {})
    assert not list((tmp_path / "flax").iterdir())


def test_fine_tuned_checkpoints_with_compiled_names_are_read(tmp_path):
    model = architecture("base")
    arrays = state_dict(model, "float16")
    write_tensors(tmp_path / "ema_0.9999_1x000500.pt", {f"_orig_mod.{key}": a for key, a in arrays.items()})
    to_flax(open_source(str(tmp_path / "ema_0.9999_1x000500.pt")), tmp_path / "flax", options(model))
    assert read_record(tmp_path / "flax")["source"]["keys"] == list(arrays)


@pytest.fixture(scope="module")
def model():
    return architecture("base")


@pytest.fixture(scope="module")
def converted(model, torch, tmp_path_factory):
    """A checkpoint converted from half-precision tensors in an order of their own."""
    folder = tmp_path_factory.mktemp("converted")
    arrays = dict(reversed(state_dict(model, "float16").items()))
    write_tensors(folder / "source.pt", arrays)
    to_flax(open_source(str(folder / "source.pt")), folder / "flax", parse_options(options(model)))
    return folder / "flax", arrays


def trained_run(folder, record, params, ema):
    with CheckpointStore(folder / "run" / "checkpoints") as store:
        store.save(7, {"params": params, "ema": ema, "step": jnp.int32(7)}, record)
    return folder / "run"


def test_after_training_float32_ema_is_written_in_the_order_of_the_source(tmp_path, converted, model):
    flax, arrays = converted
    params = load_weights(flax, model.params)
    ema = jax.tree.map(lambda x: x * 1.001, params)
    run = trained_run(tmp_path, read_record(flax), params, ema)
    to_torch(run, tmp_path / "ema.pt")
    written = read_state_dict(tmp_path / "ema.pt")
    assert list(written) == list(arrays)
    assert {array.dtype.name for array in written.values()} == {"float32"}
    key = "input_blocks.0.0.weight"
    np.testing.assert_array_equal(written[key], np.float32(1.001) * arrays[key].astype(np.float32))


def test_a_run_from_scratch_is_written_in_the_order_of_the_reference(tmp_path, model):
    arrays = state_dict(model)
    params = convert_arrays(dict(arrays), model)
    run = trained_run(tmp_path, model.record, params, jax.tree.map(np.zeros_like, params))
    assert to_torch(run, tmp_path / "params.pt", "params")[1] == "params"
    assert_same_state_dict(read_state_dict(tmp_path / "params.pt"), arrays)
    assert to_torch(run, tmp_path / "ema.pt")[1] == "ema"
    assert not any(array.any() for array in read_state_dict(tmp_path / "ema.pt").values())


def test_one_changed_value_makes_all_of_it_float32(tmp_path, converted, model):
    flax, _ = converted
    params = load_weights(flax, model.params)
    params["unet"]["out_conv"]["bias"] = params["unet"]["out_conv"]["bias"] + 1e-4
    save_weights(tmp_path / "changed", params, read_record(flax))
    to_torch(tmp_path / "changed", tmp_path / "changed.pt")
    assert {array.dtype.name for array in read_state_dict(tmp_path / "changed.pt").values()} == {"float32"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dtype_can_be_asked_for(tmp_path, converted, dtype):
    flax, arrays = converted
    to_torch(flax, tmp_path / "out.pt", dtype=dtype)
    rounded = {key: array.astype(np.float32).astype(DTYPES[dtype]) for key, array in arrays.items()}
    assert_same_state_dict(read_state_dict(tmp_path / "out.pt"), rounded)


def test_a_dtype_that_cannot_hold_a_value_is_refused(tmp_path, model):
    params = convert_arrays(state_dict(model), model)
    params["unet"]["out_conv"]["bias"] = params["unet"]["out_conv"]["bias"].at[0].set(1e6)
    save_weights(tmp_path / "flax", params, model.record)
    with pytest.raises(GlideError, match=r"has values too large for float16: choose another --dtype"):
        to_torch(tmp_path / "flax", tmp_path / "out.pt", dtype="float16")
    assert not (tmp_path / "out.pt").exists()


def test_missing_averages_are_an_error(tmp_path, converted):
    with pytest.raises(GlideError, match="holds no ema, only params: leave out --ema"):
        to_torch(converted[0], tmp_path / "out.pt", "ema")
    assert to_torch(converted[0], tmp_path / "out.pt")[1] == "params"


def test_outputs_are_checked_before_anything_is_read(tmp_path):
    (tmp_path / "there.pt").write_text("precious")
    with pytest.raises(GlideError, match=r"there.pt exists already; choose another name or remove it"):
        to_torch(tmp_path / "none", tmp_path / "there.pt")
    with pytest.raises(GlideError, match=r"out.bin must end in .pt or .safetensors"):
        to_torch(tmp_path / "none", tmp_path / "out.bin")
    with pytest.raises(GlideError, match=r"no checkpoint at .*none"):
        to_torch(tmp_path / "none", tmp_path / "out.pt")


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    save_weights(tmp_path / "other", {"w": np.ones(3, np.float32)}, {"config": {}})
    with pytest.raises(GlideError, match=r"the record of .*other does not say which model it is"):
        to_torch(tmp_path / "other", tmp_path / "out.pt")
