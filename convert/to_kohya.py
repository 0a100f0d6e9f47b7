"""Writes adapters as a safetensors file with the names and layouts introduced by kohya."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from convert.architecture import Architecture, glide_architecture
from convert.keymap import Entry
from glide_jax import hub
from glide_jax.checkpoint import read_record, safetensors_file
from glide_jax.checkpoint.safetensors_file import ALPHA, SUFFIX, Header
from glide_jax.errors import GlideError
from glide_jax.files import require_new
from glide_jax.models import LoraConfig, ModelConfig
from glide_jax.models.lora import GROUP
from glide_jax.options import build
from glide_jax.sample.lora import Adapters

# The end of a tensor's name, and our name for that part of an adapter.
_PARTS = {"lora_down.weight": "down", "lora_up.weight": "up", "dora_scale": "magnitude", ALPHA: ALPHA}
_REFERENCE = "https://github.com/openai/glide-text2im"


def to_kohya(checkpoint: str | Path, output: Path) -> int:
    """Writes a run's adapters, with their EMA weights, in float32.

    The header identifies the weights they belong to by hash, and gives their location only if that is on the Hub.

    Args:
        checkpoint: a run that trained adapters, or one of its steps.
        output: the file, which must not exist.

    Returns:
        The number of layers with adapters.

    Raises:
        GlideError: the checkpoint cannot be read or holds a whole model, or the file cannot be written.
    """
    if output.suffix != SUFFIX:
        raise GlideError(f"--output {output} must end in {SUFFIX}")
    require_new(output)
    record = read_record(checkpoint)
    adapters = Adapters.load(checkpoint)
    architecture = glide_architecture(build(ModelConfig, record["model"]), record.get("diffusion", {}))
    thin = flatten_dict(adapters.params)
    entries = [each for each in architecture.keymap if each.path[-1] == "kernel" and (*each.path[:-1], "down") in thin]
    if len(thin) != sum((*each.path[:-1], part) in thin for each in entries for part in _PARTS.values()):
        raise GlideError(f"{checkpoint} has adapters of layers that have no name in PyTorch")
    tensors = {(entry, part): tensor for entry in entries for part, tensor in _tensors(entry, thin, adapters.config)}
    keys = {(entry, part): f"{kohya_name(entry)}.{part}" for entry, part in tensors}
    base = adapters.base if hub.is_name(adapters.base) else ""  # a local path is useless to others
    header: Header = {
        "record": {name: record[name] for name in ("model", "diffusion", "sampling") if name in record}
        | {"lora": record["lora"] | {"base": base}},
        "names": {key: "/".join((GROUP, *entry.path[:-1], _PARTS[part])) for (entry, part), key in keys.items()},
    }
    others = _others_metadata(architecture, adapters.config, base, output.stem)
    safetensors_file.write(output, {keys[at]: tensor for at, tensor in tensors.items()}, header, others)
    return len(entries)


def kohya_name(entry: Entry) -> str:
    """The name of a layer's adapter: of the UNet, or of the text encoder, PyTorch's module with dots as underscores."""
    part = "lora_te" if entry.path[0] == "text" else "lora_unet"
    return f"{part}_{entry.torch.removesuffix('.weight').replace('.', '_')}"


def _tensors(
    entry: Entry, thin: dict[tuple[str, ...], np.ndarray], config: LoraConfig
) -> Iterator[tuple[str, np.ndarray]]:
    """In PyTorch's layouts: both factors are layers of the kernel's kind, the second with a width of 1."""
    taps = (1,) * (thin[*entry.path[:-1], "down"].ndim - 2)
    for key, part in _PARTS.items():
        array = thin.get((*entry.path[:-1], part))
        if array is not None:
            whole = array if part == "down" else array.reshape(*taps, -1, array.shape[-1])
            yield key, entry.to_torch(whole)
    yield ALPHA, np.asarray(config.alpha or config.rank, np.float32)


def _others_metadata(architecture: Architecture, config: LoraConfig, base: str, title: str) -> dict[str, str]:
    """Metadata shown by programs that list such files: kohya's entries (ss_), LyCORIS' for DoRA, and ModelSpec's."""
    rank, alpha = str(config.rank), str(config.alpha or float(config.rank))
    arguments: dict[str, Any] = {"conv_dim": rank, "conv_alpha": alpha}
    if config.dora:
        arguments |= {"algo": "lora", "dora_wd": "True", "wd_on_output": "True"}
    model, diffusion = (architecture.record[name] for name in ("model", "diffusion"))
    return {
        "ss_network_module": "lycoris.kohya" if config.dora else "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps(arguments),
        "ss_base_model_version": f"glide_{architecture.kind}",
        "ss_sd_model_name": base,
        "ss_output_name": title,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"glide-{architecture.kind}/lora",
        "modelspec.implementation": _REFERENCE,
        "modelspec.title": title,
        "modelspec.resolution": f"{model['image_size']}x{model['image_size']}",
        "modelspec.prediction_type": {"v_prediction": "v"}.get(kind := diffusion.get("prediction_type", ""), kind),
    }
