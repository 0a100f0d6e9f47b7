"""From Flax to PyTorch: the parameters of a checkpoint become a `state_dict`, which the reference loads."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from flax.traverse_util import flatten_dict

from convert.architecture import Architecture, recorded_architecture, recorded_options
from convert.state_dict import DTYPES, SOURCE_DTYPES, holds, write_tensors
from glide_jax.checkpoint import held_weights, load_weights, read_record, safetensors_file
from glide_jax.errors import GlideError
from glide_jax.files import require_new
from glide_jax.models import Params
from glide_jax.progress import tracked

Weights = Literal["ema", "params"]


def to_torch(
    checkpoint: str | Path, output: Path, weights: Weights | None = None, dtype: str | None = None
) -> tuple[Architecture, Weights]:
    """Writes the weights of any checkpoint as a .pt file or as a .safetensors file with the architecture in its header.

    Args:
        checkpoint: a run folder, one of its steps or converted weights.
        output: the file, which must not exist; a .pt file is for the reference, which must have this architecture.
        weights: EMA or raw weights; by default EMA weights if there are any.
        dtype: a key of `DTYPES` for all tensors. By default the dtypes of the source that the weights were converted
            from, if they represent every value exactly, and float32 otherwise.

    Returns:
        The architecture, and which weights were written.

    Raises:
        GlideError: the checkpoint cannot be read or has no such weights, or the file cannot be written.
    """
    if output.suffix not in (".pt", safetensors_file.SUFFIX):
        raise GlideError(f"--output {output} must end in .pt or .safetensors")
    require_new(output)
    held = held_weights(checkpoint)
    weights = weights or ("ema" if "ema" in held else "params")
    if weights not in held:
        raise GlideError(f"{checkpoint} holds no {weights}, only params: leave out --{weights}")
    record = read_record(checkpoint)
    architecture = recorded_architecture(record, checkpoint)
    if output.suffix == ".pt":
        _require_reference(architecture, checkpoint)
    params = load_weights(checkpoint, architecture.params, prefer=weights)
    write_model(params, architecture, output, dtype, record.get("source", {}))
    return architecture, weights


def write_model(
    params: Params,
    architecture: Architecture,
    output: Path,
    dtype: str | None = None,
    source: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Writes `params` to a file, as `to_torch` does, and empties them.

    Args:
        params: on the host or a device.
        architecture: their architecture.
        output: the file.
        dtype: a key of `DTYPES`; None as for `to_torch`.
        source: that entry of the record of the checkpoint that they come from: the keys and dtypes of a file.
    """
    arrays = _restored(convert_params(params, architecture), source, dtype)
    names = {entry.torch: "/".join(entry.path) for entry in architecture.keymap}
    if output.suffix == safetensors_file.SUFFIX:
        safetensors_file.write(output, arrays, {"record": architecture.record, "names": names})
    else:
        write_tensors(output, arrays)


def _require_reference(architecture: Architecture, checkpoint: str | Path) -> None:
    options = recorded_options(architecture.record)
    for name, value in {"norm_groups": 32, "prediction_type": "epsilon"}.items():
        if (found := options.get(name, value)) != value:
            raise GlideError(
                f"glide-text2im, which reads .pt files, always has {name} {value} and cannot build {checkpoint}"
                f" ({found}): write a .safetensors file"
            )


def convert_params(params: Params, architecture: Architecture) -> dict[str, np.ndarray]:
    """Converts `params`, emptying them, to float32 tensors under the reference's names, in its layouts and order."""
    flat = flatten_dict(params)
    params.clear()  # frees each array once it is converted
    return {
        entry.torch: entry.to_torch(np.asarray(flat.pop(entry.path)))
        for entry in tracked("converting tensors", architecture.keymap, len(architecture.keymap))
    }


def _restored(arrays: dict[str, np.ndarray], source: Mapping[str, Any], dtype: str | None) -> dict[str, np.ndarray]:
    """The tensors in the source's key order, if there is a source, and in the wanted dtypes."""
    order = source.get("keys", list(arrays))
    wanted = source.get("dtypes", {})
    dtypes = {key: SOURCE_DTYPES[dtype or wanted.get(key, "float32")] for key in order}
    if dtype is None and not all(holds(dtypes[key], arrays[key]) for key in order):
        dtypes = dict.fromkeys(order, DTYPES["float32"])
    return {key: _cast(key, arrays.pop(key), dtypes[key]) for key in order}


def _cast(key: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype, copy=False)
    except FloatingPointError as error:
        raise GlideError(f"{key} has values too large for {dtype.name}: choose another --dtype") from error
