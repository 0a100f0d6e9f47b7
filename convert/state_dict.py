"""State dicts in PyTorch's and safetensors files, as NumPy arrays: the one place that needs torch, for the former.

Training programs save weights together with optimiser states and step counts, under names of their own and of wrappers:
`find_state_dict` finds the raw or the EMA weights among them.
"""

import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import ml_dtypes
import numpy as np

from convert.file_check import SAFETENSORS, check_plain, check_zipped, file_kind
from glide_jax.checkpoint import safetensors_file
from glide_jax.errors import GlideError, install
from glide_jax.files import require_new, written

if TYPE_CHECKING:
    import torch

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": BFLOAT16}
SOURCE_DTYPES = DTYPES | {"float64": np.dtype(np.float64)}

_RAW = ("state_dict", "model_state_dict", "model", "module", "online_model")
_EMA = ("ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model")
_DEEPEST = 3  # levels of nested dicts; one may contain itself
# Prefixes that data parallelism, torch.compile and training frameworks add to the names of the module they wrap.
_WRAPPERS = re.compile(r"(?:(?:module|model|_orig_mod)\.)*")
_COMPILED = "_orig_mod."
_AVERAGED_COUNT = "n_averaged"  # stored with the tensors of torch's AveragedModel
_MOST_TENSORS = 10_000  # the published models have 797
_LONGEST_NAME = 500
_ENFORCED = re.compile(r"^\[enforce fail at [^]]*\] \. ")  # the beginning of torch's message

_LEGACY = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")  # the beginning of torch.save's format before zip archives

# What training programs store next to weights. Nothing of it is read: none of these objects is created or run.
_IGNORED = (
    *("argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "datetime.timedelta"),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray"),
)


