"""Few-step distillation: adapters learn to do in one step what the guided base weights do in several.

Progressive distillation (Salimans & Ho 2022, arXiv:2202.00512) of a guided teacher (Meng et al. 2022, arXiv:2210.03142)
in a single stage, with adapters as the student (as in LCM-LoRA, Luo et al. 2023, arXiv:2311.05556).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from glide_jax.diffusion.denoiser import threshold
from glide_jax.diffusion.forward import Image, Level, Readout, to_columns
from glide_jax.diffusion.levels import NoiseLevels
from glide_jax.diffusion.options import LevelOptions
from glide_jax.diffusion.schedules import Schedule
from glide_jax.models import Conditioning, EncodedText, Glide, Params
from glide_jax.models.lora import GROUP
from glide_jax.tokenizer import GlideTokenizer
from glide_jax.train.config import DistillConfig

SCHEDULE = "trailing"
# (encoded captions, rows of each image, one after another) -> their conditioning.
Condition = Callable[[EncodedText | None, int], Conditioning]


def student_settings(config: DistillConfig) -> dict[str, Any]:
    """The `SampleOptions` a student is sampled with, by name; empty without distillation."""
    if not config.num_steps:
        return {}
    guidance = {"guidance": "cfg", "guidance_scale": 1.0}
    return {"sampler": "ddim", "num_steps": config.num_steps, "schedule": SCHEDULE, **guidance}


class Teacher:
    """The guided base model, which takes `teacher_steps` DDIM steps from one of the student's noise levels to the next.

    Args:
        model: the network without adapters.
        schedule: the full schedule of both.
        config: steps and guidance.
    """

    def __init__(self, model: Glide, schedule: Schedule, config: DistillConfig) -> None:
        self._model, self._schedule = model, schedule
        self._scale = config.guidance_scale if model.config.xf_width else 1.0
        options = LevelOptions(num_steps=config.num_steps, schedule=SCHEDULE)
        self._timesteps = np.rint(NoiseLevels.from_options(schedule, options).timesteps[::-1]).astype(np.int32)
        self._steps, self._levels = config.teacher_steps, _levels_between(schedule, self._timesteps, config)
        tokens, mask = GlideTokenizer().padded("", model.config.text_ctx)
        self._no_caption = np.asarray(tokens), np.asarray(mask)

    def timesteps(self, t: Int[Array, " batch"]) -> Int[Array, " batch"]:
        """Maps t in [0, T) to the student's timesteps, in equal parts."""
        index = t * len(self._timesteps) // self._schedule.diffusion_steps
        return jnp.asarray(self._timesteps)[index]

    def target(
        self,
        params: Params,
        tokens: Int[Array, "batch ctx"],
        mask: Bool[Array, "batch ctx"],
        condition: Condition,
        x_t: Image,
        t: Int[Array, " batch"],
    ) -> tuple[Image, Image]:
        """The x_0 and noise with which a single DDIM step from x_t lands where the teacher's steps do.

        Args:
            params: the student's; the teacher ignores the adapters.
            tokens, mask: captions.
            condition: makes the conditioning of encoded captions.
            x_t: noised images; t: their timesteps, as from `timesteps`.
        """
        params = {name: group for name, group in params.items() if name != GROUP}
        guided, rows = self._scale != 1.0, 2 if self._scale != 1.0 else 1
        if guided:
            # With and without caption in turn, not in two halves, so that devices sharing a batch keep their rows.
            tokens, mask = (jnp.stack([own, jnp.broadcast_to(none, own.shape)], axis=1).reshape(-1, own.shape[1])
                            for own, none in zip((tokens, mask), self._no_caption, strict=True))  # fmt: skip
        given = condition(self._model.encode_text(params, tokens, mask), rows)
        index = jnp.searchsorted(jnp.asarray(self._timesteps), t)
        table = jax.tree.map(lambda column: jnp.asarray(column)[index], self._levels)

        def level(k: Int[Array, ""] | int) -> Level:
            return Level(*(column[:, k] for column in table))

        def step(k: Int[Array, ""], x: Image) -> Image:
            here, there = level(k), level(k + 1).per_image()
            twice, at = jnp.repeat(x, rows, axis=0), jnp.repeat(here.t, rows, axis=0)
            output = self._model(params, twice, at, given)[..., :3].astype(jnp.float32)
            predicted = output[::rows]
            if guided:
                without = output[1::2]
                predicted = without + self._scale * (predicted - without)
            here = here.per_image()
            x_0 = threshold(Readout(self._schedule.prediction_type, x, here).x_0(predicted))
            return there.alpha * x_0 + there.sigma * (x - here.alpha * x_0) / here.sigma

        reached = jax.lax.fori_loop(0, self._steps, step, x_t)
        begin, end = level(0).per_image(), level(self._steps).per_image()
        ratio = end.sigma / begin.sigma
        x_0 = (reached - ratio * x_t) / (end.alpha - ratio * begin.alpha)
        return x_0, (x_t - begin.alpha * x_0) / begin.sigma


def _levels_between(schedule: Schedule, timesteps: Int[np.ndarray, " students"], config: DistillConfig) -> Level:
    """Columns [students, teacher_steps + 1]: evenly spaced from each timestep to the next lower one, or to
    the clean image."""
    ends = np.append(0, timesteps[:-1])
    t = np.linspace(timesteps, ends, config.teacher_steps + 1, axis=1)
    sigma = np.exp(np.interp(t, schedule.timesteps, np.log(schedule.sigmas)))
    sigma[0, -1] = 0.0
    alpha = 1 / np.sqrt(1 + sigma**2)
    return Level(*to_columns(t, alpha, sigma * alpha))
