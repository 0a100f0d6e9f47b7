"""Models as safetensors files: checkpoints for every program here, state dicts for PyTorch's."""

import json
import stat
from dataclasses import asdict

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from convert.architecture import glide_architecture
from convert.cli import main
from convert.download import open_source
from convert.state_dict import read_state_dict
from convert.to_flax import to_flax
from convert.to_torch import to_torch, write_model
from glide_jax.checkpoint import load_weights, read_record, save_weights
from glide_jax.diffusion.schedules import DiffusionConfig
from glide_jax.errors import GlideError
from glide_jax.sample import Pipeline, checkpoint_config, checkpoint_step
from glide_jax.sample.pretrained import INDEX
from tests.convert.state_dicts import ALL_KINDS, COSINE, architecture, state_dict
from tests.tiny.models import BASE, UPSAMPLER, random_model, save_model

pytestmark = pytest.mark.usefixtures("torch")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_they_hold_every_bit_in_our_layout(kind, dtype, tmp_path):
    model = architecture(kind)
    arrays = state_dict(model, dtype)
    ours = {entry.path: entry.to_flax(arrays[entry.torch]) for entry in model.keymap}
    write_model(jax.tree.map_with_path(lambda at, _: ours[tuple(part.key for part in at)], model.params), model,
                tmp_path / "model.safetensors", dtype)  # fmt: skip
    loaded = flatten_dict(load_weights(tmp_path / "model.safetensors", model.params))
    assert loaded.keys() == ours.keys()
    for path, array in ours.items():
        assert np.asarray(loaded[path]).tobytes() == array.astype(np.float32).tobytes(), path


def test_every_program_takes_one_as_a_checkpoint(tmp_path):
    record = {"model": asdict(BASE), "diffusion": asdict(DiffusionConfig()), "sampling": {"num_steps": 2}}
    save_weights(tmp_path / "base", random_model().params, record)
    file = tmp_path / "base.safetensors"
    to_torch(tmp_path / "base", file)
    assert read_record(file) == json.loads(json.dumps(record))
    loaded = Pipeline.from_checkpoints(file)
    assert loaded.settings == {"num_steps": 2}
    drawn = loaded("a cat", seed=3).images
    np.testing.assert_array_equal(drawn, Pipeline(random_model())("a cat", seed=3, num_steps=2).images)
    assert to_torch(file, tmp_path / "again.safetensors")[1] == "params"
    assert read_record(tmp_path / "again.safetensors") == read_record(file)
    to_flax(open_source(str(file)), tmp_path / "flax", {})
    assert read_record(tmp_path / "flax")["model"] == read_record(file)["model"]


def test_a_pipeline_of_files_holds_the_same_models(tmp_path):
    models = {"checkpoint": save_model(tmp_path / "b"), "upsampler": save_model(tmp_path / "u", UPSAMPLER)}
    given = [word for name, path in models.items() for word in (f"--{name}", path)]
    main(["bundle", *given, "--output", str(tmp_path / "files"), "--safetensors", "--num_steps", "2"])
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == [
        "base.safetensors", INDEX, "upsampler.safetensors",
    ]  # fmt: skip
    ours = Pipeline.from_pretrained(tmp_path / "files")
    assert ours.settings == {"num_steps": 2}
    for part in ("base", "upsampler"):
        theirs = random_model(getattr(ours, part).stage.model.config).params
        assert jax.tree.all(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), *map(jax.device_get, (
            getattr(ours, part).params, theirs))))  # fmt: skip


def test_a_file_that_is_a_link_keeps_its_name(tmp_path):
    """The Hub's cache links to files named by their hashes."""
    write_model(dict(random_model().params), glide_architecture(BASE, COSINE), tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / "5e1f")
    (tmp_path / "link.safetensors").symlink_to("5e1f")
    assert checkpoint_config(checkpoint_step(tmp_path / "link.safetensors")) == BASE
    assert stat.S_IMODE((tmp_path / "5e1f").stat().st_mode) == stat.S_IMODE(written_plainly(tmp_path).stat().st_mode)
    with pytest.raises(GlideError, match=r"link.safetensors is one file: leave out step 3$"):
        read_record(f"{tmp_path / 'link.safetensors'}@3")


def written_plainly(folder):
    (folder / "plain").write_bytes(b"")
    return folder / "plain"


def test_a_file_of_pytorchs_alone_is_to_be_converted(tmp_path):
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(GlideError, match=r"convert one of PyTorch's with its to-flax$"):
        Pipeline.from_checkpoints(tmp_path / "other.safetensors")
    assert read_state_dict(tmp_path / "other.safetensors").keys() == {"x"}
