"""Aspect-ratio buckets: the size each image is brought to, and the images of each batch.

A batch has one size, so it holds images of one bucket. In epoch e, a bucket of n images provides the batches from
floor(e n / B) to floor((e + 1) n / B) of its own endless order, where B is the batch size: images that do not fill a
batch wait for the next epoch, and all images come equally often. A permutation of the epoch mixes the batches of all
buckets. The batch at any position therefore follows from the counts of images, without a table of batches.

Without `data.buckets` there is a single bucket, the square, and batches follow its order.
"""

import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt16, UInt32

from glide_jax.data.index_file import Index, IndexFile
from glide_jax.data.order import Order, generator
from glide_jax.data.source import BadSample, Source, Unavailable, listed
from glide_jax.data.threads import map_samples
from glide_jax.data.transforms import Size
from glide_jax.errors import GlideError, first_line

Samples = Sequence[int] | UInt32[np.ndarray, " samples"]


class Bucket(NamedTuple):
    """The images of one size: the size, their numbers in the source, and their order."""

    size: Size
    samples: Samples
    order: Order


class Turn(NamedTuple):
    """The content of a batch.

    Attributes:
        bucket: whose images.
        shift: example g is number g + shift of the bucket's order.
        every: the images of all buckets, for where this one has no usable ones.
    """

    bucket: Bucket
    shift: int
    every: Samples


