"""Weights to start from, out of a checkpoint that need not be of quite the same model."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from glide_jax.checkpoint import load_weights, read_record
from glide_jax.errors import GlideError
from glide_jax.models import Glide, ModelConfig, Params


def require_same(
    name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], where: str, ignore: tuple[str, ...] = ()
) -> None:
    """Compares options with those of a checkpoint's record; dropout is no part of what weights are of.

    Raises:
        GlideError: they differ; every difference is listed.
    """
    kept = {k: list(v) if isinstance(v, tuple) else v for k, v in ours.items() if k not in ("dropout", *ignore)}
    different = [k for k, v in kept.items() if theirs.get(k) != v]
    if different:
        listed = ", ".join(f"{name}.{k}: {theirs.get(k)} there, {kept[k]} here" for k in different)
        raise GlideError(f"{where} is of another model ({listed}); change --config.{name} or choose another folder")


def require_fit(config: ModelConfig, theirs: Mapping[str, Any], where: str) -> None:
    """Checks that a model of `config` can start from weights of another, by the model entry of their record.

    It may inpaint where theirs cannot, and draw another size: a UNet's weights know none, as long as attention and an
    upsampler's input stay at the same fractions of it.

    Raises:
        GlideError: they differ in more; every difference is listed.
    """
    ignore = ["inpaint"] if config.inpaint else []
    size = theirs.get("image_size", config.image_size)
    if size != config.image_size:
        scale = config.image_size / size
        attention = tuple(round(side * scale) for side in theirs.get("attention_resolutions", ()))
        wanted: dict[str, Any] = {"attention_resolutions": attention}
        if config.super_res:
            wanted["low_res_size"] = round(theirs.get("low_res_size", 0) * scale)
        wrong = [f"{k} {v}, not {getattr(config, k)}" for k, v in wanted.items() if v != getattr(config, k)]
        if wrong:
            raise GlideError(f"{where} draws {size} pixels; for {config.image_size} it needs {', '.join(wrong)}")
        ignore += ["image_size", "low_res_size", "attention_resolutions"]
    require_same("model", asdict(config), theirs, where, tuple(ignore))


def load_starting_weights(path: str, config: ModelConfig, abstract: Params) -> Params:
    """The weights at `path` for a model of `config`, as far as `require_fit` lets it differ.

    Args:
        path: any checkpoint.
        config: the model to be trained.
        abstract: its parameters, with the shardings wanted.
    """
    theirs = read_record(path).get("model", {})
    require_fit(config, theirs, path)
    if not config.inpaint or theirs.get("inpaint"):
        return load_weights(path, abstract)
    plain = Glide(replace(config, inpaint=False)).abstract_params()
    wide = abstract["unet"]["input_conv"]["kernel"]
    narrow = plain["unet"]["input_conv"]["kernel"]
    shapes = jax.tree.map(lambda leaf: leaf, abstract)
    shapes["unet"]["input_conv"]["kernel"] = narrow
    params = load_weights(path, shapes)
    kernel = params["unet"]["input_conv"]["kernel"]
    params["unet"]["input_conv"]["kernel"] = jax.device_put(widen_for_inpainting(kernel), wide.sharding)
    return params


def widen_for_inpainting(kernel: Float[Array, "3 3 _in out"]) -> Float[Array, "3 3 _more out"]:
    """An input convolution that takes [x, image * mask, mask, low_res] and ignores the two in the middle.

    Args:
        kernel: of the plain model, over x (3 channels) or x and low_res (6).
    """
    new = jnp.zeros((*kernel.shape[:2], 4, kernel.shape[3]), kernel.dtype)
    return jnp.concatenate([kernel[:, :, :3], new, kernel[:, :, 3:]], axis=2)
