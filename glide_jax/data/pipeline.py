"""The stateful pipeline: batches as a function of (seed, position), where position is one integer.

Example g of a run is made from the seed and g alone (`examples.TrainingExamples`). The batch at position p is
the examples p, p + 1, ..., p + batch_size - 1, so a run that goes on at p sees what it would have seen, with
any number of processes; each makes its own slice of every batch.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Self

from glide_jax.data.batch import Batch, Shapes, empty_batch
from glide_jax.data.config import DataConfig
from glide_jax.data.examples import Examples, TrainingExamples, ordered, streamed
from glide_jax.data.folder import Folder
from glide_jax.data.pictures import Pictures
from glide_jax.data.prefetch import Prefetcher, Task
from glide_jax.data.source import Source
from glide_jax.data.stream import ShardStream
from glide_jax.data.tfds import Tfds
from glide_jax.data.webdataset import WebDataset
from glide_jax.errors import GlideError

_DEPTH = 3  # batches in the making at any time
_MAX_THREADS = 16


_SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "webdataset": WebDataset,
    "folder": Folder,
    "tfds": Tfds,
    "stream": WebDataset,  # held-out samples must be the same every time, so their shards are indexed
}


def open_source(config: DataConfig) -> Source:
    """The samples of `config.path` by number; raises `GlideError` if there are none."""
    return _SOURCES[config.source](config)


class DataStream:
    """Endless training batches; see `open_data`.

    Attributes:
        position: examples consumed so far by all processes together: the whole state of the pipeline.
        examples_per_epoch: usable samples of the source; 0 for a stream, whose length nobody knows.
        wait_seconds: time the consumer has spent in `__next__`, for the data-wait share.
    """

    def __init__(
        self,
        pictures: Pictures,
        batches: Prefetcher[Batch],
        batch_size: int,
        position: int,
        close_source: Callable[[], None],
    ) -> None:
        self._pictures, self._batches, self._batch_size = pictures, batches, batch_size
        self._close_source = close_source
        self.position = position
        self.examples_per_epoch = len(pictures)
        self.wait_seconds = 0.0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        begun = time.perf_counter()
        batch = next(self._batches)
        self.wait_seconds += time.perf_counter() - begun
        self._pictures.check_bad_share()
        self.position += self._batch_size
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def epoch(self) -> float:
        """Passes over the source so far; 0 for a stream."""
        return self.position / self.examples_per_epoch if self.examples_per_epoch else 0.0

    @property
    def steps_per_epoch(self) -> float:
        """Batches a pass over the source."""
        return self.examples_per_epoch / self._batch_size

    def report(self) -> dict[str, int]:
        """Counters of this process since it started: see `Pictures.report`."""
        return self._pictures.report()

    def figures(self) -> dict[str, float | int]:
        """What a log line should say of the data: `examples` consumed, `epoch`, and `data/REASON` counters."""
        counters = {f"data/{reason}": count for reason, count in self.report().items()}
        return {"examples": self.position, "epoch": self.epoch, **counters}

    def close(self) -> None:
        """Ends the loading threads."""
        self._close_source()
        self._batches.close()


def open_data(
    config: DataConfig,
    *,
    image_size: int,
    low_res_size: int | None = None,
    text_ctx: int,
    batch_size: int,
    seed: int,
    position: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> DataStream:
    """Opens the training data of `config.path` and begins to load.

    Args:
        config: data set and transforms.
        image_size, low_res_size: sides in pixels; `low_res_size` adds the upsampler's input.
        text_ctx: tokens a caption.
        batch_size: examples a batch over all processes; each gets `batch_size / process_count` of them.
        seed: of order, crops, flips and caption dropout, in [0, 2^31).
        position: examples already consumed, as in `DataStream.position`.
        process_index, process_count: which slice of each batch this process makes.

    Raises:
        GlideError: impossible sizes, or no usable data; later, from `__next__`, if the share of unusable
            samples exceeds `config.bad_share` or no batch comes for `config.stall_seconds`.
    """
    shapes = Shapes(image_size, low_res_size, text_ctx)
    rows = process_rows(batch_size, process_index, process_count)
    if position < 0:
        raise GlideError(f"the data position must not be negative, got {position}")
    if config.source == "stream":
        config = replace(config, cache_mb=0)
        stream = ShardStream(config, seed, position, process_index, process_count)
        pictures, close = Pictures(stream, config, image_size), stream.close
        draw = streamed(pictures)
    else:
        pictures, close = Pictures(open_source(config), config, image_size), _nothing_to_close
        draw = ordered(pictures, config, seed)
    examples = TrainingExamples(draw, config, image_size, seed)
    numbers = (range(start + rows.start, start + rows.stop) for start in count(position, batch_size))
    batches = load_batches(examples, numbers, shapes, len(rows), config)
    return DataStream(pictures, batches, batch_size, position, close)


def _nothing_to_close() -> None:
    pass


def process_rows(batch_size: int, process_index: int, process_count: int) -> range:
    """The rows of a global batch that one process makes; raises `GlideError` if shares are unequal."""
    if batch_size < 1 or batch_size % process_count:
        raise GlideError(f"batch_size {batch_size} must be a positive multiple of {process_count} processes")
    if not 0 <= process_index < process_count:
        raise GlideError(f"process {process_index} is not one of {process_count} processes")
    size = batch_size // process_count
    return range(process_index * size, (process_index + 1) * size)


def load_batches(
    examples: Examples, numbers: Iterable[Sequence[int]], shapes: Shapes, rows: int, config: DataConfig
) -> Prefetcher[Batch]:
    """Batches of `rows` rows, made ahead of the consumer; batch k holds the examples `numbers[k]`.

    The rows of one batch are shared among all threads, so that the first batch comes soon and few are held.
    """
    threads = config.workers or min(_MAX_THREADS, os.cpu_count() or 1)

    def jobs() -> Iterator[tuple[Batch, list[Task]]]:
        for batch_numbers in numbers:
            batch = empty_batch(shapes, rows)
            share = -(-rows // threads)
            starts = range(0, len(batch_numbers), share)
            yield batch, [partial(examples.fill, batch, at, batch_numbers[at : at + share]) for at in starts]

    return Prefetcher(jobs(), threads=threads, depth=_DEPTH, stall_seconds=config.stall_seconds)
