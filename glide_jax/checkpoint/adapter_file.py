"""Adapters (LoRA) as one safetensors file, under the names and in the layouts that such files have since kohya's:

    NAME.lora_down.weight   [rank, in, ...]
    NAME.lora_up.weight     [out, rank, ...]
    NAME.alpha              a scalar: the product counts alpha / rank
    NAME.dora_scale         [out, 1, ...], of DoRA's only

These names are PyTorch's. Which of our layers each is of stands in the header, beside the record that a checkpoint has;
`python -m convert to-kohya` writes it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import jax
import numpy as np
from jaxtyping import Array, PyTree
from safetensors import safe_open

from glide_jax.checkpoint.structure import describe
from glide_jax.errors import GlideError

SUFFIX = ".safetensors"
HEADER = "glide_jax_lora"
ALPHA = "alpha"
# The rest of a tensor's name, and ours of that part of an adapter.
PARTS = {"lora_down.weight": "down", "lora_up.weight": "up", "dora_scale": "magnitude"}

_DTYPES = ("float32", "float16", "bfloat16")
# The file is a stranger's: what its header makes up must not take for ever to lay out. The published have 16 blocks of
# a kind, and 50,257 tokens.
_MOST_BLOCKS = 100
_LARGEST = 100_000
_LISTED = 3
_T = TypeVar("_T")


class Header(TypedDict):
    """What is ours in the header, as JSON.

    Attributes:
        record: model, diffusion, lora; sampling where there is such an entry.
        layers: path of each NAME's adapter, as "lora/unet/down/0/attn/qkv".
    """

    record: dict[str, Any]
    layers: dict[str, str]


def is_file(path: Path) -> bool:
    """Whether a path is such a file, by its name."""
    return path.suffix == SUFFIX and path.is_file()


def read_header(path: Path) -> Header:
    """Our part of the header.

    Raises:
        GlideError: the file cannot be read, another program wrote it, or its header is damaged.
    """
    text = _read(path, lambda file: (file.metadata() or {}).get(HEADER))
    if text is None:
        raise GlideError(
            f"{path} does not tell which weights it belongs to: of safetensors files only adapters that"
            " python -m convert to-kohya wrote can be used as they are"
        )
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not _is_sound(header):
        raise GlideError(f"{path}: the entry {HEADER} of its header is damaged")
    sound: Header = header
    return sound


def load(path: Path, abstract: PyTree[jax.ShapeDtypeStruct]) -> PyTree[Array]:
    """The adapters in a file.

    Args:
        path: the file.
        abstract: their shapes, with the dtypes and shardings wanted; by default on one device.

    Raises:
        GlideError: as `read_header`; or tensors are missing, unknown, of other shapes, or not finite.
    """
    header = read_header(path)
    tensors = _read(path, lambda file: {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 (no mapping)
    shapes = {name: tuple(spec["shape"]) for name, spec in describe(abstract).items()}
    alpha = header["record"]["lora"].get("alpha") or header["record"]["lora"]["rank"]
    arrays: dict[str, np.ndarray] = {}
    for key, tensor in tensors.items():
        name, _, part = key.partition(".")
        if tensor.dtype.name not in _DTYPES or not np.isfinite(tensor).all():
            raise GlideError(f"{path}: {key!r:.200} must have finite values, of type {', '.join(_DTYPES)}")
        if part == ALPHA and not np.array_equal(tensor, np.asarray(alpha, tensor.dtype)):
            raise GlideError(f"{path}: {key!r:.200} is not {alpha}, as in the header: choose a share by PATH:SCALE")
        ours = f"{header['layers'].get(name, name)}/{PARTS.get(part, part)}"
        arrays[ours] = _in_our_layout(tensor, shapes.get(ours, ()))
    layers = {name.rpartition("/")[0] for name in shapes}
    wanted = shapes | {f"{layer}/{ALPHA}": () for layer in layers}
    wrong = [name for name in sorted(wanted.keys() | arrays.keys())
             if name not in arrays or arrays[name].shape != wanted.get(name)]  # fmt: skip
    if wrong:
        more = f" and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise GlideError(
            f"{path} is not as its header says: missing, unknown or of another shape are"
            f" {', '.join(f'{name!r:.200}' for name in wrong[:_LISTED])}{more}"
        )

    def place(at: Any, leaf: jax.ShapeDtypeStruct) -> Array:
        array = arrays[jax.tree_util.keystr(at, simple=True, separator="/")]
        return jax.device_put(array.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map_with_path(place, abstract)


def _in_our_layout(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[out, in, ...] as [..., in, out], without the axes of length 1 in front that ours has not."""
    ours = tensor.transpose(*range(2, tensor.ndim), 1, 0) if tensor.ndim > 1 else tensor
    fits = shape and ours.size == np.prod(shape) and ours.shape[-len(shape) :] == shape
    return np.ascontiguousarray(ours.reshape(shape)) if fits else ours


def _is_sound(header: Any) -> bool:
    match header:
        case {"record": {"model": dict(model), "lora": {"rank": rank, **lora}}, "layers": dict(layers)}:
            lists = [value for value in model.values() if isinstance(value, list)]
            blocks = [model.get("num_res_blocks", 1), model.get("xf_layers", 1), *map(len, lists)]
            numbers = [each for value in (*lists, model.values()) for each in value if isinstance(each, int | float)]
            bounded = {_MOST_BLOCKS: blocks, _LARGEST: [rank, lora.get("alpha", 0), *numbers]}
            return all(isinstance(path, str) for path in layers.values()) and all(
                isinstance(each, int | float) and abs(each) <= most for most, some in bounded.items() for each in some
            )
    return False


def _read(path: Path, read: Callable[[Any], _T]) -> _T:
    try:
        with safe_open(path, framework="np") as file:
            return read(file)
    except Exception as error:  # damaged bytes raise anything
        said = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise GlideError(f"{path} cannot be read as a safetensors file ({said}): is it cut short?") from error
