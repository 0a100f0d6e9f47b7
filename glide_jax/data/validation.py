"""Held-out batches in a fixed order, and a few fixed samples to look at."""

import math
from collections.abc import Iterator
from dataclasses import replace

from glide_jax.data.batch import Batch, Shapes, empty_batch
from glide_jax.data.config import DataConfig
from glide_jax.data.examples import PlainExamples
from glide_jax.data.order import Order
from glide_jax.data.pictures import Pictures
from glide_jax.data.pipeline import load_batches, open_data, open_source, process_rows
from glide_jax.errors import GlideError


class ValidationData:
    """Every sample once a pass, in source order, centre-cropped, with its caption; see `open_validation`.

    All batches have one shape: rows past the end, and unusable samples, have weight 0. `index` is the number
    of the sample in the source.
    """

    def __init__(self, pictures: Pictures, config: DataConfig, shapes: Shapes, batch_size: int, rows: range) -> None:
        self._pictures, self._config, self._shapes = pictures, config, shapes
        self._batch_size, self._rows = batch_size, rows

    def __len__(self) -> int:
        """Batches a pass, the same for every process."""
        return math.ceil(len(self._pictures) / self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        samples = range(len(self._pictures))
        starts = range(0, len(samples), self._batch_size)
        numbers = (samples[start + self._rows.start : start + self._rows.stop] for start in starts)
        examples = PlainExamples(self._pictures, self._config.low_res_filter)
        batches = load_batches(examples, numbers, self._shapes, len(self._rows), self._config)
        try:
            yield from batches
        finally:
            batches.close()
        self._pictures.check_bad_share()

    def report(self) -> dict[str, int]:
        """Counters of this process over all passes: see `Pictures.report`."""
        return self._pictures.report()


def open_validation(
    config: DataConfig,
    *,
    image_size: int,
    low_res_size: int | None = None,
    text_ctx: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> ValidationData:
    """Opens the held-out data of `config.validation_path`; arguments and errors are those of `open_data`."""
    if not config.validation_path:
        raise GlideError("no validation data given: add --config.data.validation_path=FOLDER")
    config = _plain(replace(config, path=config.validation_path))
    shapes = Shapes(image_size, low_res_size, text_ctx)
    rows = process_rows(batch_size, process_index, process_count)
    return ValidationData(Pictures(open_source(config), config, image_size), config, shapes, batch_size, rows)


def fixed_examples(
    config: DataConfig,
    count: int,
    *,
    image_size: int,
    low_res_size: int | None = None,
    text_ctx: int,
    seed: int = 0,
) -> Batch:
    """Up to `count` different samples of `config.path` drawn by `seed`, plain: prompts and true pictures.

    Unusable samples are passed over, so there are fewer rows only if the source has fewer usable ones.
    Of a stream they are the first that come. Raises `GlideError` as `open_data`.
    """
    if config.source == "stream":
        with open_data(
            replace(_plain(config), shuffle_buffer=1),
            image_size=image_size,
            low_res_size=low_res_size,
            text_ctx=text_ctx,
            batch_size=count,
            seed=seed,
        ) as stream:
            return next(stream)
    pictures = Pictures(open_source(config), _plain(config), image_size)
    batch = empty_batch(Shapes(image_size, low_res_size, text_ctx), count)
    examples, order, row = PlainExamples(pictures, config.low_res_filter), Order(len(pictures), seed), 0
    for number in range(len(pictures)):
        if row == count:
            break
        examples.fill(batch, row, [order[number]])
        row += int(batch.arrays["weight"][row])
    return Batch({name: array[:row] for name, array in batch.arrays.items()}, batch.captions[:row])


def _plain(config: DataConfig) -> DataConfig:
    return replace(config, crop="center", hflip_p=0.0, uncond_p=0.0)
