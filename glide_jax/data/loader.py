"""The pipeline: batches as a function of (seed, position), prepared ahead of their consumer by a few threads.

Example g of a run depends only on the seed and g (`examples.TrainingExamples`; with `buckets`, also on the batch size).
The batch at position p consists of examples p, p + 1, ..., p + batch_size - 1, so a run resumed at p sees what it would
have seen, with any number of processes; each makes its own slice of every batch.
"""

import math
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, Self

from glide_jax.data.buckets import Buckets, open_buckets
from glide_jax.data.config import DataConfig
from glide_jax.data.examples import Batch, Images, PlainExamples, Shapes, TrainingExamples, empty_batch
from glide_jax.data.order import Order
from glide_jax.data.prefetch import Prefetcher, Task
from glide_jax.data.source import Share, Source, source_type
from glide_jax.errors import GlideError

_DEPTH = 3  # batches being prepared at any time
_MAX_THREADS = 16

# A batch's shapes, the function that fills its rows from a given one on, and its examples.
Work = tuple[Shapes, Callable[[Batch, int, Sequence[int]], None], Sequence[int]]


def _load(work: Iterable[Work], rows: int, config: DataConfig) -> Prefetcher[Batch]:
    """Batches of `rows` rows, filled by threads.

    All threads share the rows of a batch, so that the first batch comes soon and few are held in memory.
    """
    threads = config.workers or min(_MAX_THREADS, os.cpu_count() or 1)

    def jobs() -> Iterator[tuple[Batch, list[Task]]]:
        for shapes, fill, numbers in work:
            batch = empty_batch(shapes, rows)
            share = -(-rows // threads)
            yield batch, [partial(fill, batch, at, numbers[at : at + share]) for at in range(0, len(numbers), share)]

    return Prefetcher(jobs(), threads=threads, depth=_DEPTH, stall_seconds=config.stall_seconds)


class DataStream:
    """Endless training batches; see `open_data`.

    Attributes:
        position: examples consumed so far by all processes together; this is the entire state of the pipeline.
        examples_per_epoch: usable samples in the source; 0 for a stream, whose length is unknown.
        buckets: the sizes they are brought to.
        wait_seconds: time the consumer has spent waiting in `__next__`.
    """

    def __init__(
        self, images: Images, batches: Prefetcher[Batch], batch_size: int, position: int, buckets: Buckets
    ) -> None:
        self._images, self._batches, self._batch_size = images, batches, batch_size
        self.position, self.buckets = position, buckets
        self.examples_per_epoch = images.usable
        self.wait_seconds = 0.0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        begun = time.perf_counter()
        batch = next(self._batches)
        self.wait_seconds += time.perf_counter() - begun
        self._images.check_bad_share()
        self.position += self._batch_size
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def left_out(self) -> Counter[str]:
        """The samples left out when the source was opened, by reason."""
        return self._images.source.counts

    @property
    def fingerprint(self) -> int:
        """CRC-32 of how many samples the source's parts and the buckets have; it differs between most data sets."""
        counts = [part.samples for part in self._images.source.parts()]
        return zlib.crc32(repr((counts, self.buckets.fingerprint)).encode())

    @property
    def epoch(self) -> float:
        """Passes over the source so far; 0 for a stream."""
        return self.position / self.examples_per_epoch if self.examples_per_epoch else 0.0

    def report(self) -> dict[str, int]:
        """Counters of this process since it started: see `Images.report`."""
        return self._images.report()

    def faults(self) -> dict[str, int]:
        """Samples that this process found unusable since it started, by reason."""
        return self._images.faults()

    def figures(self) -> dict[str, float | int]:
        """Figures for a log line: `examples` consumed, `epoch`, and `data/REASON` counters."""
        counters = {f"data/{reason}": count for reason, count in self.report().items()}
        return {"examples": self.position, "epoch": self.epoch, **counters}

    def close(self) -> None:
        """Ends the loading threads."""
        self._images.source.close()
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
    """Opens the training data at `config.path` and starts loading.

    Args:
        config: data set and transforms.
        image_size, low_res_size: sides in pixels; `low_res_size` adds an upsampler's input. With `config.buckets`, only
            their ratio is used.
        text_ctx: tokens a caption.
        batch_size: examples per batch over all processes; each gets `batch_size / process_count` of them.
        seed: seed of order, crops, flips and caption dropout, in [0, 2^31).
        position: examples already consumed (`DataStream.position`).
        process_index, process_count: the slice of each batch to make in this process.

    Raises:
        GlideError: impossible sizes, no usable data, or an image that cannot be measured for its bucket; later, from
            `__next__`, the share of unusable samples exceeds `config.bad_share`, or no batch arrives for
            `config.stall_seconds`.
    """
    shapes, share = Shapes(image_size, text_ctx, low_res_size), Share(seed, position, process_index, process_count)
    rows, by_size = share.rows(batch_size), {size: replace(shapes, bucket=size) for size in config.sizes}
    by_size = by_size or {shapes.image: shapes}
    source = source_type(config.source)(config, share)
    buckets = open_buckets(source, list(by_size), seed, revalidate=config.revalidate)
    images = Images(source, config, buckets.left_out)
    if config.source == "folder":
        images.check_few(next(iter(by_size)))
    examples = TrainingExamples(images, config, seed)

    def work() -> Iterator[Work]:
        for start in count(position, batch_size):
            turn = buckets.turn(start, batch_size, config.resampled)
            numbers = range(start + rows.start, start + rows.stop)
            yield by_size[turn.bucket.size], partial(examples.fill, turn), numbers

    return DataStream(images, _load(work(), len(rows), config), batch_size, position, buckets)


def open_indexed(config: DataConfig) -> Source:
    """The samples at `config.path` by number, always in the same order; raises `GlideError` if there are none.

    A stream's shards get indexed, so they must be on disk.
    """
    return source_type(source_type(config.source).indexed or config.source)(config)


class ValidationData:
    """Every sample once per pass, in source order, centre-cropped, with its caption; see `open_validation`.

    All batches have the same shape: rows past the end and unusable samples have weight 0. `index` is the sample's
    number in the source.
    """

    def __init__(self, images: Images, config: DataConfig, shapes: Shapes, batch_size: int, rows: range) -> None:
        self._images, self._config, self._shapes = images, config, shapes
        self._batch_size, self._rows = batch_size, rows

    def __len__(self) -> int:
        """Batches per pass, the same in every process."""
        return math.ceil(len(self._images) / self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        samples = range(len(self._images))
        starts = range(0, len(samples), self._batch_size)
        numbers = (samples[start + self._rows.start : start + self._rows.stop] for start in starts)
        fill = PlainExamples(self._images, self._config.low_res_filter).fill
        batches = _load(((self._shapes, fill, each) for each in numbers), len(self._rows), self._config)
        try:
            yield from batches
        finally:
            batches.close()
        self._images.check_bad_share()


def open_validation(
    config: DataConfig, *, batch_size: int, process_index: int = 0, process_count: int = 1, **sizes: Any
) -> ValidationData:
    """Opens the held-out data at `config.validation_path`; arguments (and `sizes`) and errors as for `open_data`."""
    if not config.validation_path:
        raise GlideError("no validation data given: add --config.data.validation_path=FOLDER")
    config, shapes = replace(config.plain(), path=config.validation_path), Shapes(**sizes)
    rows = Share(process_index=process_index, process_count=process_count).rows(batch_size)
    images = Images(open_indexed(config), config)
    return ValidationData(images, config, shapes, batch_size, rows)


def fixed_examples(config: DataConfig, count: int, *, seed: int = 0, **sizes: Any) -> Batch:
    """Up to `count` different samples from `config.path`, chosen by `seed`, without augmentation.

    Unusable samples are skipped, so there are fewer rows only if the source has fewer usable ones. From a stream, the
    first ones are taken. `sizes` and errors as for `open_data`.
    """
    config, shapes = config.plain(), Shapes(**sizes)
    if not source_type(config.source).resumable:
        config = replace(config, shuffle_buffer=1)
        with open_data(config, **sizes, batch_size=count, seed=seed) as stream:
            return next(stream)
    images = Images(open_indexed(config), config)
    examples, order = PlainExamples(images, config.low_res_filter), Order(len(images), seed)
    batch, row = empty_batch(shapes, count), 0
    for number in range(len(images)):
        if row == count:
            break
        examples.fill(batch, row, [order[number]])
        row += int(batch.arrays["weight"][row])
    return Batch({name: array[:row] for name, array in batch.arrays.items()}, batch.captions[:row])
