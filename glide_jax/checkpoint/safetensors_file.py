"""Weights as a safetensors file, with PyTorch's names and layouts.

The header has the record of a checkpoint, and says which of our parameters each tensor is. `python -m convert` writes
such files for models (`to-torch`) and for adapters (`to-kohya`), which also have a scalar NAME.alpha for each layer.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict, TypeVar

import jax
import numpy as np
from jaxtyping import Array, PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from glide_jax.checkpoint.structure import describe
from glide_jax.errors import GlideError
from glide_jax.files import written

SUFFIX = ".safetensors"
HEADER = "glide_jax_checkpoint"
ALPHA = "alpha"

_DTYPES = ("float32", "float16", "bfloat16")
# The parameters whose axes have another order in PyTorch: [out, in, ...].
_OUT_FIRST = ("kernel", "down", "up", "magnitude")
_LISTED = 3
_ENTRIES = ("model", "diffusion", "clip_text", "clip_image", "lora")
_T = TypeVar("_T")


class Header(TypedDict):
    """Our entry in the header, as JSON.

    Attributes:
        record: the checkpoint's record: model, diffusion and, for adapters, lora.
        names: for each tensor, the path of our parameter, as "unet/down/0/res/in_conv/kernel".
    """

    record: dict[str, Any]
    names: dict[str, str]


def is_file(path: Path) -> bool:
    """Whether a path is such a file, judged by its name."""
    return path.suffix == SUFFIX and path.is_file()


def find_header(path: Path) -> Header | None:
    """Our entry in the header; None if another program wrote the file.

    Raises:
        GlideError: the file cannot be read, or its header is damaged.
    """
    text = _read(path, lambda file: (file.metadata() or {}).get(HEADER))
    if text is None:
        return None
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not _is_sound(header):
        raise GlideError(f"{path}: the entry {HEADER} of its header is damaged")
    sound: Header = header
    return sound


def read_header(path: Path) -> Header:
    """Like `find_header`, but raises `GlideError` if another program wrote the file."""
    header = find_header(path)
    if header is None:
        raise GlideError(
            f"{path} does not say which model it is: only safetensors files from python -m convert can be used"
            " directly; convert one of PyTorch's with its to-flax"
        )
    return header


def read_names(path: Path) -> list[str]:
    """The paths of our parameters that a file has tensors for; errors as for `read_header`."""
    names = read_header(path)["names"]
    return [names.get(key, key) for key in _read(path, lambda file: list(file.keys()))]


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of any safetensors file, in its order; raises `GlideError` if it cannot be read."""
    return _read(path, lambda file: {key: file.get_tensor(key) for key in file.offset_keys()})


def write(
    path: Path, tensors: Mapping[str, np.ndarray], header: Header, others: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Writes tensors in PyTorch's layouts, atomically; `others` are header entries for other programs.

    Raises:
        GlideError: it cannot be written.
    """
    with written(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            packed = {key: np.asarray(tensor, order="C") for key, tensor in tensors.items()}
            save_file(packed, partial, {"format": "pt", HEADER: json.dumps(header), **others})
        except SafetensorError as error:  # its error for a full disk
            raise OSError(str(error)) from error
        partial.chmod(mode)  # the library makes it readable only by its owner


def load(path: Path, abstract: PyTree[jax.ShapeDtypeStruct]) -> PyTree[Array]:
    """The parameters in a file.

    Args:
        path: the file.
        abstract: their shapes, with the wanted dtypes and shardings; by default on one device.

    Raises:
        GlideError: as for `read_header`; or tensors are missing, unknown, of other shapes, or not finite.
    """
    header = read_header(path)
    tensors = read_tensors(path)
    wanted = {name: tuple(spec["shape"]) for name, spec in describe(abstract).items()}
    alpha = None
    if lora := header["record"].get("lora"):
        alpha = lora.get("alpha") or lora.get("rank")
        wanted |= {f"{name.rpartition('/')[0]}/{ALPHA}": () for name in wanted}
    arrays: dict[str, np.ndarray] = {}
    for key in list(tensors):
        ours, tensor = header["names"].get(key, key), tensors.pop(key)
        if tensor.dtype.name not in _DTYPES or not np.isfinite(tensor).all():
            raise GlideError(f"{path}: {key!r:.200} must have finite values, of type {', '.join(_DTYPES)}")
        if key.endswith(f".{ALPHA}") and not _is(tensor, alpha):
            raise GlideError(f"{path}: {key!r:.200} is not {alpha}, as in the header: set a scale with PATH:SCALE")
        arrays[ours] = _in_our_layout(tensor, wanted.get(ours, ())) if ours.rpartition("/")[2] in _OUT_FIRST else tensor
    wrong = [name for name in sorted(wanted.keys() | arrays.keys())
             if name not in arrays or arrays[name].shape != wanted.get(name)]  # fmt: skip
    if wrong:
        more = f" and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise GlideError(
            f"{path} does not match its header: missing, unknown or of another shape are"
            f" {', '.join(f'{name!r:.200}' for name in wrong[:_LISTED])}{more}"
        )

    def place(at: Any, leaf: jax.ShapeDtypeStruct) -> Array:
        array = arrays.pop(jax.tree_util.keystr(at, simple=True, separator="/"))
        return jax.device_put(array.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map_with_path(place, abstract)


def _is(tensor: np.ndarray, number: Any) -> bool:
    with np.errstate(over="ignore"):
        return np.array_equal(tensor, np.asarray(number, tensor.dtype))


def _in_our_layout(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[out, in, ...] as [..., in, out], without leading axes of length 1 that ours lacks."""
    ours = tensor.transpose(*range(2, tensor.ndim), 1, 0) if tensor.ndim > 1 else tensor
    fits = shape and ours.size == np.prod(shape) and ours.shape[-len(shape) :] == shape
    return np.ascontiguousarray(ours.reshape(shape)) if fits else ours


def _is_sound(header: Any) -> bool:
    match header:
        case {"record": dict(record), "names": dict(names)}:
            entries = [record[name] for name in _ENTRIES if name in record]
            return (
                bool(entries)
                and all(isinstance(path, str) for path in names.values())
                and all(isinstance(entry, dict) for entry in entries)
            )
    return False


def _read(path: Path, read: Callable[[Any], _T]) -> _T:
    try:
        with safe_open(path, framework="np") as file:
            return read(file)
    except Exception as error:  # damaged bytes raise nearly anything
        said = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise GlideError(f"{path} cannot be read as a safetensors file ({said}): is it cut short?") from error
