"""From PyTorch to Flax: a `state_dict` becomes a checkpoint of weights."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from convert.architecture import Architecture, Options, infer, recorded_options
from convert.download import Source
from convert.file_check import SAFETENSORS, file_kind
from convert.state_dict import DTYPES, SOURCE_DTYPES, holds, is_unicode, read_state_dict
from glide_jax.checkpoint import safetensors_file, save_weights
from glide_jax.errors import GlideError
from glide_jax.files import require_new
from glide_jax.models import Params
from glide_jax.progress import tracked


def to_flax(source: Source, output: Path, options: Options, *, ema: bool = False) -> tuple[Architecture, Options]:
    """Converts a file of tensors into a checkpoint at `output`, parameters in float32.

    The record has the architecture and, under "source", the file's name and sha256, and the keys in order with dtypes,
    so that `to_torch` can restore the same `state_dict`. Float64 tensors that float32 cannot represent are rounded, and
    stay float32.

    Args:
        source: the file.
        output: the new checkpoint, which must not exist.
        options: options of the architecture that neither the tensors nor a header of ours tell.
        ema: whether to take the EMA weights of a file that also holds raw ones.

    Returns:
        The architecture, and the options that were assumed.

    Raises:
        GlideError: the file cannot be read or does not fit, or `output` exists, cannot be written or is not in UTF-8.
    """
    require_new(output)
    if not is_unicode(output.absolute()):
        raise GlideError(f"{str(output.absolute())!a} is not in UTF-8, as the folder of a checkpoint must be")
    arrays = read_state_dict(source.path, ema=ema)
    architecture, assumed = architecture_of(source.path, arrays, options)
    check_tensors(arrays, architecture, str(source.path))
    origin = {
        "name": source.name,
        "sha256": source.sha256,
        "keys": list(arrays),
        "dtypes": {key: _kept_dtype(array) for key, array in arrays.items()},
    }
    save_weights(output, convert_arrays(arrays, architecture), architecture.record | {"source": origin})
    return architecture, assumed


def architecture_of(path: Path, arrays: dict[str, np.ndarray], options: Options) -> tuple[Architecture, Options]:
    """The architecture of a file's tensors, and the options that were assumed.

    The header of a safetensors file of ours has the options that a user would have to give of another; where both
    give one, the user's counts. Neither can make the model larger than its tensors are.

    Raises:
        GlideError: options or header contradict the tensors, or these are of no known architecture.
    """
    shapes = {key: array.shape for key, array in arrays.items()}
    header = safetensors_file.find_header(path) if file_kind(path) == SAFETENSORS else None
    if header is None:
        return infer(shapes, options)
    try:
        return infer(shapes, {**recorded_options(header["record"]), **options})
    except GlideError as error:
        raise GlideError(f"{path} has a header of options that cannot be used: {error}") from error


def _kept_dtype(array: np.ndarray) -> str:
    return array.dtype.name if array.dtype != np.float64 or holds(DTYPES["float32"], array) else "float32"


def check_tensors(arrays: dict[str, np.ndarray], architecture: Architecture, where: str) -> None:
    """Compares tensors with those of an architecture.

    Raises:
        GlideError: one line that lists every tensor that is missing, unexpected, of another shape, of an unknown dtype,
            or not finite in float32.
    """
    shapes = architecture.torch_shapes
    known = {key: array for key, array in arrays.items() if key in shapes}
    problems = {
        "missing": [key for key in shapes if key not in arrays],
        "unexpected": [key for key in arrays if key not in shapes],
        "of another shape": [
            f"{key} {array.shape} instead of {shapes[key]}"
            for key, array in known.items()
            if array.shape != shapes[key]
        ],
        f"of another type than {', '.join(SOURCE_DTYPES)}": [
            f"{key} {array.dtype.name}" for key, array in known.items() if array.dtype.name not in SOURCE_DTYPES
        ],
        "not finite in float32": [key for key, array in known.items() if not _is_finite(array)],
    }
    found = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in problems.items() if keys)
    if found:
        raise GlideError(f"{where} does not fit the {architecture.kind} model: {found}")


def _is_finite(array: np.ndarray) -> bool:
    with np.errstate(invalid="ignore", over="ignore"):  # by bfloat16's signalling NaNs and large float64
        return bool(np.isfinite(array.astype(np.float32) if array.dtype == np.float64 else array).all())


def convert_arrays(arrays: dict[str, np.ndarray], architecture: Architecture) -> Params:
    """Converts `arrays`, emptying them, to parameters: float32 copies under our names and in our layouts."""
    params = {}
    for entry in tracked("converting tensors", architecture.keymap, len(architecture.keymap)):
        array = entry.to_flax(arrays.pop(entry.torch))
        # A copy even if nothing changes, because a view would keep the whole source file in memory.
        params[entry.path] = jnp.asarray(array.astype(np.float32, copy=entry.layout == "same"))
    return unflatten_dict(params)
