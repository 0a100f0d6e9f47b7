"""Runs of several processes: how they start, before JAX touches a device, and a barrier."""

import os

import jax
from orbax.checkpoint import multihost

from glide_jax.errors import GlideError

# The number of processes that srun or mpirun started; jax.distributed finds everything else by itself.
_LAUNCHER_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
# What jax.distributed raises on a single TPU host as notebooks rent it, which no service describes.
_NO_CLUSTER = (ValueError, OSError)


def initialize_from_environment(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
) -> None:
    """Joins this process to the others of its run; alone, it does nothing.

    Without arguments, tasks of srun or mpirun (one per GPU; each sees only the GPU of its local rank) and TPU VMs are
    recognised by their environment; a TPU host of no known cluster is alone. Call it before anything uses a device.

    Args:
        coordinator_address: host:port of process 0, the same for every process.
        num_processes: how many processes there are.
        process_id: the number of this one, from 0.
        timeout: seconds to wait for the others.

    Raises:
        GlideError: only some of the first three arguments are given, or the processes do not find each other.
    """
    explicit = (coordinator_address, num_processes, process_id)
    if explicit == (None, None, None):
        if _started_by_launcher():
            _join(timeout)
        elif _on_tpu_vm():
            try:
                _join(timeout)
            except GlideError as error:
                if not isinstance(error.__cause__, _NO_CLUSTER):
                    raise
    elif None in explicit:
        raise GlideError("give coordinator_address, num_processes and process_id together, or none of them")
    else:
        _join(timeout, *explicit)


def wait_for_all(place: str, timeout: int = 3600) -> None:
    """A barrier: returns once every process of the run has called it; alone, it does nothing.

    Call it before the first program with collectives runs: one process may have compiled for minutes what another found
    in the cache on disk, and CPU processes wait only 30 seconds for each other's first connection.

    Args:
        place: a name, the same in every process and used once in a run.
        timeout: seconds to wait for the others.

    Raises:
        GlideError: some process did not arrive.
    """
    try:
        multihost.get_barrier_sync_fn()(key=place, timeout_ms=1000 * timeout)
    except RuntimeError as error:
        raise GlideError(f"not all processes came to {place!r}: {str(error).splitlines()[0]}") from error


def _started_by_launcher() -> bool:
    return any(int(os.environ.get(name, "1")) > 1 for name in _LAUNCHER_COUNTS)


def _on_tpu_vm() -> bool:
    # Importing jax sets this if it finds TPU chips and their runtime.
    return os.environ.get("TPU_ML_PLATFORM") == "JAX"


def _join(
    timeout: int,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    # A SLURM allocation must not choose the devices of processes started by hand inside it.
    detection = "deactivate" if coordinator_address else None
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            cluster_detection_method=detection,
            initialization_timeout=timeout,
        )
    except (RuntimeError, *_NO_CLUSTER) as error:
        address = coordinator_address or "the launcher's address"
        raise GlideError(f"cannot join the other processes at {address}: {str(error).splitlines()[0]}") from error
