"""Micro-batches change nothing but rounding: one update, the same losses, norms and weights."""

import jax
import numpy as np
import pytest

from glide_jax.errors import GlideError
from glide_jax.train.config import TrainConfig
from tests.tiny.training import make_batch, make_config, make_state, updated


def test_four_micro_batches_equal_the_whole_batch():
    configs = [make_config(gradient_accumulation_steps=steps) for steps in (1, 4)]
    (whole, expected), (split, metrics) = (updated(config, make_state(config), make_batch()) for config in configs)
    for name in expected:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)
    assert int(split["step"]) == int(whole["step"]) == 1
    for tree in ("params", "ema"):
        for a, b in zip(jax.tree.leaves(split[tree]), jax.tree.leaves(whole[tree]), strict=True):
            assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def test_a_batch_that_does_not_divide_is_refused():
    refusal = r"batch_size 8 cannot be split into train.gradient_accumulation_steps=3 equal micro-batches: use 6 or 9$"
    with pytest.raises(GlideError, match=refusal):
        TrainConfig(batch_size=8, gradient_accumulation_steps=3)
