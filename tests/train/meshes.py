"""Two updates on one mesh of simulated devices; run in a process of its own, which has them.

Prints a line of JSON for each mesh and writes its state into a folder.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from glide_jax.parallel import ParallelConfig, make_mesh, put_batch
from glide_jax.train.config import RunConfig
from glide_jax.train.program import Program
from tests.parallel.collectives import collective_bytes
from tests.tiny.training import MODEL, make_batch, make_config, make_params


def two_updates(step, state, mesh):
    """The state after them, and of each the metrics."""
    found = []
    for i in range(2):
        state, metrics = step(state, put_batch(make_batch(first=8 * i), mesh))
        found.append({name: float(metrics[name]) for name in ("loss", "grad_norm")})
    return state, found


def report(name, folder):
    data, fsdp = map(int, name.split("x"))
    config = RunConfig(model=MODEL, train=make_config(), parallel=ParallelConfig(data=data, fsdp=fsdp))
    mesh = make_mesh(config.parallel)
    program = Program(config, mesh, min_bytes=0)
    step = program.compile()
    state, metrics = two_updates(step, program.state_from(make_params()), mesh)
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(program.shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
    state = program.packing.unpack_state(state)
    for part in ("params", "ema"):
        np.savez(folder / f"{name}_{part}.npz", *jax.tree.leaves(state[part]))
    leaves = jax.tree.leaves(program.abstract_state["params"])
    split = [leaf for leaf in leaves if not leaf.sharding.is_fully_replicated]
    return {
        "metrics": metrics,
        "split": len(split),
        "param_bytes": sum(leaf.size * 4 for leaf in leaves),
        "split_bytes": sum(leaf.size * 4 for leaf in split),
        "state_bytes": program.state_bytes(),
        "collectives": collective_bytes(step.as_text()),
    }


if __name__ == "__main__":
    for mesh in sys.argv[2:]:
        print(json.dumps(report(mesh, Path(sys.argv[1]))))