class _Ignored:
    """Replaces an object of one of these names, whatever its arguments."""

    def __new__(cls, *_: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


_STAND_INS = [  # torch identifies a class by its module and name
    type(name, (_Ignored,), {"__module__": module}) for module, _, name in (each.rpartition(".") for each in _IGNORED)
]


class Found(NamedTuple):
    """A `state_dict`, its name in the file ("" for the whole file), and remarks for the user."""

    tensors: dict[str, Any]
    entry: str
    notes: list[str]


def read_state_dict(path: Path, *, ema: bool = False) -> dict[str, np.ndarray]:
    """The `state_dict` in a safetensors file or in a file of `torch.save`, notes apart by their content.

    It may be stored with optimiser states and the like; a printed line says where it was found, and what float64 loses.
    Nothing stored in the file is executed.

    Args:
        path: the file.
        ema: whether to read the EMA weights of a file that also holds raw ones.

    Returns:
        Arrays in the order and dtypes of the file; of PyTorch's, views that are read when they are used.

    Raises:
        GlideError: the file cannot be read or is something else, it does not hold one such dict of tensors, or it is
            PyTorch's and torch is missing.
    """
    kind = file_kind(path)
    if kind == SAFETENSORS:
        tensors = safetensors_file.read_tensors(path)
        found = find_state_dict(tensors, lambda value: isinstance(value, np.ndarray), str(path), ema=ema)
        arrays = found.tensors
    else:
        torch = _torch()
        content = _load_pickle(path)
        found = find_state_dict(content, lambda value: isinstance(value, torch.Tensor), str(path), ema=ema)
        arrays = {key: _to_numpy(path, key, tensor) for key, tensor in found.tensors.items()}
    # A few stored numbers may be expanded to a tensor of any shape, which takes memory only when used.
    size, stored = sum(array.nbytes for array in arrays.values()), path.stat().st_size
    if size > stored:
        raise GlideError(f"{path} claims {size} bytes of tensors, but has only {stored}: it is not a checkpoint")
    misnamed = (path.suffix == safetensors_file.SUFFIX) != (kind == SAFETENSORS)
    notes = [f"{kind} in spite of its name"] if misnamed else []
    notes += [*found.notes, *_about_float64(arrays)]
    if found.entry or notes:
        entry = f'"{found.entry}" of the file' if found.entry else "the file"
        print(f"read {', '.join([entry, *notes])}")
    return arrays


def write_tensors(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a `state_dict` in the dtypes given for `torch.load`; whole or not at all.

    Raises:
        GlideError: torch is missing, or the file exists or cannot be written.
    """
    torch = _torch()
    require_new(path)
    tensors = {key: _to_tensor(array) for key, array in arrays.items()}
    with written(path) as partial:
        try:
            torch.save(tensors, partial)
        except RuntimeError as error:  # its word for a full disk
            said = _ENFORCED.sub("", _first_line(error))
            raise OSError("the disk is full, or the file too large" if "unexpected pos" in said else said) from error


def holds(dtype: np.dtype, array: np.ndarray) -> bool:
    """Whether `dtype` represents the values of a floating-point array exactly."""
    with np.errstate(over="ignore", invalid="ignore"):
        return dtype == array.dtype or bool(np.array_equal(array.astype(dtype).astype(array.dtype), array))


def is_unicode(path: Path) -> bool:
    """Whether a path is text; those of other encodings are not, and libraries in C++ refuse them."""
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def find_state_dict(content: Any, is_tensor: Callable[[Any], bool], where: str, *, ema: bool) -> Found:
    """Finds the weights among optimiser states, step counts and the like.

    Args:
        content: the file's content.
        is_tensor: whether a value is a tensor.
        where: the file's name.
        ema: whether to take the EMA weights; otherwise raw ones are taken, or EMA weights if there are no others.

    Raises:
        GlideError: there are no such weights, or several.
    """
    names: list[str] = []
    beside: list[str] = []
    while isinstance(content, dict) and len(names) < _DEEPEST:
        content = _grouped(content)
        raw, averaged = (
            [name for name in group if _holds_tensors(content.get(name), is_tensor)] for group in (_RAW, _EMA)
        )
        chosen = (averaged or raw) if ema else (raw or averaged)
        if not chosen:
            break
        if len(chosen) > 1:
            listed = " and ".join(f'"{name}"' for name in chosen)
            raise GlideError(f"{where} holds weights as {listed}: give a file of one of them")
        beside += [] if chosen == averaged else averaged
        names += chosen
        content = content[chosen[0]]
    if ema and not set(names) & set(_EMA):
        raise GlideError(f"{where} holds no EMA weights by name: leave out --ema")
    entry = "/".join(names)
    _check_tensors(content, is_tensor, f'"{entry}" of {where}' if entry else where)
    tensors, notes = _unwrapped(content, where)
    return Found(tensors, entry, notes + [f'--ema reads "{name}" instead' for name in beside])


def _grouped(content: dict[Any, Any]) -> dict[Any, Any]:
    """Splits a flat dict, in which the first word of the names distinguishes raw and EMA weights, into nested dicts."""
    groups: dict[Any, dict[str, Any]] = {}
    others = {}
    for key, value in content.items():
        first, _, rest = str(key).partition(".")
        if rest and first in _RAW + _EMA:
            groups.setdefault(first, {})[rest] = value
        else:
            others[key] = value
    return others | groups if groups.keys() & set(_EMA) else content


def _holds_tensors(value: Any, is_tensor: Callable[[Any], bool]) -> bool:
    """Whether a dict or the dicts in it hold any tensor; each is visited once, even if it occurs in several places."""
    level = [value]
    for _ in range(_DEEPEST):
        inside = [inner for each in level if isinstance(each, dict) for inner in each.values()]
        if any(map(is_tensor, inside)):
            return True
        level = list({id(inner): inner for inner in inside}.values())
    return False


def _check_tensors(content: Any, is_tensor: Callable[[Any], bool], where: str) -> None:
    if not isinstance(content, dict) or not content:
        raise GlideError(f"{where} holds {type(content).__name__}, not a state_dict of named tensors")
    if len(content) > _MOST_TENSORS:
        raise GlideError(f"{where} holds {len(content)} entries, more than any such model has")
    for key, value in content.items():
        if not isinstance(key, str | int) or len(str(key)) > _LONGEST_NAME or not str(key).isprintable():
            raise GlideError(f"{where} holds a tensor under {ascii(key)[:60]}, which is not a parameter's name")
        if not is_tensor(value):
            raise GlideError(
                f"{where} holds {type(value).__name__} under {key!r}: give a file of a bare state_dict,"
                f" or of one under one of these names: {', '.join(_RAW + _EMA)}"
            )


def _unwrapped(tensors: dict[Any, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    named = {str(key): value for key, value in tensors.items() if key != _AVERAGED_COUNT}
    prefix = _common_wrapper(list(named))
    plain = {key.removeprefix(prefix).replace(_COMPILED, ""): value for key, value in named.items()}
    if len(plain) < len(named):
        raise GlideError(f"{where} holds some tensors twice, with and without the prefix {_COMPILED!r}")
    notes = [f'without the prefix "{prefix}"'] if prefix else []
    if any(_COMPILED in key.removeprefix(prefix) for key in named):
        notes.append(f'without "{_COMPILED}" inside names')
    if _AVERAGED_COUNT in tensors:
        notes.append(f'without "{_AVERAGED_COUNT}"')
    return plain, notes


def _common_wrapper(keys: list[str]) -> str:
    """The longest prefix of all keys that consists of whole wrapper names."""
    match = _WRAPPERS.match(keys[0]) if keys else None
    prefix = match[0] if match else ""
    while not all(key.startswith(prefix) for key in keys):
        prefix = prefix[: prefix.rfind(".", 0, -1) + 1]
    return prefix


def _about_float64(arrays: dict[str, np.ndarray]) -> list[str]:
    wide = [array for array in arrays.values() if array.dtype == np.float64]
    rounded = sum(not holds(DTYPES["float32"], array) for array in wide)
    if rounded:
        return [f"float64 rounded to float32 in {rounded} of {len(arrays)} tensors"]
    return ["float64 as float32 without loss"] if wide else []


def _torch() -> Any:
    try:
        import torch  # noqa: PLC0415 - only conversion needs it
    except ImportError as error:
        raise GlideError(f"reading and writing PyTorch files needs torch: {install('torch')}") from error
    return torch


def _load_pickle(path: Path) -> Any:
    torch, head = _torch(), b""
    try:
        allowed = torch.serialization.safe_globals(_STAND_INS)
        with path.open("rb") as file, allowed, warnings.catch_warnings(action="ignore"):
            head = file.read(32)
            file.seek(0)
            # Older files cannot be memory-mapped; nor does torch map files with this suffix or at a path that is not
            # text.
            mapped = head.startswith(b"PK") and path.suffix != safetensors_file.SUFFIX and is_unicode(path)
            check_zipped(path) if head.startswith(b"PK") else check_plain(path)
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except GlideError:
        raise
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks to run {wanted[1]}" if wanted else "is no plain file of tensors"
        raise GlideError(f"{path} was refused, and nothing in it was run: it {what}") from error
    except Exception as error:  # damaged bytes raise anything
        if head.startswith(b"\x80") and _LEGACY not in head:
            raise GlideError(f"{path} is a plain pickle: save its tensors with torch.save") from error
        raise GlideError(f"{path} cannot be read as a PyTorch file ({_first_line(error)}): is it cut short?") from error


def _to_numpy(path: Path, key: str, tensor: "torch.Tensor") -> np.ndarray:
    torch = _torch()
    try:
        if tensor.dtype == torch.bfloat16:  # unknown to NumPy: passed as bits
            return tensor.detach().view(torch.int16).numpy().view(BFLOAT16)
        return tensor.detach().numpy()
    except (TypeError, RuntimeError, ValueError) as error:
        shape = f" of {tuple(tensor.shape)}"[:60] if tensor.layout == torch.strided else ""
        what = f"{tensor.dtype} {tensor.layout}{shape}"
        raise GlideError(f"{path}: {key} is {what}, which is not supported") from error


def _to_tensor(array: np.ndarray) -> "torch.Tensor":
    torch = _torch()
    array = np.require(array, requirements=("C", "W"))
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
