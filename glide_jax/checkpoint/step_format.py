"""A step's folder, written and read through Orbax; nothing else in the project imports Orbax.

Size and CRC-32 of every file are stored with them, so that damage is found before anything is used. Hashing files
rather than arrays covers everything in a step, and works for any mesh and number of processes.
"""

import json
import logging
import math
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree
from orbax.checkpoint import v1 as ocp

from glide_jax.checkpoint.structure import ArraySpec, describe, is_description
from glide_jax.errors import GlideError

Record = dict[str, Any]

HASHES = "hashes.json"
_BLOCK = 2**22
_MOST_IN_A_BYTE = 100  # numbers; of the bundled models, most rows of whose token tables are zeros, there are 1.7

# Orbax writes a step under its name with this suffix, and renames it when it is complete.
TEMPORARY_SUFFIX = ".orbax-checkpoint-tmp"

# Writes still in progress when a save fails recreate its folder: wait until none comes for this many seconds.
_SETTLED_SECONDS = 0.5
_MOST_SECONDS = 30.0


class DamagedError(GlideError):
    """A checkpoint was changed after writing, or lacks a part; `found` is the message without the advice."""

    def __init__(self, folder: Path, reason: str) -> None:
        self.found = f"checkpoint {folder} is damaged: {reason}"
        super().__init__(f"{self.found}; use another step (RUN@STEP)")


class _RaisedAnyway(logging.Filter):
    """Drops tracebacks that Orbax's threads log for exceptions that they also pass on to the caller."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "_SignalingThread" not in str(record.msg)


logging.getLogger("absl").addFilter(_RaisedAnyway())


class PendingSave:
    """A step being written in the background, which `finish` waits for."""

    def __init__(self, folder: Path, response: ocp.AsyncResponse) -> None:
        self._folder, self._response = folder, response

    def finish(self) -> None:
        """Waits until the step is complete under its final name, on all processes.

        Raises:
            GlideError: it could not be written; its remains are removed.
        """
        with _writing(self._folder):
            self._response.result()
            if jax.process_index() == 0:
                self._add_hashes()

    def _add_hashes(self) -> None:
        try:
            _remove_paths(self._folder)
            write_hashes(self._folder)
        except OSError:
            delete(self._folder)
            raise


def begin_saving(folder: Path, state: PyTree[Array], record: Record, *, compress: bool = False) -> PendingSave:
    """Copies `state` to the host, and starts writing it and `record` as the new step `folder`.

    `compress` (zstd) saves 8 % of trained float32 weights, and doubles the time.

    After the call, `state` may be donated and `record` changed.

    Raises:
        GlideError: the step cannot be created in its parent folder, which must exist.
        TypeError: `record` is not JSON.
    """
    # Of NumPy's arrays, Orbax lets threads print a traceback each when the disk is full.
    state = jax.tree.map(jnp.asarray, state)
    # Orbax writes the record later, so it gets its own copy.
    contents = {"state": state, "record": json.loads(json.dumps(record)), "arrays": describe(state)}
    with _writing(folder), _orbax_context(compress):
        return PendingSave(folder, ocp.save_checkpointables_async(folder.absolute(), contents))


def write_hashes(folder: Path) -> None:
    """Reads all files of a complete step, and lists them in its `hashes.json`.

    Raises:
        OSError: a file cannot be read, or the list cannot be written.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((".", HASHES))]
    hashes = {path.relative_to(folder).as_posix(): _hash(path) for path in files}
    # Not with `files.written`, which would recreate a folder that was moved away in the meantime.
    partial = folder / f"{HASHES}.tmp"
    with partial.open("w") as file:
        json.dump(hashes, file, indent=0, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / HASHES)


def check(folder: Path) -> None:
    """Reads every file of a step to check that it is unchanged; a step without hashes passes.

    Raises:
        DamagedError: a file has changed.
        GlideError: the folder cannot be read.
    """
    with _checking(folder):
        _check_hashes(folder)
    read_arrays(folder)
    read_record(folder)


def require_stored(folder: Path, arrays: Mapping[str, ArraySpec]) -> None:
    """Compares the size of arrays with that of their files: what those lack Orbax takes for zeros, however many.

    Raises:
        DamagedError: the arrays are larger than any compression explains.
    """
    stored = sum(file.stat().st_size for file in (folder / "state").rglob("*") if file.is_file())
    claimed = sum(math.prod(spec["shape"]) for spec in arrays.values())
    if claimed > _MOST_IN_A_BYTE * stored:
        raise DamagedError(folder, f"arrays/data.json lists {claimed} numbers, but its files have {stored} bytes")


def read_state(folder: Path, abstract_state: PyTree[jax.ShapeDtypeStruct]) -> PyTree[Array]:
    """Reads the arrays of `abstract_state`, which may be part of the saved tree, in its dtypes and shardings.

    Leaves without a sharding go to the first device. The caller has to check shapes and hashes (`check`) beforehand:
    Orbax itself does not notice a wrong bit.

    Raises:
        GlideError: the folder cannot be read.
    """
    target = {"state": jax.tree.map(_with_default_sharding, abstract_state)}
    try:
        with _orbax_context():
            return ocp.load_checkpointables(folder.absolute(), target)["state"]
    except Exception as error:  # Orbax raises nearly anything on a damaged step without hashes
        raise GlideError(
            f"cannot read checkpoint {folder}: {_reason(error)}; if it is damaged, use another step (RUN@STEP)"
        ) from error


