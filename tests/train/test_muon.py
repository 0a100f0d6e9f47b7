"""Muon is optax's, whether matrices are orthogonalised one by one, as on CPUs, or together, as on GPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from glide_jax.train.config import OptimizerConfig
from glide_jax.train.muon import _by_shape, _each_alone, orthogonal
from glide_jax.train.optimizer import learning_rate, make_optimizer
from tests.parallel.processes import run

SHAPES = {"conv": (3, 3, 4, 8), "wide": (4, 12), "again": (4, 12), "shared": (1, 1, 4, 12), "vector": (5,)}


def random(seed):
    rng = np.random.default_rng(seed)
    return {name: jnp.float32(rng.normal(size=shape)) for name, shape in SHAPES.items()}


def test_updates_and_state_are_those_of_optax():
    config = OptimizerConfig(kind="muon", learning_rate=0.1, weight_decay=0.1, max_grad_norm=0.0)
    matrices = {name: len(shape) > 1 for name, shape in SHAPES.items()}
    axes = {name: optax.contrib.MuonDimensionNumbers(range(len(shape) - 1), len(shape) - 1) if matrices[name] else None
            for name, shape in SHAPES.items()}  # fmt: skip
    theirs = optax.contrib.muon(
        learning_rate(config, 10), weight_decay=0.1, adam_weight_decay=0.1, consistent_rms=0.2,
        muon_weight_dimension_numbers=axes,
    )  # fmt: skip
    ours, params = make_optimizer(config, 10, matrices), random(0)
    found, expected = ours.init(params)[1], theirs.init(params)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for step in range(1, 4):
        found, expected = (
            jax.jit(tx.update)(random(step), state, params)
            for tx, state in ((ours, (optax.EmptyState(), found)), (theirs, expected))
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[0], expected[0])
        found, expected = found[1][1], expected[1]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_matrices_together_are_as_each_alone():
    leaves = [leaf for leaf in random(0).values() if leaf.ndim > 1]
    for alone, together in zip(_each_alone(leaves), _by_shape(leaves), strict=True):
        assert alone.shape == together.shape
        np.testing.assert_allclose(alone, together, atol=1e-5)


def test_a_matrix_of_zeros_stays_zero():
    assert not orthogonal(jnp.zeros((2, 3, 4))).any()


FOUR_DEVICES = """
import re
import jax, jax.numpy as jnp, numpy as np
from glide_jax.parallel import ParallelConfig, make_mesh
from glide_jax.train.muon import scale_by_muon
from tests.train.test_muon import random

grads = {name: leaf for name, leaf in random(0).items() if leaf.ndim > 1}
alone, shared = scale_by_muon(), scale_by_muon(mesh=make_mesh(ParallelConfig(data=2, fsdp=2)))
update = jax.jit(shared.update).lower(grads, shared.init(grads)).compile()
found, expected = update(grads, shared.init(grads))[0], jax.jit(alone.update)(grads, alone.init(grads))[0]
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
loops = [part for part in re.split(r"\\n(?=%|ENTRY)", update.as_text()) if not part.startswith("ENTRY")]
print(sum(bool(re.search(r" dot\\(|dot_general", part)) for part in loops) > 0)
print([part[:60] for part in loops if re.search(r" (all-reduce|all-gather|reduce-scatter|all-to-all)", part)])
"""


def test_devices_share_whole_matrices():
    """Three of one shape on four devices; none waits for another within the iterations."""
    assert run(FOUR_DEVICES, devices=4).splitlines() == ["True", "[]"]
