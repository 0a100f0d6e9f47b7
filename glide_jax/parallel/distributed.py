"""Runs of several processes: how they start, wait for each other, and end together at an error."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from glide_jax import progress
from glide_jax.errors import GlideError, first_line

# The number of processes that srun or mpirun started; jax.distributed finds everything else by itself.
_LAUNCHER_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
# Of these one is set on the hosts of a TPU pod that has no metadata service.
_POD = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "MEGASCALE_COORDINATOR_ADDRESS")
_RANKS = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "TPU_WORKER_ID")
_MOST_BYTES = 2000  # of an error's text that other processes are told
_LOST = ("Gloo", "NCCL", "UNAVAILABLE")  # in JAX's errors when another process is gone


class SharedError(GlideError):
    """An error that every process of the run raises."""


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
        GlideError: only some of the first three arguments are given, or they cannot be used. If the others do not come
            in time, XLA ends the process.
    """
    explicit = (coordinator_address, num_processes, process_id)
    if explicit == (None, None, None):
        if _started_by_launcher():
            _warn_of_idle_gpus()
            _join(timeout)
        elif _on_tpu_vm():
            try:
                _join(timeout)
            except GlideError as error:
                if not _is_single_host(error.__cause__):
                    raise
                print("found no other TPU hosts: this one works alone", file=sys.stderr)
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


@contextmanager
def together(place: str) -> Iterator[None]:
    """Surrounds what may fail in one process alone: at its end all wait for each other, and raise any one's error.

    Args:
        place: as for `wait_for_all`.

    Raises:
        SharedError: there was a `GlideError` in some process, whose number the others are told.
    """
    if jax.process_count() == 1:
        yield
        return
    failure: GlideError | None = None
    try:
        yield
    except GlideError as error:
        failure = error
    wait_for_all(place)
    text = "" if failure is None else str(failure) or type(failure).__name__
    said = text.encode(errors="backslashreplace")[:_MOST_BYTES].ljust(_MOST_BYTES, b"\0")
    everywhere = multihost_utils.process_allgather(np.frombuffer(said, np.uint8))
    if failure is not None:
        raise SharedError(str(failure)) from failure
    for process, text in enumerate(row.tobytes().rstrip(b"\0").decode(errors="replace") for row in everywhere):
        if text:
            raise SharedError(f"process {process}: {text}")


@contextmanager
def ending_alone() -> Iterator[None]:
    """Ends this process at once at an error that the others do not share: JAX would wait for them for five minutes."""
    try:
        yield
    except SharedError:
        raise
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        known = isinstance(error, GlideError)
        if known:
            print(f"error: {error}", file=sys.stderr)
        # A compiled program raises a ValueError.
        elif isinstance(error, jax.errors.JaxRuntimeError | ValueError) and any(sign in str(error) for sign in _LOST):
            print(f"error: another process may have ended, see what it printed ({first_line(error)})", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2 if known else 1)


def _started_by_launcher() -> bool:
    return any(int(os.environ.get(name, "1")) > 1 for name in _LAUNCHER_COUNTS)


def _warn_of_idle_gpus() -> None:
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    # Of each node, as "8(x2),4".
    tasks = [int(each) for each in re.findall(r"(\d+)(?:\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))]
    if gpus.isdecimal() and tasks and max(tasks) < int(gpus) and _rank() == "0":
        print(
            f"warning: SLURM starts {max(tasks)} tasks on a node of {gpus} GPUs, and a task uses one GPU: start"
            f" --ntasks-per-node={gpus}",
            file=sys.stderr,
        )


def _rank() -> str:
    return next((os.environ[name] for name in _RANKS if name in os.environ), "0")


def _is_single_host(cause: BaseException | None) -> bool:
    """Whether jax.distributed failed because no service describes this TPU host, as where notebooks rent one."""
    if isinstance(cause, ValueError):
        return "coordinator_address should be defined" in str(cause)
    return isinstance(cause, OSError) and not any(name in os.environ for name in _POD)


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
    first = process_id == 0 if coordinator_address else _rank() == "0"
    try:
        with progress.phase("waiting for the other processes to start", quiet=not first):
            jax.distributed.initialize(
                coordinator_address,
                num_processes,
                process_id,
                cluster_detection_method=detection,
                initialization_timeout=timeout,
            )
    except (RuntimeError, ValueError, OSError) as error:
        address = coordinator_address or "the launcher's address"
        raise GlideError(f"cannot join the other processes at {address}: {str(error).splitlines()[0]}") from error
