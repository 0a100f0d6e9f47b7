"""The arrays in a checkpoint, and whether they fit those asked for."""

from collections.abc import Mapping
from typing import Any, TypedDict

import jax
from jaxtyping import Array, PyTree

from glide_jax.errors import GlideError

_LISTED = 3


class ArraySpec(TypedDict):
    """Shape and dtype of an array, as in JSON."""

    shape: list[int]
    dtype: str


def describe(tree: PyTree[Array | jax.ShapeDtypeStruct]) -> dict[str, ArraySpec]:
    """The arrays of a tree by name, the path joined by slashes ("params/unet/...")."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): {"shape": [*leaf.shape], "dtype": str(leaf.dtype)}
        for path, leaf in leaves
    }


def is_description(value: Any) -> bool:
    """Whether `value`, read from JSON, has the form of `describe`'s result."""
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
    """Compares the arrays in a checkpoint with those to be filled from it.

    Raises:
        GlideError: one line with the first few arrays that differ in shape (or dtype, if `same_dtypes`), are missing or
            are unknown, and the number of others.
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
