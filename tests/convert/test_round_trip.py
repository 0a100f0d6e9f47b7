"""PyTorch to Flax to PyTorch, and Flax to PyTorch to Flax, byte for byte."""

import jax
import numpy as np
import pytest

from convert.options import parse_options
from convert.source import open_source
from convert.tensor_file import DTYPES, read_tensors, write_tensors
from convert.to_flax import convert_arrays, to_flax
from convert.to_torch import convert_params, to_torch
from glide_jax.checkpoint import load_weights, save_weights
from tests.convert.state_dicts import ALL_KINDS, architecture, assert_same_state_dict, options, random_bits, state_dict

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
    assert_same_state_dict(read_tensors(tmp_path / "back.pt"), source)


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
