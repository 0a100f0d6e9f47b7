"""Picture grids drawn while training: what the averaged weights make of fixed captions."""

import jax
import jax.numpy as jnp
import numpy as np

from glide_jax.data.batch import Batch
from glide_jax.images import Pixels, from_uint8, grid, to_uint8
from glide_jax.models import Params
from glide_jax.randomness import keys_per_example, stream_key
from glide_jax.sample import Inputs, Stage
from glide_jax.train.config import PreviewConfig
from glide_jax.train.masks import MaskConfig, random_masks

_CELL = 96
_HIDDEN = 128


class Previews:
    """Draws the same captions from the same noise each time.

    Args:
        stage: the model in training.
        config: captions and sampling options.
        examples: fixed samples of the training data: their captions where `config` gives none, and the pictures that
            an upsampler enlarges or an inpainting model completes.
    """

    def __init__(self, stage: Stage, config: PreviewConfig, examples: Batch) -> None:
        self._stage, self._config, self._examples = stage, config, examples
        prompts = list(config.prompts or examples.captions)
        model = stage.model.config
        # From given pictures it draws as many as there are.
        self._prompts = prompts[: len(examples.captions)] if model.super_res or model.inpaint else prompts
        self._true = examples.arrays["image"][: len(self._prompts)]
        self._low_res = examples.arrays["low_res"][: len(self._prompts)] if model.super_res else None
        self._masks = self._make_masks() if model.inpaint else None

    def draw(self, params: Params) -> Pixels:
        """A captioned grid; where pictures are given, what the model saw, its own and the true one side by side."""
        inputs = Inputs(
            self._prompts,
            range(len(self._prompts)),
            low_res=None if self._low_res is None else from_uint8(self._low_res),
            inpaint_image=None if self._masks is None else from_uint8(self._true),
            inpaint_mask=self._masks,
        )
        drawn = to_uint8(jax.device_get(self._stage.sample(params, inputs, self._config.options)))
        columns = [*self._seen(), drawn]
        if len(columns) > 1:
            columns.append(self._true)
        strips = [np.concatenate(row, axis=1) for row in zip(*columns, strict=True)]
        return grid(strips, self._prompts, cell=_CELL * len(columns))

    def data(self) -> Pixels:
        """The true pictures in the same layout."""
        return grid(list(self._examples.arrays["image"]), self._examples.captions, cell=_CELL)

    def _make_masks(self) -> np.ndarray:
        keys = keys_per_example(stream_key(0, "preview masks"), jnp.arange(len(self._prompts)))
        # Neither everything nor nothing: there is to be something to see.
        return np.asarray(random_masks(MaskConfig(everything=0.0, nothing=0.0), keys, self._true.shape[1]))

    def _seen(self) -> list[np.ndarray]:
        """What the model was given, at the size of its pictures."""
        seen = []
        if self._low_res is not None:
            factor = self._true.shape[1] // self._low_res.shape[1]
            seen.append(self._low_res.repeat(factor, axis=1).repeat(factor, axis=2))
        if self._masks is not None:
            seen.append(np.where(self._masks > 0, self._true, _HIDDEN).astype(np.uint8))
        return seen