class Buckets:
    """All buckets of a source, and the one that provides the batch at each position.

    Attributes:
        counts: the number of images of each size; 1 for a stream.
        left_out: samples in no bucket, by reason.

    Args:
        sizes: at least one.
        assigned: for each sample the number of its size, or `len(sizes)` if it is left out; None if all samples have
            the only size.
        count: samples in the source; 0 for a stream, whose length is unknown.
        seed: keys the orders.
        left_out: see the attribute.
    """

    def __init__(
        self,
        sizes: Sequence[Size],
        assigned: UInt16[np.ndarray, " samples"] | None,
        count: int,
        seed: int,
        left_out: Counter[str] | None = None,
    ) -> None:
        self._assigned, self._seed = assigned, seed
        self.left_out = left_out or Counter[str]()
        self._every: Samples = range(count or 1)
        if assigned is None:
            self._buckets = [Bucket(sizes[0], self._every, Order(count or 1, seed))]
        else:
            self._ends = np.cumsum(np.bincount(assigned, minlength=len(sizes))[: len(sizes)])
            self._every = np.argsort(assigned, kind="stable")[: self._ends[-1]].astype(np.uint32)
            self._buckets = [
                Bucket(size, samples, Order(len(samples), seed, f"order {size}"))
                for size, samples in zip(sizes, np.split(self._every, self._ends[:-1]), strict=True)
            ]
        self.counts = {bucket.size: len(bucket.samples) for bucket in self._buckets}

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything besides the seed that decides the order of images, as JSON values; empty for a single size."""
        if self._assigned is None:
            return {}
        counts = {str(size): count for size, count in self.counts.items()}
        return {"counts": counts, "crc32": zlib.crc32(self._assigned.tobytes())}

    def turn(self, position: int, batch_size: int, resampled: bool = False) -> Turn:
        """The content of the batch of examples from `position` on.

        Args:
            position: with several buckets, it stands for the `position // batch_size`-th batch of a run.
            batch_size: examples per batch, over all processes.
            resampled: whether to draw the bucket at random, in proportion to its images.
        """
        if self._assigned is None:
            return Turn(self._buckets[0], 0, self._every)
        batch = position // batch_size
        if resampled:
            number = int(generator(self._seed, "bucket", batch).integers(len(self._every)))
            return Turn(self._buckets[bisect_right(self._ends, number)], 0, self._every)
        bucket, number = self._scheduled(batch, batch_size)
        return Turn(bucket, number * batch_size - position, self._every)

    def _scheduled(self, batch: int, batch_size: int) -> tuple[Bucket, int]:
        """The bucket of a run's batch, and the batch's number within that bucket."""
        epoch = self._epoch_of(batch, batch_size)
        before, after = (self._batches_before(e, batch_size) for e in (epoch, epoch + 1))
        total = sum(after) - sum(before)
        at = Order(total, self._seed, "batches")[epoch * total + batch - sum(before)]
        for bucket, start, end in zip(self._buckets, before, after, strict=True):
            if at < end - start:
                return bucket, start + at
            at -= end - start
        raise AssertionError("an epoch has as many batches as its buckets have")

    def _epoch_of(self, batch: int, batch_size: int) -> int:
        """The last epoch before which there are no more than `batch` batches.

        Before epoch e there are at most e images / batch_size of them, and less than one per bucket fewer.
        """
        images = len(self._every)
        first = batch * batch_size // images
        epochs = range(first, first + len(self._buckets) * batch_size // images + 2)
        return epochs[bisect_right(epochs, batch, key=lambda e: sum(self._batches_before(e, batch_size))) - 1]

    def _batches_before(self, epoch: int, batch_size: int) -> list[int]:
        """The batches of each bucket before an epoch."""
        return [epoch * count // batch_size for count in self.counts.values()]


def open_buckets(source: Source, sizes: Sequence[Size], seed: int, *, revalidate: bool = False) -> Buckets:
    """The buckets of a source; with several sizes, every image's header is read, unless its size is cached.

    Args:
        source: the samples.
        sizes: sizes of the buckets, no two with the same aspect ratio.
        seed: keys the orders.
        revalidate: whether to read all headers again.

    Raises:
        GlideError: as for `measured`, or no image has a size.
    """
    if len(sizes) == 1:
        return Buckets(sizes, None, len(source), seed)
    sizes = sorted(sizes, key=lambda size: size.aspect)
    images, left_out = measured(source, revalidate)
    if left_out.total() == len(source):
        raise GlideError(f"no image has a size that can be read ({listed(left_out)}); check what is in data.path")
    return Buckets(sizes, nearest(sizes, images), len(source), seed, left_out)


def nearest(sizes: Sequence[Size], images: Int32[np.ndarray, "samples 2"]) -> UInt16[np.ndarray, " samples"]:
    """For each image, the number of the size with the nearest aspect ratio on a log scale, the higher of two equally
    near ones; `len(sizes)` for an image without a size.

    Args:
        sizes: of increasing width / height.
        images: height and width of each, 0 if unknown.
    """
    heights, widths = images.T.astype(np.int64)
    # Compares squares of aspect ratios, which are quotients of integers, so that rounding cannot decide.
    borders = [(a.width * b.width) / (a.height * b.height) for a, b in pairwise(sizes)]
    squares = np.divide(widths**2, heights**2, out=np.ones(len(images)), where=heights > 0)
    return np.where(heights > 0, np.searchsorted(borders, squares), len(sizes)).astype(np.uint16)


def measured(source: Source, revalidate: bool = False) -> tuple[Int32[np.ndarray, "samples 2"], Counter[str]]:
    """Height and width of each image according to its header, cached next to the shards' indexes.

    They are 0 for a damaged image, and the reasons are counted. An interrupted call's results are reused by the next.

    Raises:
        GlideError: an image cannot be read now.
    """
    # The samples of each part; a part may occur several times, as prior preservation repeats folders.
    places: dict[IndexFile, list[range]] = {}
    start = 0
    for part in source.parts():
        samples = range(start, start + part.samples)
        places.setdefault(IndexFile.of("sizes", part.identity, part.stamp), []).append(samples)
        start = samples.stop

    indexes: dict[IndexFile, Index] = {}
    pending: dict[IndexFile, range] = {}
    for file, (samples, *_) in places.items():
        index = None if revalidate else file.load()
        if index is not None and len(index.rows) == len(samples):
            indexes[file] = index
        elif samples:
            pending[file] = samples
    with closing(map_samples("measuring images", partial(_measured, source), list(pending.values()))) as found:
        for file, samples in pending.items():
            sizes, faults = zip(*islice(found, len(samples)), strict=True)
            indexes[file] = Index(np.array(sizes, np.int32), dict(Counter(filter(None, faults))))
            file.save(indexes[file])

    every, left_out = np.zeros((len(source), 2), np.int32), Counter[str]()
    for file, index in indexes.items():
        for samples in places[file]:
            every[samples.start : samples.stop] = index.rows
            left_out.update(index.counts)
    return every, left_out


def _measured(source: Source, sample: int) -> tuple[tuple[int, int], str]:
    """Height and width of an image, 0 if it is damaged, and why."""
    try:
        width, height = source.image_size(sample)
    except Unavailable as error:
        raise _unmeasured(sample, error) from error
    except BadSample as bad:
        return (0, 0), str(bad)
    except Exception as error:  # file systems and libraries raise nearly anything
        raise _unmeasured(sample, error) from error
    return (height, width), ""


def _unmeasured(sample: int, error: Exception) -> GlideError:
    why = first_line(error)
    return GlideError(f"data.buckets: cannot read the size of image {sample} now ({why}); fix this and start again")
