"""Weights alone: out of any checkpoint, or as a checkpoint of their own."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypedDict

import jax
from jaxtyping import Array, PyTree

from glide_jax.checkpoint import step_format
from glide_jax.checkpoint.folders import resolve
from glide_jax.checkpoint.step_format import Record
from glide_jax.errors import GlideError


def read_record(path: str | PathLike[str], step: int | None = None) -> Record:
    """The record saved with a checkpoint.

    Args:
        path: a run folder, its checkpoints folder, either with @STEP, one step's folder or a folder of plain weights.
        step: by default the newest.

    Raises:
        GlideError: there is no such checkpoint, it is damaged, or it cannot be read.
    """
    return step_format.read_record(resolve(path, step))


def held_weights(path: str | PathLike[str], step: int | None = None) -> set[str]:
    """Which of "params" and "ema" a checkpoint holds; arguments and errors are those of `read_record`."""
    saved = step_format.read_arrays(resolve(path, step))
    return {name.split("/")[0] for name in saved} & {"params", "ema"}


def load_weights(
    path: str | PathLike[str],
    abstract_params: PyTree[jax.ShapeDtypeStruct],
    *,
    prefer: Literal["ema", "params"] = "ema",
    step: int | None = None,
) -> PyTree[Array]:
    """The model parameters of a checkpoint, read without the rest of its state.

    Args:
        path: a run folder, its checkpoints folder, either with @STEP, one step's folder or a folder of plain weights.
        abstract_params: shapes, with the dtypes and shardings wanted; by default on one device.
        prefer: the EMA or the raw weights; where there are no EMA weights, the raw ones.
        step: by default the newest.

    Raises:
        GlideError: there is no such checkpoint, it is damaged or cannot be read, or shapes or names differ.
    """
    folder = resolve(path, step)
    step_format.check(folder)
    saved = step_format.read_arrays(folder)
    key = prefer if any(name.startswith(f"{prefer}/") for name in saved) else "params"
    subtree = {name: spec for name, spec in saved.items() if name.startswith(f"{key}/")}
    check_fits(subtree, describe({key: abstract_params}), str(folder), same_dtypes=False)
    return step_format.read_state(folder, {key: abstract_params})[key]


def save_weights(path: str | PathLike[str], params: PyTree[Array], record: Record, *, compress: bool = False) -> None:
    """Writes parameters as a checkpoint without training state, at `path` itself; `compress` for fewer bytes.

    Raises:
        GlideError: something is at `path` already, or it cannot be written.
    """
    folder = Path(path).expanduser()
    if folder.exists():
        raise GlideError(f"{path} exists already; choose another folder or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GlideError(f"cannot write checkpoint {path}: {error.strerror}; choose another folder") from error
    step_format.begin_saving(folder, {"params": params}, record, compress=compress).finish()


_LISTED = 3


class ArraySpec(TypedDict):
    """Shape and dtype of one array, as JSON has them."""

    shape: list[int]
    dtype: str


def describe(tree: PyTree[Array | jax.ShapeDtypeStruct]) -> dict[str, ArraySpec]:
    """The arrays of a tree by name ("params/unet/...", the path joined by slashes)."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): {"shape": [*leaf.shape], "dtype": str(leaf.dtype)}
        for path, leaf in leaves
    }


def is_description(value: Any) -> bool:
    """Whether `value`, read from JSON, is what `describe` gives."""
    return isinstance(value, dict) and all(
        isinstance(spec, dict)
        and isinstance(spec.get("dtype"), str)
        and isinstance(spec.get("shape"), list)
        and all(type(size) is int for size in spec["shape"])
        for spec in value.values()
    )


def check_fits(
    saved: Mapping[str, ArraySpec], wanted: Mapping[str, ArraySpec], where: str, *, same_dtypes: bool
) -> None:
    """Compares the arrays of a checkpoint with those to be filled from it.

    Raises:
        GlideError: in one line, the first few arrays that differ in shape (or dtype, if `same_dtypes`), are
            missing or are too many, and how many more there are.
    """
    text = _shape_and_dtype if same_dtypes else _shape
    differing = [
        f"{name} is {text(saved[name])} in the checkpoint, {text(spec)} wanted"
        for name, spec in wanted.items()
        if name in saved and text(saved[name]) != text(spec)
    ]
    missing = [f"{name} is not in the checkpoint" for name in wanted if name not in saved]
    unknown = [f"{name} is in the checkpoint only" for name in saved if name not in wanted]
    problems = differing + missing + unknown
    if problems:
        more = f" and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise GlideError(
            f"checkpoint {where} does not fit the configuration: {'; '.join(problems[:_LISTED])}{more};"
            " use the configuration it was written with"
        )


def _shape(spec: ArraySpec) -> str:
    return "x".join(map(str, spec["shape"])) or "a scalar"


def _shape_and_dtype(spec: ArraySpec) -> str:
    return f"{_shape(spec)} {spec['dtype']}"
