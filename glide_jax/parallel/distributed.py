"""Runs of several processes: their start, before JAX touches a device, and a place to meet."""

import os

import jax
from orbax.checkpoint import multihost

from glide_jax.errors import GlideError

# How many processes srun or mpirun started; jax.distributed reads everything else from them by itself.
_LAUNCHER_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def initialize_from_environment(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
) -> None:
    """Joins this process to the others of its run; alone, it does nothing.

    Without arguments, several tasks of srun or mpirun (one a GPU: each sees the GPU of its local rank only)
    and TPU VMs are recognised by their environment. Call it before anything that uses a device.

    Args:
        coordinator_address: host:port of process 0, the same for every process.
        num_processes: how many processes there are.
        process_id: this one's number, from 0.
        timeout: seconds to wait for the others.

    Raises:
        GlideError: only some of the first three arguments are given, or the processes do not find together.
    """
    explicit = (coordinator_address, num_processes, process_id)
    if explicit == (None, None, None):
        if _started_by_launcher() or _on_tpu_vm():
            _join(timeout)
    elif None in explicit:
        raise GlideError("give coordinator_address, num_processes and process_id together, or none of them")
    else:
        _join(timeout, *explicit)


def wait_for_all(place: str, timeout: int = 3600) -> None:
    """Returns once every process of the run is here; alone, it does nothing.

    To be called before the first program with collectives runs: one process may have compiled it for minutes where
    another had it from the cache on disk, and CPUs wait for each other's first connection for 30 seconds only.

    Args:
        place: a name, the same for every process, and met at once in a run.
        timeout: seconds to wait for the others.

    Raises:
        GlideError: some process did not come.
    """
    try:
        multihost.get_barrier_sync_fn()(key=place, timeout_ms=1000 * timeout)
    except RuntimeError as error:
        raise GlideError(f"not all processes came to {place!r}: {str(error).splitlines()[0]}") from error


def _started_by_launcher() -> bool:
    return any(int(os.environ.get(name, "1")) > 1 for name in _LAUNCHER_COUNTS)


def _on_tpu_vm() -> bool:
    # Importing jax sets this where it finds TPU chips and their runtime.
    return os.environ.get("TPU_ML_PLATFORM") == "JAX"


def _join(
    timeout: int,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    # A SLURM allocation around processes started by hand must not choose their devices.
    detection = "deactivate" if coordinator_address else None
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            cluster_detection_method=detection,
            initialization_timeout=timeout,
        )
    except (RuntimeError, ValueError) as error:
        address = coordinator_address or "the launcher's address"
        raise GlideError(f"cannot join the other processes at {address}: {str(error).splitlines()[0]}") from error
