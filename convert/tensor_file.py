"""PyTorch's files of tensors, read and written as NumPy arrays: the one place that needs torch."""

import contextlib
import os
import pickle
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from glide_jax.errors import GlideError

if TYPE_CHECKING:
    import torch

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": BFLOAT16}

# torch.compile puts this before the names of the module it wraps.
_COMPILED = "_orig_mod."


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The `state_dict` in a .safetensors file or in a file of `torch.save`, in its order and dtypes.

    The arrays are views of the file, read when they are used. Nothing stored in the file is executed.

    Raises:
        GlideError: torch is missing, the file cannot be read, or it holds anything but a dict of tensors.
    """
    tensors = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)
    if not isinstance(tensors, dict) or not tensors:
        raise GlideError(f"{path} holds {type(tensors).__name__}, not a state_dict of named tensors")
    for key, value in tensors.items():
        if not isinstance(value, _torch().Tensor):
            raise GlideError(f"{path} holds {type(value).__name__} under {key!r}: give a file of a bare state_dict")
    arrays = {str(key).replace(_COMPILED, ""): _to_numpy(path, key, value) for key, value in tensors.items()}
    if len(arrays) < len(tensors):
        raise GlideError(f"{path} holds some tensors twice, with and without the prefix {_COMPILED!r}")
    return arrays


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


def _load_pickle(path: Path) -> Any:
    torch = _torch()
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # older files cannot be mapped
        with warnings.catch_warnings(action="ignore"):  # of what is refused or read all the same
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks to run {wanted[1]}" if wanted else "is no plain file of tensors"
        raise GlideError(f"{path} is refused, nothing of it was run: it {what}") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
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
    except (OSError, SafetensorError) as error:
        raise GlideError(
            f"{path} cannot be read as a safetensors file ({_first_line(error)}): is it cut short?"
        ) from error


def _to_numpy(path: Path, key: str, tensor: "torch.Tensor") -> np.ndarray:
    torch = _torch()
    if tensor.dtype == torch.bfloat16:  # unknown to NumPy: goes by its bits
        return tensor.detach().view(torch.int16).numpy().view(BFLOAT16)
    try:
        return tensor.detach().numpy()
    except (TypeError, RuntimeError) as error:
        raise GlideError(f"{path}: {key} is {tensor.dtype} {tensor.layout}, which is not supported") from error


def _to_tensor(array: np.ndarray) -> "torch.Tensor":
    torch = _torch()
    array = np.require(array, requirements=("C", "W"))
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
