"""The table of names: equal to the reference's state dicts, and a bijection."""

import jax
import numpy as np
import pytest

from convert.architecture import leaf
from convert.infer import infer
from convert.keymap import Entry
from convert.options import parse_options
from tests.convert.state_dicts import ALL_KINDS, TOWERS, architecture, manifests

# The published sizes of the four kinds are compared in test_infer.py.
MANIFESTS = (
    "tiny/base",
    "tiny/upsample-inpaint",
    *(f"{size}/{tower}" for size in ("tiny", "full") for tower in TOWERS),
)


@pytest.mark.parametrize("name", MANIFESTS)
def test_keys_order_and_shapes_equal_the_reference(name):
    options, shapes = manifests()[name]
    model, _ = infer(shapes, parse_options(options))
    assert list(model.torch_shapes.items()) == list(shapes.items())
    assert model.kind == name.split("/", 1)[1]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_parameter_has_exactly_one_entry(kind):
    model = architecture(kind)
    assert len({entry.torch for entry in model.keymap}) == len(model.keymap)
    paths = [tuple(str(key.key) for key in path) for path, _ in jax.tree.flatten_with_path(model.params)[0]]
    assert sorted(entry.path for entry in model.keymap) == sorted(paths)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_layouts_there_and_back(kind):
    rng = np.random.default_rng(0)
    model = architecture(kind)
    for entry in model.keymap:
        array = rng.standard_normal(model.torch_shapes[entry.torch])
        ours = entry.to_flax(array)
        assert ours.shape == leaf(model.params, entry.path).shape
        np.testing.assert_array_equal(entry.to_torch(ours), array)


def test_layouts_move_the_right_axes():
    weight = np.arange(24.0).reshape(4, 3, 1, 2)
    assert Entry("", (), "conv").to_flax(weight)[0, 1, 2, 3] == weight[3, 2, 0, 1]
    assert Entry("", (), "dense").to_flax(weight[:, :, 0, 0])[2, 3] == weight[3, 2, 0, 0]
    assert Entry("", (), "pointwise").to_flax(weight[:, :, 0, :1])[2, 3] == weight[3, 2, 0, 0]
