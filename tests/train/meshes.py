"""Run in a process of its own, on eight simulated devices: two updates on one device and on each mesh, compared.

Prints a line of JSON for each mesh.
"""

import json
import sys

import jax
import numpy as np

from glide_jax.parallel import ParallelConfig, collective_bytes, make_mesh, put_batch
from glide_jax.train.program import Program
from glide_jax.train.run_config import RunConfig
from tests.train.tiny import MODEL, make_batch, make_config, make_params


def two_updates(data, fsdp, count):
    config = RunConfig(model=MODEL, train=make_config(), parallel=ParallelConfig(data=data, fsdp=fsdp))
    mesh = make_mesh(config.parallel, jax.devices()[:count])
    program = Program(config, mesh, min_bytes=0)
    step = program.compile()
    state = program.state_from(make_params())
    losses, norms = [], []
    for i in range(2):
        batch = make_batch(first=8 * i) | {"weight": np.ones(8, np.float32)}
        state, metrics = step(state, put_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(program.shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
    return program, step, jax.device_get(state), losses, norms


def difference(state, expected):
    """The largest difference, relative to the largest value of its array."""
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


_, _, expected, losses, norms = two_updates(1, 1, 1)
for mesh in sys.argv[1:]:
    data, fsdp = map(int, mesh.split("x"))
    program, step, state, their_losses, their_norms = two_updates(data, fsdp, 8)
    split = [s for s in jax.tree.leaves(program.shardings["params"]) if not s.is_fully_replicated]
    leaves = jax.tree.leaves(program.abstract_state["params"])
    print(
        json.dumps(
            {
                "mesh": mesh,
                "loss": max(abs(a / b - 1) for a, b in zip(their_losses, losses, strict=True)),
                "grad_norm": max(abs(a / b - 1) for a, b in zip(their_norms, norms, strict=True)),
                "params": difference(state["params"], expected["params"]),
                "ema": difference(state["ema"], expected["ema"]),
                "split": len(split),
                "param_bytes": sum(leaf.size * 4 for leaf in leaves),
                "split_bytes": sum(leaf.size * 4 for leaf in leaves if not leaf.sharding.is_fully_replicated),
                "state_bytes": program.state_bytes(),
                "collectives": collective_bytes(step.as_text()),
            }
        )
    )
