"""Flax to PyTorch: which weights, in which dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.options import parse_options
from convert.source import open_source
from convert.tensor_file import DTYPES, read_tensors, write_tensors
from convert.to_flax import convert_arrays, to_flax
from convert.to_torch import to_torch
from glide_jax.checkpoint import CheckpointStore, load_weights, read_record, save_weights
from glide_jax.errors import GlideError
from tests.convert.state_dicts import architecture, assert_same_state_dict, options, state_dict

pytestmark = pytest.mark.usefixtures("torch")


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
    written = read_tensors(tmp_path / "ema.pt")
    assert list(written) == list(arrays)
    assert {array.dtype.name for array in written.values()} == {"float32"}
    key = "input_blocks.0.0.weight"
    np.testing.assert_array_equal(written[key], np.float32(1.001) * arrays[key].astype(np.float32))


def test_a_run_from_scratch_is_written_in_the_order_of_the_reference(tmp_path, model):
    arrays = state_dict(model)
    params = convert_arrays(dict(arrays), model)
    run = trained_run(tmp_path, model.record, params, jax.tree.map(np.zeros_like, params))
    assert to_torch(run, tmp_path / "params.pt", "params")[1] == "params"
    assert_same_state_dict(read_tensors(tmp_path / "params.pt"), arrays)
    assert to_torch(run, tmp_path / "ema.pt")[1] == "ema"
    assert not any(array.any() for array in read_tensors(tmp_path / "ema.pt").values())


def test_one_changed_value_makes_all_of_it_float32(tmp_path, converted, model):
    flax, _ = converted
    params = load_weights(flax, model.params)
    params["unet"]["out_conv"]["bias"] = params["unet"]["out_conv"]["bias"] + 1e-4
    save_weights(tmp_path / "changed", params, read_record(flax))
    to_torch(tmp_path / "changed", tmp_path / "changed.pt")
    assert {array.dtype.name for array in read_tensors(tmp_path / "changed.pt").values()} == {"float32"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dtype_can_be_asked_for(tmp_path, converted, dtype):
    flax, arrays = converted
    to_torch(flax, tmp_path / "out.pt", dtype=dtype)
    rounded = {key: array.astype(np.float32).astype(DTYPES[dtype]) for key, array in arrays.items()}
    assert_same_state_dict(read_tensors(tmp_path / "out.pt"), rounded)


def test_a_dtype_that_cannot_hold_a_value_is_refused(tmp_path, model):
    params = convert_arrays(state_dict(model), model)
    params["unet"]["out_conv"]["bias"][0] = 1e6
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
    with pytest.raises(GlideError, match=r"there.pt exists already; choose another --output or remove it"):
        to_torch(tmp_path / "none", tmp_path / "there.pt")
    with pytest.raises(GlideError, match=r"out.safetensors must end in .pt"):
        to_torch(tmp_path / "none", tmp_path / "out.safetensors")
    with pytest.raises(GlideError, match=r"no checkpoint at .*none"):
        to_torch(tmp_path / "none", tmp_path / "out.pt")


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    save_weights(tmp_path / "other", {"w": np.ones(3, np.float32)}, {"config": {}})
    with pytest.raises(GlideError, match=r"the record of .*other does not tell its model"):
        to_torch(tmp_path / "other", tmp_path / "out.pt")
