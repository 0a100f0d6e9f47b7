"""The checkpoints of a run: saving in the background, thinning out, restoring."""

import errno
import fcntl
import math
import os
import shutil
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree

from glide_jax.checkpoint.folders import complete_steps, step_folder, unfinished
from glide_jax.checkpoint.step_format import (
    PendingSave,
    Record,
    begin_saving,
    check,
    delete,
    read_arrays,
    read_record,
    read_state,
)
from glide_jax.checkpoint.structure import check_fits, describe
from glide_jax.errors import GlideError


class CheckpointStore:
    """The checkpoints folder of a run, open for writing; a context manager, used by all processes together.

    Args:
        directory: the checkpoints folder, created if necessary. Leftovers of interrupted saves are removed.
        keep_last: how many of the newest steps are kept, at least 1.
        keep_every: steps divisible by this are kept as well.
        keep_best: this many steps with the lowest "validation_mse" in their records are kept as well.

    Raises:
        GlideError: the folder cannot be written to, or another run has it open.
    """

    def __init__(
        self, directory: str | os.PathLike[str], keep_last: int = 2, keep_every: int | None = None, keep_best: int = 0
    ) -> None:
        if keep_last < 1 or (keep_every is not None and keep_every < 1):
            raise GlideError(f"keep_last={keep_last}, keep_every={keep_every}: both must be at least 1")
        self.directory = Path(directory).expanduser()
        self._keep_last, self._keep_every, self._keep_best = keep_last, keep_every, keep_best
        self._pending: Future[None] | None = None
        self._lock = _open_for_writing(self.directory)
        # Also where nobody calls `close`, as in a notebook.
        self._unlock = weakref.finalize(self, _close, self._lock)
        self._gone = (
            f"{self.directory} is no longer the folder that this run began to write to (moved, deleted or unmounted):"
            " put it back and run the same command to resume from what was saved there"
        )
        self._writer = ThreadPoolExecutor(1, "checkpoint")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, step: int, state: PyTree[Array], record: Record) -> None:
        """Starts writing a checkpoint, and returns once `state` has been copied from the devices.

        Waits for the previous one, if that is still being written. A step that exists already is left as it is.

        Args:
            step: its number.
            state: a dict of trees of arrays, with "params" among its keys; may be donated after the call.
            record: everything else needed to continue, as JSON.

        Raises:
            GlideError: this checkpoint or the previous one cannot be written, or the folder is no longer the one
                opened, which is not recreated; earlier checkpoints are untouched.
        """
        self.wait()
        self._require_folder()
        if step not in self.steps():
            pending = begin_saving(self.directory / str(step), state, record)
            self._pending = self._writer.submit(self._complete, pending)

    def wait(self) -> None:
        """Waits until the last save is complete on disk.

        Raises:
            GlideError: it cannot be written.
        """
        if self._pending is not None:
            try:
                self._pending.result()
            finally:
                # After a Ctrl-C here the save still runs, and `close` waits for it again.
                if self._pending.done():
                    self._pending = None

    def close(self) -> None:
        """Waits for the last save, and lets other runs write here."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._unlock()
            self._lock = None

    def steps(self) -> list[int]:
        """The complete steps, ascending; the same in every process."""
        steps = complete_steps(self.directory)
        if jax.process_count() == 1:
            return steps
        # On a shared file system one host may see a new folder before another, so process 0 decides.
        count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
        if count == 0:
            return []
        padded = (steps + [0] * count)[:count]
        return [int(step) for step in multihost_utils.broadcast_one_to_all(np.array(padded, np.int32))]

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return max(self.steps(), default=None)

    def set_aside(self, steps: Iterable[int]) -> None:
        """Renames damaged steps to STEP.damaged: they no longer count, and may be written again.

        Raises:
            GlideError: a step cannot be renamed.
        """
        if jax.process_index() != 0:
            return
        for folder in (self.directory / str(step) for step in steps):
            damaged = folder.with_name(f"{folder.name}.damaged")
            try:
                if damaged.exists():
                    shutil.rmtree(damaged)
                folder.rename(damaged)
            except OSError as error:
                raise GlideError(f"cannot rename {folder}: {error.strerror}") from error

    def restore(
        self, abstract_state: PyTree[jax.ShapeDtypeStruct], step: int | None = None, *, checked: bool = False
    ) -> tuple[PyTree[Array], Record]:
        """The state, bit for bit as saved but with the shardings of `abstract_state`, and its record.

        Args:
            abstract_state: `jax.ShapeDtypeStruct`s with shardings (`glide_jax.parallel.with_shardings`).
            step: by default the newest.
            checked: whether `newest_intact` has just checked all of it.

        Raises:
            GlideError: there is no such step, it is damaged or cannot be read, or shapes, dtypes or names differ.
        """
        folder = step_folder(self.directory, self.latest() if step is None else step)
        if not checked:
            check(folder)
        check_fits(read_arrays(folder), describe(abstract_state), str(folder), same_dtypes=True)
        return read_state(folder, abstract_state), read_record(folder)

    def _require_folder(self) -> None:
        there = self._is_there()
        if jax.process_count() > 1:
            there = bool(multihost_utils.broadcast_one_to_all(np.int32(there)))
        if not there:
            raise GlideError(self._gone)

    def _is_there(self) -> bool:
        """Whether the path still leads to the folder that process 0 has locked."""
        if self._lock is None:
            return True
        try:
            return os.path.samestat(self.directory.stat(), os.fstat(self._lock))
        except OSError:
            return False

    def _complete(self, pending: PendingSave) -> None:
        try:
            pending.finish()
        except GlideError as error:
            if self._is_there():
                raise
            with suppress(OSError):  # recreated by the save's threads; if not empty, somebody else's
                self.directory.rmdir()
                self.directory.parent.rmdir()
            raise GlideError(self._gone) from error
        if not self._is_there():
            raise GlideError(self._gone)
        if jax.process_index() == 0:
            self._thin_out()

    def _thin_out(self) -> None:
        steps = complete_steps(self.directory)
        losses = {step: _loss(self.directory / str(step)) for step in steps} if self._keep_best else {}
        kept = steps_to_keep(steps, self._keep_last, self._keep_every) | best_steps(losses, self._keep_best)
        for step in set(steps) - kept:
            try:
                delete(self.directory / str(step))
            except OSError as error:
                raise GlideError(f"cannot remove checkpoint {self.directory / str(step)}: {error.strerror}") from error


def steps_to_keep(steps: Iterable[int], keep_last: int, keep_every: int | None) -> set[int]:
    """The newest `keep_last` steps, and those divisible by `keep_every`."""
    return set(sorted(steps)[-keep_last:]) | {step for step in steps if keep_every and step % keep_every == 0}


def best_steps(losses: Mapping[int, float | None], keep_best: int) -> set[int]:
    """The `keep_best` steps of lowest finite loss, the newer of equal ones."""
    known = {step: loss for step, loss in losses.items() if loss is not None and math.isfinite(loss)}
    return set(sorted(known, key=lambda step: (known[step], -step))[:keep_best])


def _loss(folder: Path) -> float | None:
    try:
        loss = read_record(folder).get("validation_mse")
    except GlideError:  # a damaged step is not worth keeping, nor a reason to stop
        return None
    return loss if isinstance(loss, int | float) else None


def _open_for_writing(directory: Path) -> int | None:
    """Creates, locks and cleans the folder; returns the lock's descriptor (None except in process 0)."""
    if jax.process_index() != 0:
        return None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        lock = _lock(directory)
        for leftover in unfinished(directory):
            shutil.rmtree(leftover)
    except OSError as error:
        raise GlideError(f"cannot write to {directory}: {error.strerror}; choose another folder") from error
    return lock


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _lock(directory: Path) -> int:
    """A lock held until it is closed or the process ends in any way."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise GlideError(f"another run is writing to {directory}; wait for it or choose another folder") from error
    return descriptor
