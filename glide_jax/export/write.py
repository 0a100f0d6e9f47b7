"""Writes a pipeline as a self-contained program."""

import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from glide_jax.errors import GlideError, install
from glide_jax.export.program import FORMAT, INDEX
from glide_jax.files import require_new, written
from glide_jax.sample import LoadedModel, Pipeline, SampleOptions

PLATFORMS = ("cpu", "cuda", "tpu")


def write(
    pipeline: Pipeline,
    folder: Path,
    options: SampleOptions,
    upsampler_options: SampleOptions,
    *,
    platforms: Sequence[str] = PLATFORMS,
    about: dict[str, Any] | None = None,
) -> None:
    """Writes a folder that `glide_jax.export.load` runs, for any number of prompts at once.

    Args:
        pipeline: the models; the base model must generate from text alone.
        folder: a new one.
        options, upsampler_options: sampling options, which become part of the program.
        platforms: where it is to run; it need not be exported on one of them.
        about: further entries for its index.

    Raises:
        GlideError: flatbuffers is missing, the base model inpaints, `folder` exists already, or it cannot be
            written.
    """
    if pipeline.base is None or pipeline.base.stage.model.config.inpaint:
        raise GlideError("what is exported generates from text: give a base model that does not inpaint")
    require_new(folder)
    stages = {"base": (pipeline.base, options)}
    if pipeline.upsampler is not None:
        stages["upsampler"] = (pipeline.upsampler, upsampler_options)
    for name, (model, how) in stages.items():
        exported = export.export(jax.jit(_function(model, how)), platforms=platforms)(*_shapes(model))
        try:
            code = exported.serialize()
        except ImportError as error:
            raise GlideError(f"exporting needs flatbuffers: {install('export')}") from error
        with written(folder / f"{name}.stablehlo") as partial:
            partial.write_bytes(code)
        with written(folder / f"{name}.npz") as partial, partial.open("wb") as file:
            arrays: dict[str, Any] = {key: np.asarray(leaf) for key, leaf in _flat(model).items()}
            np.savez(file, **arrays)
    index = {
        "format": FORMAT,
        "stages": {name: model.stage.model.config.text_ctx for name, (model, _) in stages.items()},
        "platforms": list(platforms),
        "versions": {name: version(name) for name in ("glide-jax", "jax")},
        **(about or {}),
    }
    with written(folder / INDEX) as partial:
        partial.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _flat(model: LoadedModel) -> dict[str, Any]:
    return flatten_dict(model.params, sep="/")


def _function(model: LoadedModel, options: SampleOptions) -> Callable[..., jax.Array]:
    """A function of weights, prompts, negative prompt, seed, image numbers (and small images) that returns images."""
    stage = model.stage

    def images(weights: Any, *given: Any) -> jax.Array:
        tokens, mask, against, its_mask, seed, indices, *small = given
        params = unflatten_dict(weights, sep="/")
        text, other = (stage.model.encode_text(params, *each) for each in ((tokens, mask), (against, its_mask)))
        low_res = small[0].astype(jnp.float32) / 127.5 - 1.0 if small else None
        x_0 = stage.generate(params, text, other, options, seed=seed, indices=indices, low_res=low_res)
        return jnp.round((x_0 + 1.0) * 127.5).astype(jnp.uint8)

    return images


def _shapes(model: LoadedModel) -> tuple[Any, ...]:
    config = model.stage.model.config
    (batch,) = export.symbolic_shape("batch")
    array = jax.ShapeDtypeStruct
    weights = {key: array(leaf.shape, leaf.dtype) for key, leaf in _flat(model).items()}
    text = [array((rows, config.text_ctx), kind) for rows in (batch, 1) for kind in (jnp.int32, jnp.bool)]
    small = [array((batch, config.low_res_size, config.low_res_size, 3), jnp.uint8)] if config.super_res else []
    return (weights, *text, array((), jnp.int32), array((batch,), jnp.int32), *small)
