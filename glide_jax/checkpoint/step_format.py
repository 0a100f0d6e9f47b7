"""One step's folder, written and read through Orbax; nothing else in the project imports Orbax."""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import jax
from jaxtyping import Array, PyTree
from orbax.checkpoint import v1 as ocp

from glide_jax.checkpoint.structure import ArraySpec, describe
from glide_jax.errors import GlideError

Record = dict[str, Any]

# Orbax writes a step under its name with this suffix and renames it when all of it is there.
TEMPORARY_SUFFIX = ".orbax-checkpoint-tmp"


class _RaisedAnyway(logging.Filter):
    """Drops the tracebacks that Orbax's threads log of exceptions which they also hand on to the caller."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "_SignalingThread" not in str(record.msg)


logging.getLogger("absl").addFilter(_RaisedAnyway())


class PendingSave:
    """A step being written in the background; `finish` waits for it."""

    def __init__(self, folder: Path, response: ocp.AsyncResponse) -> None:
        self._folder, self._response = folder, response

    def finish(self) -> None:
        """Waits until the step is complete under its final name, on all processes.

        Raises:
            GlideError: it could not be written; what there is of it is removed.
        """
        with _writing(self._folder):
            self._response.result()


def begin_saving(folder: Path, state: PyTree[Array], record: Record, *, compress: bool = False) -> PendingSave:
    """Copies `state` to the host and starts writing it, with `record`, as the new step `folder`.

    `compress` (zstd) takes 8 % off trained float32 weights, and doubles the time.

    On return `state` may be donated and `record` changed.

    Raises:
        GlideError: the folder cannot be created.
        TypeError: `record` is not JSON.
    """
    # Orbax writes the record later: it gets a copy of its own.
    contents = {"state": state, "record": json.loads(json.dumps(record)), "arrays": describe(state)}
    with _writing(folder), _orbax_context(compress):
        folder.parent.mkdir(parents=True, exist_ok=True)
        return PendingSave(folder, ocp.save_checkpointables_async(folder.absolute(), contents))


def read_state(folder: Path, abstract_state: PyTree[jax.ShapeDtypeStruct]) -> PyTree[Array]:
    """The arrays of `abstract_state`, which may be a part of the saved tree, in its dtypes and shardings.

    Leaves without a sharding go to the first device. Shapes are the caller's to check beforehand.

    Raises:
        GlideError: the folder cannot be read.
    """
    target = {"state": jax.tree.map(_with_default_sharding, abstract_state)}
    with _reading(folder), _orbax_context():
        return ocp.load_checkpointables(folder.absolute(), target)["state"]


def read_record(folder: Path) -> Record:
    """The record of a step.

    Raises:
        GlideError: the folder cannot be read.
    """
    with _reading(folder):
        return cast(Record, json.loads(_json_file(folder, "record").read_text()))


def read_arrays(folder: Path) -> dict[str, ArraySpec]:
    """Shape and dtype of every array of a step, by name.

    Raises:
        GlideError: the folder cannot be read.
    """
    with _reading(folder):
        return cast(dict[str, ArraySpec], json.loads(_json_file(folder, "arrays").read_text()))


def is_step(folder: Path) -> bool:
    """Whether `folder` is one complete step."""
    return TEMPORARY_SUFFIX not in folder.name and _json_file(folder, "record").is_file()


def _json_file(folder: Path, name: str) -> Path:
    return folder / name / "data.json"  # where Orbax's JsonHandler puts it


def _orbax_context(compress: bool = False) -> ocp.Context:
    registry = ocp.handlers.local_registry()
    for name in ("record", "arrays"):
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.pytree.loading.partial_load = True
    context.array.saving.use_compression = compress
    # Otherwise a folder that cannot be created is found out late, by threads that wait for it.
    context.asynchronous.create_directories_asynchronously = False
    return context


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, LookupError) as error:
        reason = f"{_reason(error)}; if it is damaged, use another step"
        raise GlideError(f"cannot read checkpoint {folder}: {reason}") from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        shutil.rmtree(f"{folder}{TEMPORARY_SUFFIX}", ignore_errors=True)
        raise GlideError(
            f"cannot write checkpoint {folder}: {_reason(error)}; what was saved before is untouched"
        ) from error


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
