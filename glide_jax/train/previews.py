"""Picture grids drawn while training: what the averaged weights make of fixed captions."""

import jax
import numpy as np

from glide_jax.data.batch import Batch
from glide_jax.images import Pixels, from_uint8, grid, to_uint8
from glide_jax.models import Params
from glide_jax.sample import Inputs, Stage
from glide_jax.train.config import PreviewConfig

_CELL = 96


class Previews:
    """Draws the same captions from the same noise each time.

    Args:
        stage: the model in training.
        config: captions and sampling options.
        examples: fixed samples of the training data: their captions where `config` gives none, and an
            upsampler's inputs.
    """

    def __init__(self, stage: Stage, config: PreviewConfig, examples: Batch) -> None:
        self._stage, self._config, self._examples = stage, config, examples
        prompts = list(config.prompts or examples.captions)
        # An upsampler enlarges given pictures, so it draws as many as there are.
        self._prompts = prompts[: len(examples.captions)] if stage.model.config.super_res else prompts

    def draw(self, params: Params) -> Pixels:
        """A captioned grid; an upsampler's shows its input, its picture and the true one side by side."""
        low_res = self._examples.arrays.get("low_res")
        count = len(self._prompts)
        inputs = Inputs(self._prompts, range(count), low_res=None if low_res is None else from_uint8(low_res[:count]))
        images = self._stage.sample(params, inputs, self._config.options)
        pictures = list(to_uint8(jax.device_get(images)))
        if low_res is not None:
            size = pictures[0].shape[0] // low_res.shape[1]
            enlarged = np.repeat(np.repeat(low_res[:count], size, axis=1), size, axis=2)
            rows = zip(enlarged, pictures, self._examples.arrays["image"], strict=False)
            pictures = [np.concatenate(row, axis=1) for row in rows]
        return grid(pictures, self._prompts, cell=_CELL)

    def data(self) -> Pixels:
        """The true pictures in the same layout."""
        return grid(list(self._examples.arrays["image"]), self._examples.captions, cell=_CELL)
