"""PyTorch to Flax to PyTorch, and Flax to PyTorch to Flax, byte for byte."""

import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.options import parse_options
from convert.source import open_source
from convert.tensor_file import DTYPES, read_tensors, write_tensors
from convert.to_flax import convert_arrays, to_flax
from convert.to_torch import convert_params, to_torch
from glide_jax.checkpoint import load_weights, save_weights
from tests.convert.state_dicts import ALL_KINDS, architecture, assert_same_state_dict, options, random_bits, state_dict

pytest.importorskip("torch", reason="torch is not installed: pip install 'glide-jax[torch]'")


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "num_res_blocks": st.just(2),
        "channel_mult": st.sampled_from([(1,), (2, 1)]),
        "resblock_updown": st.just(False),
        "use_scale_shift_norm": st.just(False),
        "xf_width": st.just(0),
        "xf_padding": st.just(False),
    },
)


def variant(kind, changes):
    return architecture(kind, **({} if kind.startswith("clip") else changes))


@settings(max_examples=6, deadline=None)
@given(
    st.sampled_from(ALL_KINDS),
    CHANGES,
    st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
)
def test_torch_to_flax_to_torch_gives_back_every_byte(kind, changes, dtypes, seed):
    """Through files, with mixed dtypes and keys in any order."""
    model, rng = variant(kind, changes), np.random.default_rng(seed)
    keys = list(model.torch_shapes)
    rng.shuffle(keys)
    source = {key: random_bits(rng, model.torch_shapes[key], rng.choice(dtypes)) for key in keys}
    with tempfile.TemporaryDirectory() as folder:
        there, flax, back = Path(folder, "there.pt"), Path(folder, "flax"), Path(folder, "back.pt")
        write_tensors(there, source)
        to_flax(open_source(str(there)), flax, parse_options(options(model)))
        stored = load_weights(flax, model.params)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(stored)} == {"float32"}
        to_torch(flax, back)
        assert_same_state_dict(read_tensors(back), source)


@settings(max_examples=4, deadline=None)
@given(st.sampled_from(ALL_KINDS), CHANGES, st.integers(0, 2**32 - 1))
def test_flax_to_torch_to_flax_gives_back_every_byte(kind, changes, seed):
    model, rng = variant(kind, changes), np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: random_bits(rng, leaf.shape, "float32"), model.params)
    with tempfile.TemporaryDirectory() as folder:
        there, torch, back = Path(folder, "there"), Path(folder, "torch.pt"), Path(folder, "back")
        save_weights(there, params, model.record)
        to_torch(there, torch)
        to_flax(open_source(str(torch)), back, parse_options(options(model)))
        again = load_weights(back, model.params)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert all(
        np.asarray(a).tobytes() == b.tobytes()
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True)
    )


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_arrays_of_each_kind_survive_both_conversions(kind):
    model = architecture(kind)
    source = state_dict(model)
    params = convert_arrays(dict(source), model)
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(lambda leaf: leaf.shape, model.params)
    assert_same_state_dict(convert_params(params, model), source)
