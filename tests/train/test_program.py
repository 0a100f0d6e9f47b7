"""The compiled training step: the state is donated, nothing is moved unasked, one program serves every batch."""

import jax
import numpy as np

from glide_jax.parallel import put_batch
from tests.tiny.training import compiled_step, make_batch, make_config, make_program, make_state

CONFIG = make_config()


def test_twenty_updates_transfer_nothing_unasked_and_donate_everything():
    # An executable cannot compile again: a batch or state of another shape would be an error.
    step, mesh = compiled_step(CONFIG), make_program(CONFIG).mesh
    state, losses = make_state(CONFIG), set()
    with jax.transfer_guard("disallow"):
        for i in range(20):
            batch = put_batch(make_batch(first=8 * i), mesh)
            before, (state, metrics) = state, step(state, batch)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
            losses.add(jax.device_get(metrics["loss"]).item())
    assert int(state["step"]) == len(losses) == 20
    assert np.isfinite([*losses, metrics["grad_norm"]]).all()
    assert int(metrics["skipped_updates"]) == 0


def test_the_abstract_batch_is_what_the_data_package_makes():
    batch, expected = make_program(CONFIG).abstract_batch(), make_batch()
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in expected.items()
    }