def read_record(folder: Path) -> Record:
    """The record of a step; errors as for `check`."""
    record = _read_json(folder, "record")
    if not isinstance(record, dict):
        raise DamagedError(folder, "record/data.json is not a record")
    return record


def read_arrays(folder: Path) -> dict[str, ArraySpec]:
    """Shape and dtype of every array in a step, by name; errors as for `check`."""
    arrays = _read_json(folder, "arrays")
    if not is_description(arrays):
        raise DamagedError(folder, "arrays/data.json is not a list of arrays")
    return cast(dict[str, ArraySpec], arrays)


def delete(folder: Path) -> None:
    """Deletes a step; raises OSError on failure."""
    # Renamed first, so that an interrupted deletion does not leave half a step under its name.
    doomed = folder.with_name(f"{folder.name}.deleted{TEMPORARY_SUFFIX}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def is_step(folder: Path) -> bool:
    """Whether `folder` is a complete step."""
    return TEMPORARY_SUFFIX not in folder.name and _json_file(folder, "record").is_file()


def require_complete(folder: Path) -> None:
    """Raises `DamagedError` if a step's folder lacks parts; saves and deletions never leave one like that."""
    if not is_step(folder):
        raise DamagedError(folder, f"{_json_file(folder, 'record').relative_to(folder)} is missing")


def _json_file(folder: Path, name: str) -> Path:
    return folder / name / "data.json"  # as Orbax's JsonHandler names it


def _orbax_context(compress: bool = False) -> ocp.Context:
    registry = ocp.handlers.local_registry()
    for name in ("record", "arrays"):
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.pytree.loading.partial_load = True
    context.array.saving.use_compression = compress
    # Otherwise the failure to create a folder shows late, in threads that wait for it.
    context.asynchronous.create_directories_asynchronously = False
    return context


def _read_json(folder: Path, name: str) -> Any:
    with _checking(folder):
        _check_hashes(folder, f"{name}/")
        return json.loads(_json_file(folder, name).read_text(encoding="utf-8"))


def _check_hashes(folder: Path, below: str = "") -> None:
    """Compares the files in a step, or in its subfolder `below`, with its `hashes.json`.

    A step without one passes, as it is from before hashes were introduced.

    Raises:
        ValueError: a file has changed or is missing, or the list itself is damaged.
        OSError: one cannot be read.
    """
    if not (folder / HASHES).exists():
        return
    hashes = json.loads((folder / HASHES).read_text(encoding="utf-8"))
    entries = list(hashes.values()) if isinstance(hashes, dict) else []
    if not entries or not all(isinstance(entry, list) and len(entry) == 2 for entry in entries):
        raise ValueError(f"{HASHES} is no list of hashes")
    if outside := [name for name in hashes if name.startswith("/") or ".." in name.split("/")]:
        raise ValueError(f"{HASHES} lists {outside[0]!r:.100}, which is no file of it")
    listed = {name: entry for name, entry in hashes.items() if name.startswith(below)}
    if not listed:
        raise ValueError(f"{HASHES} lists nothing in {below or 'it'}")
    # Sizes first, because they cost nothing.
    for name, (size, _) in listed.items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if (folder / name).stat().st_size != size:
            raise ValueError(f"{name} has {(folder / name).stat().st_size} bytes, not {size}")
    for name, entry in listed.items():
        if _hash(folder / name) != entry:
            raise ValueError(f"{name} is not what was written")


def _hash(path: Path) -> list[int]:
    size, crc = 0, 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


@contextmanager
def _checking(folder: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError, FileNotFoundError) as error:
        raise DamagedError(folder, _reason(error)) from error
    except OSError as error:
        raise GlideError(f"cannot read checkpoint {folder}: {_reason(error)}") from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        _remove(folder)
        raise GlideError(
            f"cannot write checkpoint {folder}: {_reason(error)}; what was saved before is untouched"
        ) from error


def _remove_paths(folder: Path) -> None:
    """Takes the step's absolute path out of the file that Orbax writes it to: it would travel with the weights."""
    notice = folder / "commit_success.txt"
    if notice.exists():
        notice.write_text("Checkpoint commit was successful")


def _remove(folder: Path) -> None:
    """Removes what a failed save wrote, and what its threads are still writing."""
    unfinished = Path(f"{folder}{TEMPORARY_SUFFIX}")
    begun = absent_since = time.monotonic()
    while time.monotonic() < min(absent_since + _SETTLED_SECONDS, begun + _MOST_SECONDS):
        if unfinished.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            absent_since = time.monotonic()
        time.sleep(_SETTLED_SECONDS / 50)


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    if code := re.search(r"os_error_code='(\d+)'", text):
        return os.strerror(int(code[1]))
    return text.splitlines()[0][:200] if text else type(error).__name__


def _with_default_sharding(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
