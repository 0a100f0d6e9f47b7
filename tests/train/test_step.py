"""One update: what moves, in which type, and how closely bfloat16 follows float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.tiny.training import make_batch, make_config, make_program, make_state, updated

FLOAT32, BFLOAT16 = make_config(), make_config(dtype="bfloat16")


def gradients(config):
    """Adam's first moment after one update is the clipped gradient, but for a factor."""
    after, _ = updated(config, make_state(config), make_batch())
    return [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(optax.tree.get(after["opt"], "mu"))]


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def test_bfloat16_gradients_point_where_float32_ones_do():
    half, single = gradients(BFLOAT16), gradients(FLOAT32)
    assert 0.999 <= cosine(np.concatenate(half), np.concatenate(single)) < 1.0
    # A key's bias shifts all scores alike: its gradient is rounding alone.
    largest = max(np.linalg.norm(b) for b in single)
    worst = min(cosine(a, b) for a, b in zip(half, single, strict=True) if np.linalg.norm(b) > 1e-2 * largest)
    assert worst >= 0.99


def test_bfloat16_training_keeps_a_float32_state_that_moves():
    before = make_state(BFLOAT16)
    after, _ = updated(BFLOAT16, before, make_batch())
    for tree in ("params", "ema", "opt"):
        assert {leaf.dtype for leaf in jax.tree.leaves(after[tree]) if leaf.ndim} == {jnp.dtype("float32")}
    old, ema, new = (
        tree["unet"]["down"]["0"]["res"]["in_conv"]["kernel"]
        for tree in (before["params"], after["ema"], after["params"])
    )
    assert (old != new).mean() > 0.5
    # The decay of the first update is (1 + 1) / (10 + 1).
    np.testing.assert_allclose(ema, 2 / 11 * old + 9 / 11 * new, atol=1e-6)


def test_dropout_differs_from_update_to_update_and_example_to_example():
    state = make_state(FLOAT32)
    losses = [updated(FLOAT32, state, make_batch() | {"index": np.arange(8, dtype=np.int32) + i})[1] for i in (0, 8)]
    later = updated(FLOAT32, state | {"step": jnp.int32(5)}, make_batch())[1]
    assert len({float(metrics["loss"]) for metrics in (*losses, later)}) == 3


def test_validation_counts_real_images_only():
    validate, params = make_program(FLOAT32).validation_step, make_state(FLOAT32)["params"]

    def validated(*weights):
        return validate(params, make_batch() | {"weight": np.array(weights + (0.0,) * 6, np.float32)})

    (total, count), (first, one), (second, _) = validated(1.0, 1.0), validated(1.0, 0.0), validated(0.0, 1.0)
    assert (count, one) == (2, 1)
    np.testing.assert_allclose(total, first + second, rtol=1e-5)
