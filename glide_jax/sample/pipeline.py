"""Prompts to pictures: base model, then upsampler; uint8 images out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.images import ImageSource, from_uint8, to_uint8
from glide_jax.sample.loading import LoadedClip, LoadedModel, check_upsampler
from glide_jax.sample.options import UPSAMPLER_DEFAULTS, SampleOptions
from glide_jax.sample.pictures import load_mask, load_picture
from glide_jax.sample.stage import Inputs, OnSteps

Pixels = UInt8[np.ndarray, "n height width 3"]


@dataclass(frozen=True)
class Samples:
    """Pictures and what they were drawn from, in order.

    Attributes:
        images: uint8 [n, height, width, 3], of the last stage.
        prompts: caption of each picture.
        indices: number of each picture, which with the seed decides its noise.
        seed: the seed they share.
        small: the base model's pictures, where an upsampler enlarged them.
    """

    images: Pixels
    prompts: list[str]
    indices: list[int]
    seed: int
    small: UInt8[np.ndarray, "n small_height small_width 3"] | None = None

    def pil(self) -> list[Image.Image]:
        """The pictures as PIL images."""
        return [Image.fromarray(image) for image in self.images]


class Pipeline:
    """Text to image: a base model, an upsampler, or one after the other.

    Args:
        base: draws small pictures from text.
        upsampler: enlarges them.
        clip: the noised CLIP, for `clip_guidance_scale`.
        batch_size: pictures drawn at once; longer requests are split.

    Raises:
        GlideError: neither model, a model in the wrong place, or two that do not fit each other.
    """

    def __init__(
        self,
        base: LoadedModel | None = None,
        upsampler: LoadedModel | None = None,
        clip: LoadedClip | None = None,
        batch_size: int = 16,
    ) -> None:
        if base is None and upsampler is None:
            raise GlideError("no model: give a base checkpoint, an upsampler, or both")
        if base is not None and base.stage.model.config.super_res:
            raise GlideError("the base checkpoint is an upsampler; give a base model, or give it as the upsampler")
        if upsampler is not None:
            check_upsampler(upsampler.stage.model.config, None if base is None else base.stage.model.config)
        if batch_size < 1:
            raise GlideError(f"batch_size must be at least 1, not {batch_size}")
        self.base, self.upsampler, self.clip, self.batch_size = base, upsampler, clip, batch_size

    @classmethod
    def from_checkpoints(
        cls,
        base: str | Path | None = None,
        upsampler: str | Path | None = None,
        *,
        clip_text: str | Path | None = None,
        clip_image: str | Path | None = None,
        dtype: str = "float32",
        batch_size: int = 16,
    ) -> Self:
        """Loads what is needed from checkpoint folders; the two towers of the noised CLIP come together."""
        if (clip_text is None) != (clip_image is None):
            raise GlideError("the noised CLIP needs both clip_text and clip_image")
        clip = None if clip_text is None or clip_image is None else LoadedClip.from_checkpoints(clip_text, clip_image)
        return cls(
            None if base is None else LoadedModel.from_checkpoint(base, dtype, clip),
            None if upsampler is None else LoadedModel.from_checkpoint(upsampler, dtype),
            clip,
            batch_size,
        )

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        num_images: int = 1,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        negative_prompt: str = "",
        init_image: ImageSource | None = None,
        image: ImageSource | None = None,
        mask: ImageSource | None = None,
        x_t: Float[np.ndarray, "n height width 3"] | None = None,
        upsampler_options: Mapping[str, Any] | None = None,
        on_steps: OnSteps | None = None,
        **options: Any,
    ) -> Samples:
        """Draws `num_images` pictures of each prompt with the base model, and enlarges them if there is an upsampler.

        Args:
            prompts: one caption or several.
            num_images: pictures a prompt.
            seed: in [0, 2^31); picture i of the request is the same whatever the batch size.
            indices: numbers of the pictures, in place of 0, 1, ...: draws some of a larger request as it would.
            negative_prompt: what guidance leads away from.
            init_image: picture to start from; `strength` says how far to leave it (image to image).
            image, mask: picture to complete with an inpainting model, and where it is kept (white) or drawn (black).
            x_t: noise to start from in place of drawn noise, one for each picture, as `invert` gives it.
            upsampler_options: of the upsampler's `SampleOptions`, in place of GLIDE's own ("fast27" DDIM, no guidance).
            on_steps: called with the number of image evaluations just done (a batch of 4 doing 5 reports 20), and the
                pictures as predicted by then, in [-1, 1]; what it raises ends the drawing.
            **options: of the base model's `SampleOptions`: sampler, num_steps, guidance_scale, ...

        Raises:
            GlideError: nothing to draw, impossible options, or pictures that the models cannot use.
        """
        if self.base is None:
            raise GlideError("no base model: an upsampler alone enlarges pictures (Pipeline.upsample, or --image)")
        rows = _rows(prompts, num_images)
        numbers = list(range(len(rows)) if indices is None else indices)
        _check_numbers(numbers, len(rows))
        _check_seed(seed)
        base_options, up_options = SampleOptions(**options), self._upsampler_options(upsampler_options)
        clip_params = None if self.clip is None else self.clip.params
        _check_inpainting(self.base, image, mask)

        def inputs(model: LoadedModel, picked: list[int], **more: Any) -> Inputs:
            size, count = model.stage.model.config.image_size, len(picked)
            if image is not None and mask is not None and model.stage.model.config.inpaint:
                more["inpaint_image"] = _repeat(load_picture(image, size), count)
                more["inpaint_mask"] = _repeat(load_mask(mask, size), count)
            return Inputs([rows[i] for i in picked], [numbers[i] for i in picked], negative_prompt, **more)

        def draw(picked: list[int], report: OnSteps | None) -> tuple[np.ndarray, np.ndarray | None]:
            assert self.base is not None
            more: dict[str, Any] = {} if x_t is None else {"x_t": np.asarray(x_t)[picked]}
            if init_image is not None:
                size = self.base.stage.model.config.image_size
                more["init_image"] = _repeat(load_picture(init_image, size), len(picked))
            given = inputs(self.base, picked, **more)
            small = to_uint8(jax.device_get(self.base.stage.sample(
                self.base.params, given, base_options, seed=seed, clip_params=clip_params, on_steps=report
            )))  # fmt: skip
            if self.upsampler is None:
                return small, None
            up_inputs = inputs(self.upsampler, picked, low_res=from_uint8(small))
            up = self.upsampler.stage.sample(self.upsampler.params, up_inputs, up_options, seed=seed, on_steps=report)
            return to_uint8(jax.device_get(up)), small

        images, small = self._in_batches(len(rows), draw, on_steps)
        return Samples(images, rows, numbers, seed, small)

    def upsample(
        self,
        images: Sequence[ImageSource],
        prompts: str | Sequence[str] = "",
        *,
        seed: int = 0,
        on_steps: OnSteps | None = None,
        **options: Any,
    ) -> Samples:
        """Enlarges pictures of any size, each brought to the upsampler's input size first.

        Args:
            images: files, PIL images or uint8 arrays.
            prompts: what they show, one for all or one each.
            seed, on_steps: as in a call.
            **options: of `SampleOptions`, in place of GLIDE's own.
        """
        if self.upsampler is None:
            raise GlideError("no upsampler was given")
        rows = _rows(prompts, 1) * (len(images) if isinstance(prompts, str) or len(prompts) == 1 else 1)
        if len(rows) != len(images) or not rows:
            raise GlideError(f"{len(rows)} prompts for {len(images)} pictures: give one for all, or one each")
        _check_seed(seed)
        up_options = self._upsampler_options(options)
        size = self.upsampler.stage.model.config.low_res_size
        low_res = np.stack([load_picture(image, size) for image in images])

        def draw(picked: list[int], report: OnSteps | None) -> tuple[np.ndarray, np.ndarray | None]:
            assert self.upsampler is not None
            inputs = Inputs([rows[i] for i in picked], picked, low_res=low_res[picked])
            drawn = self.upsampler.stage.sample(self.upsampler.params, inputs, up_options, seed=seed, on_steps=report)
            return to_uint8(jax.device_get(drawn)), to_uint8(low_res[picked])

        drawn, small = self._in_batches(len(rows), draw, on_steps)
        return Samples(drawn, rows, list(range(len(rows))), seed, small)

    def invert(self, image: ImageSource, prompt: str = "", **options: Any) -> Float[np.ndarray, "1 height width 3"]:
        """The noise from which DDIM draws `image` under `prompt`: pass it to a call as `x_t`, with the same levels.

        Guidance is off unless `guidance_scale` is given: the way back is the more exact, the closer it is to 1.
        """
        if self.base is None:
            raise GlideError("no base model was given")
        stage = self.base.stage
        picture = load_picture(image, stage.model.config.image_size)[None]
        sample_options = SampleOptions(**{"guidance_scale": 1.0, **options})
        return np.asarray(stage.invert(self.base.params, Inputs([prompt], [0], init_image=picture), sample_options))

    def count_evaluations(
        self,
        pictures: int,
        options: Mapping[str, Any],
        upsampler_options: Mapping[str, Any] | None = None,
        *,
        from_picture: bool = False,
    ) -> int:
        """How many image evaluations `on_steps` will report for so many pictures."""
        total = 0
        if self.base is not None:
            base_options = SampleOptions(**options)
            from_picture = from_picture and base_options.strength < 1
            total += self.base.stage.count_evaluations(base_options, from_picture=from_picture)
        if self.upsampler is not None:
            up_options = self._upsampler_options(upsampler_options)
            total += self.upsampler.stage.count_evaluations(up_options, from_picture=True)
        return pictures * total

    def _upsampler_options(self, options: Mapping[str, Any] | None) -> SampleOptions:
        given = dict(options or {})
        if {"num_steps", "schedule"} & given.keys():
            given.setdefault("timestep_respacing", "")
        return replace(UPSAMPLER_DEFAULTS, **given)

    def _in_batches(
        self,
        count: int,
        draw: Callable[[list[int], OnSteps | None], tuple[np.ndarray, np.ndarray | None]],
        on_steps: OnSteps | None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """All pictures, `batch_size` at a time; a short last batch is filled up to run the same program."""
        size = min(self.batch_size, count)
        images: list[np.ndarray] = []
        small: list[np.ndarray] = []
        for first in range(0, count, size):
            real = min(size, count - first)
            report = None if on_steps is None else (lambda steps, x_0, real=real: on_steps(steps * real, x_0[:real]))
            drawn, before = draw([min(first + i, count - 1) for i in range(size)], report)
            images.append(drawn[:real])
            if before is not None:
                small.append(before[:real])
        return np.concatenate(images), np.concatenate(small) if small else None


def _rows(prompts: str | Sequence[str], num_images: int) -> list[str]:
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts or num_images < 1:
        raise GlideError("nothing to draw: give at least one prompt and num_images of at least 1")
    return [prompt for prompt in prompts for _ in range(num_images)]


def _check_numbers(numbers: Sequence[int], count: int) -> None:
    if len(numbers) != count or not all(0 <= number < 2**31 for number in numbers):
        raise GlideError(f"indices must be {count} numbers in [0, 2^31), one for each picture")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**31:
        raise GlideError(f"seed must be in [0, 2^31), not {seed}")


def _check_inpainting(base: LoadedModel, image: ImageSource | None, mask: ImageSource | None) -> None:
    if (image is None) != (mask is None):
        raise GlideError("inpainting needs both an image and a mask")
    if image is not None and not base.stage.model.config.inpaint:
        raise GlideError("this base model cannot inpaint: give a base-inpaint checkpoint, or use init_image")


def _repeat(picture: np.ndarray, count: int) -> np.ndarray:
    return np.repeat(picture[None], count, axis=0)
