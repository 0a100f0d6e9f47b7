"""Weights alone: read from any checkpoint, or written as a checkpoint of their own."""

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Literal

import jax
from jaxtyping import Array, PyTree

from glide_jax.checkpoint import safetensors_file, step_format
from glide_jax.checkpoint.folders import resolve
from glide_jax.checkpoint.step_format import Record
from glide_jax.checkpoint.structure import check_fits, describe
from glide_jax.errors import GlideError
from glide_jax.files import require_new


def read_record(path: str | PathLike[str], step: int | None = None) -> Record:
    """The record stored with a checkpoint.

    Args:
        path: a run folder, its checkpoints folder, either with @STEP, one step's folder or a folder of plain weights;
            or one safetensors file.
        step: by default the newest.

    Raises:
        GlideError: there is no such checkpoint, it is damaged, or it cannot be read.
    """
    found = resolve(path, step)
    return safetensors_file.read_header(found)["record"] if found.is_file() else step_format.read_record(found)


def held_weights(path: str | PathLike[str], step: int | None = None) -> set[str]:
    """Which of "params" and "ema" a checkpoint holds; arguments and errors as for `read_record`."""
    found = resolve(path, step)
    if found.is_file():
        return {"params"}
    saved = step_format.read_arrays(found)
    return {name.split("/")[0] for name in saved} & {"params", "ema"}


def require_blocks(path: str | PathLike[str], blocks: Mapping[str, int], *, unseen: int = 0) -> None:
    """Compares the number of blocks in a checkpoint's record with its arrays: building hundreds would take minutes.

    Args:
        path: as for `read_record`.
        blocks: the numbers in the record, by the name their parameters share, as {"unet/up": 16}.
        unseen: how many may be claimed without an array of theirs, since adapters are of some layers only.

    Raises:
        GlideError: there are fewer; or as for `read_record`.
    """
    found = resolve(path)
    names = safetensors_file.read_names(found) if found.is_file() else step_format.read_arrays(found)
    for group, claimed in blocks.items():
        numbers = {match[1] for name in names if (match := re.search(rf"(?:^|/){group}/([0-9]+)/", name))}
        if claimed > max(len(numbers), unseen):
            raise GlideError(f"{path} does not match its record: it has {len(numbers)} of {group}, not {claimed}")


def load_weights(
    path: str | PathLike[str],
    abstract_params: PyTree[jax.ShapeDtypeStruct],
    *,
    prefer: Literal["ema", "params"] = "ema",
    step: int | None = None,
) -> PyTree[Array]:
    """The model parameters in a checkpoint, read without the rest of its state.

    Args:
        path: as for `read_record`.
        abstract_params: their shapes, with the wanted dtypes and shardings; by default on one device.
        prefer: EMA or raw weights; without EMA weights, the raw ones.
        step: by default the newest.

    Raises:
        GlideError: there is no such checkpoint, it is damaged or cannot be read, or shapes or names differ.
    """
    folder = resolve(path, step)
    if folder.is_file():
        return safetensors_file.load(folder, abstract_params)
    step_format.check(folder)
    saved = step_format.read_arrays(folder)
    key = prefer if any(name.startswith(f"{prefer}/") for name in saved) else "params"
    subtree = {name: spec for name, spec in saved.items() if name.startswith(f"{key}/")}
    check_fits(subtree, describe({key: abstract_params}), str(folder), same_dtypes=False)
    step_format.require_stored(folder, subtree)
    return step_format.read_state(folder, {key: abstract_params})[key]


def save_weights(path: str | PathLike[str], params: PyTree[Array], record: Record, *, compress: bool = False) -> None:
    """Writes parameters at `path` as a checkpoint without training state; `compress` makes it smaller.

    Raises:
        GlideError: `path` exists already, or it cannot be written.
    """
    folder = Path(path).expanduser()
    require_new(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GlideError(f"cannot write checkpoint {path}: {error.strerror}; choose another folder") from error
    step_format.begin_saving(folder, {"params": params}, record, compress=compress).finish()
