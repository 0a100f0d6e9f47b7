"""Prompts to pictures: checkpoints in, uint8 images out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from glide_jax.checkpoint import load_weights, read_record
from glide_jax.diffusion.schedules import DiffusionConfig
from glide_jax.errors import GlideError
from glide_jax.images import to_uint8
from glide_jax.models import Glide, ModelConfig, Params
from glide_jax.parallel import ParallelConfig, make_mesh, state_shardings, with_shardings
from glide_jax.sample.options import SampleOptions
from glide_jax.sample.stage import OnSteps, Stage


@dataclass(frozen=True)
class Samples:
    """Pictures and what they were drawn from, in order.

    Attributes:
        images: uint8 [n, height, width, 3].
        prompts: caption of each picture.
        indices: number of each picture, which with the seed decides its noise.
        seed: the seed they share.
    """

    images: UInt8[np.ndarray, "n height width 3"]
    prompts: list[str]
    indices: list[int]
    seed: int

    def pil(self) -> list[Image.Image]:
        """The pictures as PIL images."""
        return [Image.fromarray(image) for image in self.images]


@dataclass(frozen=True)
class LoadedModel:
    """A stage and its weights."""

    stage: Stage
    params: Params

    @classmethod
    def from_checkpoint(cls, path: str | Path, dtype: str = "float32") -> Self:
        """Loads a run folder, one of its steps, or a converted model: EMA weights where there are any.

        Raises:
            GlideError: no checkpoint there, or one of another kind.
        """
        record = read_record(path)
        if "model" not in record or "diffusion" not in record:
            raise GlideError(f"{path} holds no GLIDE model (its record has no model and diffusion entries)")
        model = Glide(_from_record(ModelConfig, record["model"]), dtype)
        abstract = _placed(model.abstract_params())
        stage = Stage(model, _from_record(DiffusionConfig, record["diffusion"]))
        return cls(stage, load_weights(path, abstract))


class Pipeline:
    """Text to image with a base model.

    Args:
        base: the model.
        batch_size: pictures drawn at once; longer requests are split.
    """

    def __init__(self, base: LoadedModel, batch_size: int = 16) -> None:
        if base.stage.model.config.super_res:
            raise GlideError("the base checkpoint is an upsampler; give a base model")
        if batch_size < 1:
            raise GlideError(f"batch_size must be at least 1, not {batch_size}")
        self.base, self.batch_size = base, batch_size

    @classmethod
    def from_checkpoints(cls, base: str | Path, *, dtype: str = "float32", batch_size: int = 16) -> Self:
        """Loads what is needed from checkpoint folders."""
        return cls(LoadedModel.from_checkpoint(base, dtype), batch_size)

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        num_images: int = 1,
        seed: int = 0,
        on_steps: OnSteps | None = None,
        **options: Any,
    ) -> Samples:
        """Draws `num_images` pictures of each prompt.

        Args:
            prompts: one caption or several.
            num_images: pictures a prompt.
            seed: in [0, 2^31); picture i of the request is the same whatever the batch size.
            on_steps: called with the number of image steps just done (a batch of 4 doing 5 steps reports 20).
            **options: of `SampleOptions`: sampler, num_steps, guidance_scale, ...
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts or num_images < 1:
            raise GlideError("nothing to draw: give at least one prompt and num_images of at least 1")
        if not 0 <= seed < 2**31:
            raise GlideError(f"seed must be in [0, 2^31), not {seed}")
        sample_options = SampleOptions(**options)
        rows = [prompt for prompt in prompts for _ in range(num_images)]
        size = min(self.batch_size, len(rows))
        images: list[np.ndarray] = []
        for first in range(0, len(rows), size):
            real = min(size, len(rows) - first)
            # A short last batch is filled up so that it runs the program already compiled.
            picked = [min(first + i, len(rows) - 1) for i in range(size)]
            report = None if on_steps is None else (lambda steps, real=real: on_steps(steps * real))
            batch = self.base.stage.sample(
                self.base.params,
                [rows[i] for i in picked],
                picked,
                sample_options,
                seed=seed,
                on_steps=report,
            )
            images.append(to_uint8(jax.device_get(batch))[:real])
        return Samples(np.concatenate(images), rows, list(range(len(rows))), seed)


def _from_record(config_class: type, values: dict[str, Any]) -> Any:
    return config_class(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def _placed(abstract: Params) -> Params:
    return with_shardings(abstract, state_shardings(abstract, make_mesh(ParallelConfig())))
