"""Sample grids during training: what the EMA weights generate from fixed captions."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from glide_jax.data.examples import Batch
from glide_jax.errors import GlideError
from glide_jax.images import Pixels, from_uint8, grid, to_uint8
from glide_jax.models import Glide, ModelConfig, Params
from glide_jax.options import build, flat
from glide_jax.randomness import keys_per_example, stream_key
from glide_jax.sample import Inputs, LoadedModel, SampleOptions, Stage, check_upsampler, overruled
from glide_jax.sample.options import UPSAMPLER_DEFAULTS
from glide_jax.train.augment import random_masks
from glide_jax.train.config import MaskConfig, PreviewConfig, RunConfig
from glide_jax.train.distill import student_settings
from glide_jax.train.start import preview_examples

_CELL = 96
_HIDDEN = 128


class Previews:
    """Samples the same captions with the same noise each time.

    Args:
        stage: the model in training.
        config: captions and sampling options.
        examples: fixed training examples, which provide captions if `config` gives none, low-resolution inputs for an
            upsampler, and images to inpaint.
        upsampler: upsamples a base model's images, on the device that holds its weights.
    """

    def __init__(
        self, stage: Stage, config: PreviewConfig, examples: Batch, upsampler: LoadedModel | None = None
    ) -> None:
        self._stage, self._config, self._examples, self._upsampler = stage, config, examples, upsampler
        stage.levels(config.options, from_image=stage.model.config.super_res)  # fail now, not after the first steps
        prompts = list(config.prompts or examples.captions)
        model = stage.model.config
        # With given images, there can be no more samples than images.
        self._prompts = prompts[: len(examples.captions)] if model.super_res or model.inpaint else prompts
        self._true = examples.arrays["image"][: len(self._prompts)]
        self._low_res = examples.arrays["low_res"][: len(self._prompts)] if model.super_res else None
        self._masks = self._make_masks() if model.inpaint else None

    def sample(self, params: Params) -> Pixels:
        """A captioned grid; with given images, each row is what the model saw, its sample and the ground truth."""
        inputs = Inputs(
            self._prompts,
            range(len(self._prompts)),
            low_res=None if self._low_res is None else from_uint8(self._low_res),
            inpaint_image=None if self._masks is None else from_uint8(self._true),
            inpaint_mask=self._masks,
        )
        samples = to_uint8(jax.device_get(self._stage.sample(params, inputs, self._config.options)))
        columns = [*self._seen(), samples]
        if len(columns) > 1:
            columns.append(self._true)
        if self._upsampler is not None:
            large = _upsample(self._upsampler, self._prompts, samples, self._config.upsampler_strength)
            columns = [*(_repeated(column, large.shape[1]) for column in columns), large]
        strips = [np.concatenate(row, axis=1) for row in zip(*columns, strict=True)]
        return grid(strips, self._prompts, cell=_CELL * len(columns))

    def data(self) -> Pixels:
        """The training images in the same layout."""
        return grid(list(self._examples.arrays["image"]), self._examples.captions, cell=_CELL)

    def _make_masks(self) -> np.ndarray:
        keys = keys_per_example(stream_key(0, "preview masks"), jnp.arange(len(self._prompts)))
        _, height, width, _ = self._true.shape
        # Masks between the extremes, so that there is something to see.
        return np.asarray(random_masks(MaskConfig(everything=0.0, nothing=0.0), keys, (height, width)))

    def _seen(self) -> list[np.ndarray]:
        """What the model was given, at the size of its images."""
        seen = []
        if self._low_res is not None:
            seen.append(_repeated(self._low_res, self._true.shape[1]))
        if self._masks is not None:
            seen.append(np.where(self._masks > 0, self._true, _HIDDEN).astype(np.uint8))
        return seen


def open_previews(config: RunConfig, model: Glide) -> Previews:
    """The previews of a run of `model`, with the first of its training images.

    Raises:
        GlideError: there is no upsampler or data, or they do not fit the model; or sampling options are impossible.
    """
    preview = config.train.preview
    upsampler = load_preview_upsampler(preview, config.model)
    few = student_settings(config.train.distill)
    options = build(SampleOptions, overruled(flat(preview.options), few))
    stage = Stage(model, config.diffusion)
    return Previews(stage, replace(preview, options=options), preview_examples(config), upsampler)


def load_preview_upsampler(config: PreviewConfig, model: ModelConfig) -> LoadedModel | None:
    """The upsampler for previews, if configured, with all its weights on this process's first device.

    Raises:
        GlideError: there is no checkpoint, or it does not fit the model in training.
    """
    if not config.upsampler:
        return None
    if model.super_res:
        raise GlideError("train.preview.upsampler needs a base model; this run trains an upsampler")
    loaded = LoadedModel.from_checkpoint(config.upsampler)
    check_upsampler(loaded.stage.model.config, model)
    if loaded.stage.model.config.inpaint:
        raise GlideError("train.preview.upsampler must not be an inpainting one: it is given no image to keep")
    params = jax.tree.map(lambda x: x.addressable_data(0), loaded.params)
    return LoadedModel(Stage(loaded.stage.model, loaded.stage.diffusion), params)


def _upsample(upsampler: LoadedModel, prompts: list[str], small: np.ndarray, strength: float) -> np.ndarray:
    inputs = Inputs(prompts, range(len(prompts)), low_res=from_uint8(small))
    options = replace(UPSAMPLER_DEFAULTS, strength=strength)
    return to_uint8(jax.device_get(upsampler.stage.sample(upsampler.params, inputs, options)))


def _repeated(images: np.ndarray, size: int) -> np.ndarray:
    factor = size // images.shape[1]
    return images.repeat(factor, axis=1).repeat(factor, axis=2)
