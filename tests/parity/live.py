"""The PyTorch reference beside our model, with the same weights: ours, converted and loaded with strict=True."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from convert.architecture import Architecture, clip_architecture, glide_architecture
from convert.to_torch import to_torch
from glide_jax.checkpoint import save_weights
from glide_jax.models import ClipImageConfig, ClipTextConfig, Glide, NoisedClip, Params
from tests.parity.recipe import GOLDEN, draw_parameter, manifest, model_config

SKIP = "glide_text2im is not installed: see tests/parity/README.md"
DIFFUSION = {"diffusion_steps": 1000, "noise_schedule": "squaredcos_cap_v2"}


class Pair(NamedTuple):
    """Both sides of one model."""

    kind: str
    size: str
    ours: Any
    params: Params
    theirs: Any
    keymap: list


def glide_pair(kind: str, size: str, folder: Path, **changes: Any) -> Pair:
    """A GLIDE model of the golden sizes, `changes` being options that are no list."""
    creation = pytest.importorskip("glide_text2im.model_creation", reason=SKIP)
    model = Glide(model_config(size, kind, **changes))
    architecture = glide_architecture(model.config, DIFFUSION)
    params = random_params(architecture)
    options = manifest(size, kind)["options"] | changes
    theirs = creation.create_model(
        **{name: value for name, value in options.items() if name not in (*DIFFUSION, "timestep_respacing")}
    )
    theirs.load_state_dict(torch_weights(architecture, params, folder), strict=True)
    return Pair(kind, size, model, params, theirs.eval(), architecture.keymap)


def clip_pair(size: str, folder: Path) -> Pair:
    """Both towers of the noised CLIP; the reference's is its `CLIPModel`."""
    creation = pytest.importorskip("glide_text2im.clip.model_creation", reason=SKIP)
    torch = pytest.importorskip("torch", reason=SKIP)
    options = json.loads((GOLDEN / "manifest_clip.json").read_text())[size]["config"]
    config = folder / "clip.yaml"
    config.write_text(json.dumps(options))
    theirs = creation.create_clip_model(str(config), device=torch.device("cpu"))
    text, image = (c(**{name: options[name] for name in asdict(c())}) for c in (ClipTextConfig, ClipImageConfig))
    params: Params = {}
    for config, tower in ((text, theirs.text_encoder), (image, theirs.image_encoder)):
        architecture = clip_architecture(config)
        weights = random_params(architecture)
        tower.load_state_dict(torch_weights(architecture, weights, folder), strict=True)
        params |= weights
    return Pair("clip", size, NoisedClip(text, image), params, theirs, [])


def random_params(architecture: Architecture) -> Params:
    """The golden recipe's distribution, so that no output layer is zero."""
    shapes, name = architecture.torch_shapes, f"live/{architecture.kind}"
    flat = {
        entry.path: entry.to_flax(draw_parameter(name, entry.torch, shapes[entry.torch]))
        for entry in architecture.keymap
    }
    return unflatten_dict(flat)


def torch_weights(architecture: Architecture, params: Params, folder: Path) -> dict[str, Any]:
    """What PyTorch reads of our checkpoint after `to-torch`."""
    torch = pytest.importorskip("torch", reason=SKIP)
    name = architecture.kind.replace("/", "-")
    save_weights(folder / name, params, architecture.record)
    to_torch(folder / name, folder / f"{name}.pt")
    return torch.load(folder / f"{name}.pt", weights_only=True)


def to_nhwc(tensor) -> np.ndarray:
    """A torch image in our layout."""
    return tensor.detach().numpy().transpose(0, 2, 3, 1)
