"""Random masks: every kind in its share, and a function of the key alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.errors import GlideError
from glide_jax.randomness import keys_per_example
from glide_jax.train.masks import MaskConfig, random_masks


def masks(config, count=400, side=32):
    keys = keys_per_example(jax.random.key(0), jnp.arange(count))
    return np.asarray(random_masks(config, keys, side))


def test_kinds_come_in_their_shares():
    drawn = masks(MaskConfig())
    assert drawn.shape == (400, 32, 32, 1)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    known = drawn.mean((1, 2, 3))
    assert abs((known == 0).mean() - 0.15) < 0.05
    assert abs((known == 1).mean() - 0.05) < 0.03
    assert 0.3 < known[(known > 0) & (known < 1)].mean() < 0.9


def test_a_share_of_one_kind_alone():
    assert masks(MaskConfig(0, 0, 1, 0), 8).max() == 0
    assert masks(MaskConfig(0, 0, 0, 2), 8).min() == 1
    for config in (MaskConfig(1, 0, 0, 0), MaskConfig(0, 1, 0, 0)):
        known = masks(config, 50).mean((1, 2, 3))
        assert known.max() < 1
        assert known.min() > 0
        assert known.std() > 0.05


def test_one_rectangle_is_a_rectangle():
    """Of those with a single hole: its pixels fill their own bounding box."""
    filled = 0
    for mask in masks(MaskConfig(1, 0, 0, 0), 60):
        rows, columns = (np.flatnonzero((mask[..., 0] == 0).any(axis)) for axis in (1, 0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        filled += (box == 0).all()
    assert filled > 10


def test_a_mask_depends_on_its_key_alone():
    keys = keys_per_example(jax.random.key(1), jnp.arange(6))
    together = random_masks(MaskConfig(), keys, 16)
    for i in range(6):
        np.testing.assert_array_equal(random_masks(MaskConfig(), keys[i : i + 1], 16)[0], together[i])


@pytest.mark.parametrize("shares", [(0, 0, 0, 0), (-1, 1, 1, 1)])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(GlideError, match="shares"):
        MaskConfig(*shares)
