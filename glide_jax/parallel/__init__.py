"""Devices and processes: the mesh, where each array lives, and the start of a multi-host run."""

from glide_jax.parallel.distributed import (
    SharedError,
    ending_alone,
    initialize_from_environment,
    together,
    wait_for_all,
)
from glide_jax.parallel.mesh import AXES, ParallelConfig, make_mesh
from glide_jax.parallel.sharding import (
    batch_sharding,
    bytes_per_device,
    check_batch_size,
    gather_for_use,
    in_own_layout,
    nearest_multiples,
    partition_spec,
    put_batch,
    state_shardings,
    with_shardings,
)

__all__ = [
    "AXES",
    "ParallelConfig",
    "SharedError",
    "batch_sharding",
    "bytes_per_device",
    "check_batch_size",
    "ending_alone",
    "gather_for_use",
    "in_own_layout",
    "initialize_from_environment",
    "make_mesh",
    "nearest_multiples",
    "partition_spec",
    "put_batch",
    "state_shardings",
    "together",
    "wait_for_all",
    "with_shardings",
]
