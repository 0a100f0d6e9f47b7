"""Aspect-ratio buckets: which images are made which size, and which of them a batch holds.

A batch has one size, so it holds images of one bucket. In epoch e a bucket of n images has the batches from
floor(e n / B) to floor((e + 1) n / B) of its own endless order, where B is the batch size: what fills no batch waits
for the next epoch, and all images come equally often. A permutation of the epoch mixes the batches of all buckets. So
arithmetic on the counts of images finds the batch at any position, and no table of batches is kept.

Without `data.buckets` there is one bucket, the square: a batch holds what comes next in its order.
"""

from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32, UInt16, UInt32

from glide_jax import progress
from glide_jax.data.order import Order, generator
from glide_jax.data.shards.index import Index, IndexFile
from glide_jax.data.source import Source
from glide_jax.data.transforms import Size

_CHUNK = 1000  # images that a thread measures at a time
_BAR_FROM = 4  # chunks to measure for a progress bar to be worth showing
_THREADS = 16


class Bucket(NamedTuple):
    """Images that are made one size: that size, their numbers in the source, and their order."""

    size: Size
    samples: Sequence[int] | UInt32[np.ndarray, " samples"]
    order: Order


class Turn(NamedTuple):
    """What a batch holds: example g is number g + shift of the bucket's order."""

    bucket: Bucket
    shift: int


class Buckets:
    """All buckets of a source, and whose turn it is at each position.

    Args:
        sizes: at least one.
        assigned: for each sample the number of its size; None where there is but one.
        count: samples of the source; 0 for a stream, whose length nobody knows.
        seed: keys the orders.
    """

    def __init__(
        self, sizes: Sequence[Size], assigned: UInt16[np.ndarray, " samples"] | None, count: int, seed: int
    ) -> None:
        self._sizes, self._assigned, self._seed = sizes, assigned, seed
        if assigned is None:
            self._buckets = [Bucket(sizes[0], range(count or 1), Order(count or 1, seed))]
            return
        members = [np.flatnonzero(assigned == number).astype(np.uint32) for number in range(len(sizes))]
        self._buckets = [
            Bucket(size, samples, Order(len(samples), seed, f"order {size}"))
            for size, samples in zip(sizes, members, strict=True)
        ]

    @property
    def counts(self) -> dict[Size, int]:
        """The number of images of each size; 1 for a stream."""
        return {bucket.size: len(bucket.samples) for bucket in self._buckets}

    def size_of(self, sample: int) -> Size:
        """What a sample of the source is made."""
        return self._sizes[0 if self._assigned is None else int(self._assigned[sample])]

    def turn(self, position: int, batch_size: int, resampled: bool = False) -> Turn:
        """What the batch of the examples from `position` on holds.

        Args:
            position: with several buckets, that of the `position // batch_size`-th batch of a run.
            batch_size: examples of a batch, over all processes.
            resampled: the bucket is drawn, in proportion to its images.
        """
        if self._assigned is None:
            return Turn(self._buckets[0], 0)
        batch = position // batch_size
        if resampled:
            sample = int(generator(self._seed, "bucket", batch).integers(len(self._assigned)))
            return Turn(self._buckets[int(self._assigned[sample])], 0)
        bucket, number = self._scheduled(batch, batch_size)
        return Turn(bucket, number * batch_size - position)

    def _scheduled(self, batch: int, batch_size: int) -> tuple[Bucket, int]:
        """The bucket of a run's batch, and the number of the batch among that bucket's own."""
        images = sum(self.counts.values())

        def begun(epoch: int) -> int:
            return sum(self._batches_before(epoch, batch_size))

        # Before epoch e there are more than e images / batch_size - len(buckets) batches, and no more than the former.
        first = batch * batch_size // images
        epochs = range(first, first + len(self._buckets) * batch_size // images + 2)
        epoch = epochs[bisect_right(epochs, batch, key=begun) - 1]
        before, after = (self._batches_before(e, batch_size) for e in (epoch, epoch + 1))
        total = sum(after) - sum(before)
        at = Order(total, self._seed, "batches")[epoch * total + batch - sum(before)]
        for bucket, start, end in zip(self._buckets, before, after, strict=True):
            if at < end - start:
                return bucket, start + at
            at -= end - start
        raise AssertionError("an epoch has as many batches as its buckets have")

    def _batches_before(self, epoch: int, batch_size: int) -> list[int]:
        """Batches that each bucket has had before an epoch."""
        return [epoch * len(bucket.samples) // batch_size for bucket in self._buckets]


def open_buckets(source: Source, sizes: Sequence[Size], seed: int, *, revalidate: bool = False) -> Buckets:
    """The buckets of a source; with several sizes the header of each image is read, unless the cache has its size.

    Args:
        source: the samples.
        sizes: of the buckets, no two of one aspect ratio.
        seed: keys the orders.
        revalidate: reads all headers anew.
    """
    if len(sizes) == 1:
        return Buckets(sizes, None, len(source), seed)
    sizes = sorted(sizes, key=lambda size: size.aspect)
    return Buckets(sizes, nearest(sizes, measured(source, revalidate)), len(source), seed)


def nearest(sizes: Sequence[Size], images: Int32[np.ndarray, "samples 2"]) -> UInt16[np.ndarray, " samples"]:
    """For each image the number of the size whose aspect ratio is nearest by its logarithm.

    Args:
        sizes: of increasing width / height.
        images: height and width of each; 0 where they are not known, which counts as a square.
    """
    heights, widths = images.T
    aspects = np.divide(widths, heights, out=np.ones(len(images)), where=heights > 0)
    logarithms = np.log([size.aspect for size in sizes])
    borders = (logarithms[1:] + logarithms[:-1]) / 2
    return np.searchsorted(borders, np.log(aspects)).astype(np.uint16)


def measured(source: Source, revalidate: bool = False) -> Int32[np.ndarray, "samples 2"]:
    """Height and width of each image by its header, kept beside the shards' indexes; 0 where it cannot be read.

    Such an image is left to fail, and be counted, when it is to be trained on.
    """
    sizes, start = np.zeros((len(source), 2), np.int32), 0
    chunks: list[tuple[IndexFile, range, range]] = []
    for part in source.parts():
        file, samples = IndexFile("sizes", part.identity, part.stamp), range(start, start + part.samples)
        index, start = None if revalidate else file.load(), samples.stop
        if index is not None and len(index.rows) == part.samples:
            sizes[samples.start : samples.stop] = index.rows
        else:
            chunks += [(file, samples, samples[at : at + _CHUNK]) for at in range(0, part.samples, _CHUNK)]

    def measure(chunk: tuple[IndexFile, range, range]) -> Int[np.ndarray, "chunk 2"]:
        return np.array([_height_and_width(source, sample) for sample in chunk[2]])

    with ThreadPoolExecutor(_THREADS) as pool:
        found = progress.tracked("measuring images", pool.map(measure, chunks), len(chunks), _BAR_FROM)
        for (file, samples, chunk), rows in zip(chunks, found, strict=True):
            sizes[chunk.start : chunk.stop] = rows
            if chunk.stop == samples.stop:
                file.save(Index(sizes[samples.start : samples.stop], {}))
    return sizes


def _height_and_width(source: Source, sample: int) -> tuple[int, int]:
    try:
        width, height = source.image_size(sample)
    except Exception:  # whatever a file system or a library may raise, it is one sample
        return 0, 0
    return height, width
