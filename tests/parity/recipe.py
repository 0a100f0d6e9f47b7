"""Rebuilds the weights and inputs behind the golden arrays (tests/golden/README.md has the recipe in words)."""

import json
import zlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import numpy as np

from convert.keymap import clip_keymap, glide_keymap
from glide_jax.models import ClipImageConfig, ClipTextConfig, Conditioning, Glide, ModelConfig, NoisedClip, Params

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = ("base", "upsample", "base-inpaint", "upsample-inpaint")
_OTHERS = {"channel_mult", "attention_resolutions", "low_res_size", "norm_groups"}
_SAME_NAME = {field.name for field in fields(ModelConfig)} - _OTHERS


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The recipe's random array: a pure function of name and shape."""
    state = np.random.RandomState(zlib.crc32(f"0/{name}".encode()))
    return state.standard_normal(shape).astype(np.float32)


def draw_image(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """`draw` of a torch-shaped NCHW image, as NHWC."""
    return draw(name, shape).transpose(0, 2, 3, 1)


def draw_parameter(name: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of one `state_dict` entry in PyTorch's layout."""
    z = draw(f"{name}/{key}", shape)
    if len(shape) >= 2:
        return z / np.sqrt(np.float32(np.prod(shape[1:])))
    return 1 + np.float32(0.1) * z if key.endswith("weight") else np.float32(0.1) * z


def golden_arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def manifest(size: str, kind: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"manifest_{size}_{kind}.json").read_text())


def model_config(size: str, kind: str, **changes: Any) -> ModelConfig:
    options = manifest(size, kind)["options"]
    resolutions = tuple(int(side) for side in options["attention_resolutions"].split(","))
    return ModelConfig(**({name: options[name] for name in _SAME_NAME} | changes), attention_resolutions=resolutions)


def golden_params(model: Glide, prefix: str) -> Params:
    """The recipe's weights under our names; `prefix` is "{size}/{kind}"."""
    abstract = model.abstract_params()
    params: Params = {}
    for entry in glide_keymap(abstract):
        leaf: Any = abstract
        for name in entry.path:
            leaf = leaf[name]
        node = params
        for name in entry.path[:-1]:
            node = node.setdefault(name, {})
        node[entry.path[-1]] = entry.to_flax(draw_parameter(prefix, entry.torch, entry.torch_shape(leaf.shape)))
    return params


def clip_manifest() -> dict[str, Any]:
    return json.loads((GOLDEN / "manifest_clip.json").read_text())


def clip_model(size: str, dtype: str = "float32") -> NoisedClip:
    options = clip_manifest()[size]["config"]
    text, image = (
        config(**{name: options[name] for name in config.__slots__}) for config in (ClipTextConfig, ClipImageConfig)
    )
    return NoisedClip(text, image, dtype)


def clip_params(model: NoisedClip, size: str) -> Params:
    """The recipe's weights of both towers under our names."""
    params: Params = {}
    for tower, abstract in model.abstract_params().items():
        for entry in clip_keymap({tower: abstract}):
            shape = tuple(clip_manifest()[size][tower][entry.torch])
            node = params
            for name in entry.path[:-1]:
                node = node.setdefault(name, {})
            node[entry.path[-1]] = entry.to_flax(draw_parameter(f"{size}/clip-{tower}", entry.torch, shape))
    return params


def inpaint_mask(batch: int, side: int) -> np.ndarray:
    """NHWC mask: 0 on the intersection of rows from side // 3 on and columns before side // 2, 1 elsewhere."""
    mask = np.ones((batch, side, side, 1), np.float32)
    mask[:, side // 3 :, : side // 2] = 0
    return mask


def network(model: Glide, params: Params, conditioning: Conditioning) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(x, t) -> output, compiled even where `jax.disable_jit` lets solvers go on one operation at a time."""
    # It runs so often that a better program pays for itself; without weights in it, others may use it too.
    run = jax.jit(model.__call__, compiler_options={"xla_backend_optimization_level": 2})
    params = jax.device_put(params)

    def compiled(x: jax.Array, t: jax.Array) -> jax.Array:
        with jax.disable_jit(False):
            return run(params, x, t, conditioning)

    return compiled


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """max |a - b| / max |b| of an array."""
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    return float(np.max(np.abs(np.asarray(ours, np.float64) - reference)) / np.max(np.abs(reference)))


def root_mean_square_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """Root mean square of a - b, relative to that of b."""
    difference = np.asarray(ours, np.float64) - reference
    return float(np.sqrt(np.square(difference).mean() / np.square(reference).mean()))
