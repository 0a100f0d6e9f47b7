"""PyTorch's files of tensors, read and written as NumPy arrays: the one place that needs torch."""

import contextlib
import os
import pickle
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import ml_dtypes
import numpy as np

from convert.file_kind import SAFETENSORS, file_kind
from convert.pickle_check import check_plain, check_zipped
from convert.state_dict import find_state_dict
from glide_jax.errors import GlideError

if TYPE_CHECKING:
    import torch

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": BFLOAT16}
SOURCE_DTYPES = DTYPES | {"float64": np.dtype(np.float64)}

_LEGACY = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")  # begins what torch.save wrote before zip archives

# What training programs keep beside weights, and what is read of it: nothing. None of these is made or run.
_PASSED_OVER = (
    *("argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "datetime.timedelta"),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray"),
)


class StateDict(NamedTuple):
    """The tensors of a file.

    Attributes:
        arrays: views of the file, read when they are used, in its order and dtypes.
        told: what was done to find them and what float64 will cost, in one line; "" if there is nothing to say.
    """

    arrays: dict[str, np.ndarray]
    told: str


class _PassedOver:
    """Stands for an object of one of these names, whatever was to become of it."""

    def __new__(cls, *_: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def _stand_in(name: str) -> type:
    module, _, short = name.rpartition(".")
    return type(short, (_PassedOver,), {"__module__": module})  # torch goes by its name


_STAND_INS = [_stand_in(name) for name in _PASSED_OVER]


def read_state_dict(path: Path, *, ema: bool = False) -> StateDict:
    """The `state_dict` in a safetensors file or in a file of `torch.save`, told apart by their content.

    It may lie beside optimiser states and the like, as training programs save it. Nothing stored in the file is
    executed.

    Args:
        path: the file.
        ema: whether to read the EMA weights of a file that holds raw ones too.

    Raises:
        GlideError: torch is missing, the file cannot be read or is something else, or it does not hold one such
            dict of tensors.
    """
    torch, kind = _torch(), file_kind(path)
    content = _load_safetensors(path) if kind == SAFETENSORS else _load_pickle(path)
    found = find_state_dict(content, lambda value: isinstance(value, torch.Tensor), str(path), ema=ema)
    arrays = {key: _to_numpy(path, key, tensor) for key, tensor in found.tensors.items()}
    _check_size(path, arrays)
    misnamed = (path.suffix == ".safetensors") != (kind == SAFETENSORS)
    told = [f"{kind} in spite of its name"] if misnamed else []
    told += [*found.told, *_about_float64(arrays)]
    entry = f'"{found.entry}" of the file' if found.entry else "the file"
    return StateDict(arrays, f"read {', '.join([entry, *told])}" if found.entry or told else "")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays alone of `read_state_dict`."""
    return read_state_dict(path).arrays


def holds(dtype: np.dtype, array: np.ndarray) -> bool:
    """Whether `dtype` can hold the values of a floating array exactly."""
    with np.errstate(over="ignore", invalid="ignore"):
        return dtype == array.dtype or bool(np.array_equal(array.astype(dtype).astype(array.dtype), array))


def is_unicode(path: Path) -> bool:
    """Whether a path is text; those of other encodings are not, and libraries in C++ refuse them."""
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def write_tensors(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a `state_dict` that `torch.load` reads, in the order and dtypes given; whole or not at all.

    Raises:
        GlideError: torch is missing, or the file exists or cannot be written.
    """
    torch = _torch()
    if path.exists():
        raise GlideError(f"{path} exists already; choose another file or remove it")
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({key: _to_tensor(array) for key, array in arrays.items()}, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        raise GlideError(f"cannot write {path}: {_first_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _torch() -> Any:
    try:
        import torch  # noqa: PLC0415 - only conversion needs it
    except ImportError as error:
        raise GlideError("reading and writing PyTorch files needs torch: pip install 'glide-jax[torch]'") from error
    return torch


def _check_size(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A few stored numbers may be spread over a tensor of any shape, which takes room only when it is used."""
    told, stored = sum(array.nbytes for array in arrays.values()), path.stat().st_size
    if told > stored:
        raise GlideError(f"{path} tells of {told} bytes of tensors, and has only {stored}: it is no checkpoint")


def _about_float64(arrays: dict[str, np.ndarray]) -> list[str]:
    wide = [array for array in arrays.values() if array.dtype == np.float64]
    rounded = sum(not holds(DTYPES["float32"], array) for array in wide)
    if rounded:
        return [f"float64 rounded to float32 in {rounded} of {len(arrays)} tensors"]
    return ["float64 as float32 without loss"] if wide else []


def _load_pickle(path: Path) -> Any:
    torch, head = _torch(), b""
    try:
        allowed = torch.serialization.safe_globals(_STAND_INS)
        with path.open("rb") as file, allowed, warnings.catch_warnings(action="ignore"):
            head = file.read(32)
            file.seek(0)
            # Older files cannot be mapped; by this suffix, or at a path that is no text, torch maps none.
            mapped = head.startswith(b"PK") and path.suffix != ".safetensors" and is_unicode(path)
            check_zipped(path) if head.startswith(b"PK") else check_plain(path)
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except GlideError:
        raise
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks to run {wanted[1]}" if wanted else "is no plain file of tensors"
        raise GlideError(f"{path} is refused, nothing of it was run: it {what}") from error
    except Exception as error:  # damaged bytes raise anything
        if head.startswith(b"\x80") and _LEGACY not in head:
            raise GlideError(f"{path} is a plain pickle: save its tensors with torch.save") from error
        raise GlideError(f"{path} cannot be read as a PyTorch file ({_first_line(error)}): is it cut short?") from error


def _load_safetensors(path: Path) -> Any:
    _torch()
    try:
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415
    except ImportError as error:
        raise GlideError("reading .safetensors files needs: pip install 'glide-jax[torch]'") from error
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.offset_keys()}
    except (OSError, SafetensorError, KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise GlideError(
            f"{path} cannot be read as a safetensors file ({_first_line(error)}): is it cut short?"
        ) from error


def _to_numpy(path: Path, key: str, tensor: "torch.Tensor") -> np.ndarray:
    torch = _torch()
    try:
        if tensor.dtype == torch.bfloat16:  # unknown to NumPy: goes by its bits
            return tensor.detach().view(torch.int16).numpy().view(BFLOAT16)
        return tensor.detach().numpy()
    except (TypeError, RuntimeError, ValueError) as error:
        raise GlideError(f"{path}: {key} is {_described(tensor)}, which is not supported") from error


def _described(tensor: "torch.Tensor") -> str:
    dense = tensor.layout == _torch().strided  # so its type or shape is the cause
    return f"{tensor.dtype} {tensor.layout}" + (f" of {tuple(tensor.shape)}"[:60] if dense else "")


def _to_tensor(array: np.ndarray) -> "torch.Tensor":
    torch = _torch()
    array = np.require(array, requirements=("C", "W"))
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
