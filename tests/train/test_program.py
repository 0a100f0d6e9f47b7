"""The compiled step in use: nothing moves unasked, inputs are really given up, one program serves every batch."""

import jax
import numpy as np

from glide_jax.parallel import make_mesh, put_batch
from glide_jax.train.program import Program
from glide_jax.train.run_config import RunConfig
from tests.train.tiny import MODEL, make_batch, make_config, make_params


def test_twenty_updates_transfer_nothing_unasked_and_donate_everything():
    config = RunConfig(model=MODEL, train=make_config())
    mesh = make_mesh(config.parallel)
    program = Program(config, mesh)
    # An executable cannot compile again: a batch or state of another shape would be an error.
    step = program.compile()
    state = program.state_from(make_params())
    with jax.transfer_guard("disallow"):
        for i in range(20):
            batch = put_batch(make_batch(first=8 * i) | {"weight": np.ones(8, np.float32)}, mesh)
            before, (state, metrics) = state, step(state, batch)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert int(state["step"]) == 20
    assert np.isfinite(metrics["loss"])
    assert int(metrics["skipped_updates"]) == 0


def test_the_abstract_batch_is_what_the_data_package_makes():
    program = Program(RunConfig(model=MODEL, train=make_config()), make_mesh(RunConfig().parallel))
    expected = make_batch() | {"weight": np.ones(8, np.float32)}
    batch = program.abstract_batch()
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in expected.items()
    }
