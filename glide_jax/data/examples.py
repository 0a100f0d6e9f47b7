"""Examples as a pure function of (seed, number): augmented ones to train on, plain ones to validate on."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from PIL import Image

from glide_jax.data import transforms
from glide_jax.data.batch import Batch, write_row, write_texts
from glide_jax.data.config import DataConfig
from glide_jax.data.draws import generator
from glide_jax.data.order import Order, Resampled
from glide_jax.data.pictures import Picture, Pictures
from glide_jax.data.source import BadSample
from glide_jax.errors import GlideError

_REDRAWS = 32  # unusable samples in a row before giving up


class Examples(Protocol):
    """Makes the rows of a batch; safe to call from several threads for different rows."""

    def fill(self, batch: Batch, first_row: int, examples: Sequence[int]) -> None:
        """Writes the examples with these numbers into the rows from `first_row` on."""


class TrainingExamples:
    """Example g: the picture that is drawn for it, cropped, mirrored and captioned by draws keyed by g.

    Args:
        draw: the picture of an example; `ordered` or `streamed`.
        config: transforms and caption dropout.
        image_size: side in pixels.
        seed: of all draws.
    """

    def __init__(self, draw: Callable[[int], Picture], config: DataConfig, image_size: int, seed: int) -> None:
        self._draw, self._config, self._size, self._seed = draw, config, image_size, seed

    def fill(self, batch: Batch, first_row: int, examples: Sequence[int]) -> None:
        """See `Examples`; raises `GlideError` if 32 samples in a row are unusable."""
        texts = []
        for row, example in enumerate(examples, start=first_row):
            picture = self._draw(example)
            caption = self._one_of(picture.captions, example)
            write_row(
                batch, row, example, self._augmented(picture.image, example), caption, self._config.low_res_filter
            )
            texts.append("" if self._happens("uncond", self._config.uncond_p, example) else caption)
        write_texts(batch, first_row, texts)

    def _one_of(self, captions: Sequence[str], example: int) -> str:
        if len(captions) == 1:
            return captions[0]
        return captions[int(generator(self._seed, "caption", example).integers(len(captions)))]

    def _augmented(self, image: Image.Image, example: int) -> Image.Image:
        if self._config.crop == "random":
            rng = generator(self._seed, "crop", example)
            box = transforms.random_box(*image.size, self._config.resize_ratio, rng)
            image = transforms.resize_crop(image, box, self._size)
        return transforms.mirror(image) if self._happens("hflip", self._config.hflip_p, example) else image

    def _happens(self, stream: str, probability: float, example: int) -> bool:
        return probability > 0 and generator(self._seed, stream, example).random() < probability


def ordered(pictures: Pictures, config: DataConfig, seed: int) -> Callable[[int], Picture]:
    """Pictures by example: a fresh permutation of all every epoch, or with `resampled` each drawn by itself.

    An unusable sample is replaced by a keyed draw from all pictures, so example g is the same whoever makes it, and
    when. 32 unusable samples in a row raise `GlideError`.
    """
    order = (Resampled if config.resampled else Order)(len(pictures), seed)

    def draw(example: int) -> Picture:
        sample, redraws = order[example], None
        for _ in range(_REDRAWS):
            try:
                return pictures[sample]
            except BadSample:
                redraws = redraws or generator(seed, "redraw", example)
                sample = int(redraws.integers(len(pictures)))
        raise _nothing_usable(pictures)

    return draw


def streamed(pictures: Pictures) -> Callable[[int], Picture]:
    """The next usable picture of a stream, whatever the example; 32 unusable ones in a row raise `GlideError`."""

    def draw(example: int) -> Picture:
        for _ in range(_REDRAWS):
            with suppress(BadSample):
                return pictures[example]
        raise _nothing_usable(pictures)

    return draw


def _nothing_usable(pictures: Pictures) -> GlideError:
    counts = ", ".join(f"{reason}: {count}" for reason, count in pictures.report().items())
    return GlideError(f"{_REDRAWS} samples in a row were unusable ({counts}); check what is in data.path")


class PlainExamples:
    """Example i is sample i as it stands, with its first caption; where that is unusable the row stays empty."""

    def __init__(self, pictures: Pictures, low_res_filter: str) -> None:
        self._pictures, self._low_res_filter = pictures, low_res_filter

    def fill(self, batch: Batch, first_row: int, examples: Sequence[int]) -> None:
        """See `Examples`."""
        for row, example in enumerate(examples, start=first_row):
            try:
                picture = self._pictures[example]
            except BadSample:
                continue
            write_row(batch, row, example, picture.image, picture.captions[0], self._low_res_filter)
        write_texts(batch, first_row, batch.captions[first_row : first_row + len(examples)])
