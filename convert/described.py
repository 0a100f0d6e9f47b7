"""What a checkpoint or pipeline of this code holds, in a few lines."""

from collections.abc import Iterator
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from convert.architecture import recorded_architecture
from glide_jax.checkpoint import held_weights, read_record, resolve, safetensors_file, step_format
from glide_jax.errors import GlideError
from glide_jax.models.lora import GROUP
from glide_jax.sample.pretrained import INDEX, Pretrained

_PREDICTS = {"epsilon": "predicts noise", "v_prediction": "predicts v"}


def own(source: str) -> Path | None:
    """The path, if it is a folder, a step (RUN@STEP) or a safetensors file that this code wrote."""
    with suppress(OSError, RuntimeError):  # a name that is too long, or an unknown user's home
        path = Path(source).expanduser()
        if safetensors_file.is_file(path):
            return path if safetensors_file.find_header(path) is not None else None
        if path.is_dir() or (not path.exists() and "@" in path.name):
            return path
    return None


def described(path: Path) -> Iterator[str]:
    """Lines on the models, settings, training and origin of a checkpoint or of a pipeline's folder.

    Raises:
        GlideError: there is none, or it cannot be read.
    """
    if not (path / INDEX).is_file():
        yield from _checkpoint(path)
        return
    whole = Pretrained.open(path)
    for part in (whole.base, whole.upsampler):
        if part is not None:
            yield from _checkpoint(Path(part))
    if whole.settings:
        yield f"settings of {path}, for both models:"
        yield from (f"  {name}: {value}" for name, value in whole.settings.items() if value not in ("", None))


def _checkpoint(path: Path) -> list[str]:
    record, found = read_record(path), resolve(path)
    try:
        return [str(found), *_recorded(record, path), f"  {_counted(found)}"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise GlideError(f"the record of {path} cannot be understood: {error!r:.200}") from error


def _recorded(record: dict[str, Any], path: Path) -> Iterator[str]:
    if GROUP in record:
        yield from _adapters(record[GROUP])
    else:
        architecture = recorded_architecture(record, path)
        size = record.get("model", {}).get("image_size")
        yield f"  {architecture.kind} model" + (f" of {size} px" if size else "")
    if "diffusion" in record:
        diffusion = record["diffusion"]
        predicts = _PREDICTS[diffusion.get("prediction_type", "epsilon")]
        yield f"  {predicts}, schedule {diffusion.get('noise_schedule', 'unknown')}"
    if "step" in record:
        yield f"  step {record['step']} of a run, after {record.get('minutes', 0.0):.1f} minutes"
    if "validation_mse" in record:
        yield f"  validation loss {record['validation_mse']:.4f}"
    yield from (f"  default {name}: {value}" for name, value in record.get("sampling", {}).items())
    source = record.get("source", {})
    # Of each tensor's name and type only the number is of interest.
    yield from (f"  from {name} {value}" for name, value in source.items() if name not in ("keys", "dtypes"))
    if "keys" in source:
        yield f"  from {len(source['keys'])} tensors"


def _adapters(entry: dict[str, Any]) -> Iterator[str]:
    kind = "DoRA" if entry.get("dora") else "LoRA"
    alpha = entry.get("alpha") or entry["rank"]
    yield f"  adapters ({kind}) of rank {entry['rank']}, alpha {alpha:g}, for {', '.join(entry['targets'])}"
    yield f"  trained on {entry.get('base') or 'weights'} of SHA-256 {str(entry.get('base_sha256'))[:12]}"


def _counted(found: Path) -> str:
    """The number of parameters, and whether there are EMA weights."""
    if found.is_file():
        count = sum(array.size for array in safetensors_file.read_tensors(found).values())
        return f"{count:,} parameters"
    arrays = step_format.read_arrays(found)
    count = sum(prod(spec["shape"]) for name, spec in arrays.items() if name.startswith("params/"))
    return f"{count:,} parameters" + (", EMA weights too" if "ema" in held_weights(found) else "")
