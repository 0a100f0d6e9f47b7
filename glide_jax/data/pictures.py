"""Decoded pictures of a source by number: kept in memory if all fit, the unusable ones counted."""

import threading
from collections import Counter
from typing import NamedTuple

import numpy as np
from PIL import Image

from glide_jax.data import transforms
from glide_jax.data.config import DataConfig
from glide_jax.data.source import BadSample, Source, listed
from glide_jax.errors import GlideError
from glide_jax.images import Decoded

_BAD_SHARE_FROM = 100  # samples read before the share of bad ones means anything


class Picture(NamedTuple):
    """An RGB picture as far as it can be made without a random draw, and its captions."""

    image: Image.Image
    captions: tuple[str, ...]


class Pictures:
    """Reads and decodes samples; safe to use from several threads.

    Unless `crop="random"` a picture is already cropped and resized to `image_size`; otherwise it is whole, and a
    JPEG is decoded at the smallest scale that leaves every possible crop twice `image_size`.

    Attributes:
        counts: `read`, the samples asked for since the start, and the unusable ones among them by reason.
    """

    def __init__(self, source: Source, config: DataConfig, image_size: int) -> None:
        self._source, self._config, self._size = source, config, image_size
        self._side = transforms.decoding_side(image_size, config.crop, config.resize_ratio)
        self._memory = _Memory(config.cache_mb * 10**6)
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter(read=0)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Picture:
        """Picture `index` of the source.

        Raises:
            BadSample: it is unusable; it has been counted.
        """
        with self._lock:
            self.counts["read"] += 1
        try:
            return self._memory.get(index) or self._memory.keep(index, self._read(index))
        except BadSample as bad:
            self._count(str(bad))
            raise
        except GlideError:
            raise
        except Exception as error:  # whatever a file system or a library may raise, it is one sample that is lost
            reason = f"failed with {type(error).__name__}"
            self._count(reason)
            raise BadSample(reason) from error

    def report(self) -> dict[str, int]:
        """`usable` and `read` samples, and by reason those left out at the opening or found unusable since.

        Samples are read, and counted, a few batches ahead of their use.
        """
        with self._lock:
            return dict(Counter(usable=len(self)) + Counter(self._source.counts) + self.counts)

    def check_bad_share(self) -> None:
        """Raises `GlideError` with the counts if more than `bad_share` of the samples read were unusable."""
        with self._lock:
            bad = Counter(self.counts)
        read = bad.pop("read")
        if bad.total() > self._config.bad_share * max(read, _BAD_SHARE_FROM):
            raise GlideError(
                f"{bad.total()} of {read} samples were unusable ({listed(bad)}), more than data.bad_share "
                f"{self._config.bad_share:g} allows; repair the data or raise it"
            )

    def _count(self, reason: str) -> None:
        with self._lock:
            self.counts[reason] += 1

    def _read(self, index: int) -> Picture:
        sample = self._source[index]
        return Picture(self._prepared(sample.image), sample.captions)

    def _prepared(self, data: bytes) -> Image.Image:
        if self._config.trim_white:  # how much of a picture is border is known only when it is decoded
            image = transforms.trim_white(transforms.decode(data))
            decoded = Decoded(image, *image.size, reduction=1)
        else:
            decoded = transforms.decode_reduced(data, self._side)
        if self._config.crop == "random":
            return decoded.image
        box = transforms.whole_box if self._config.crop == "squash" else transforms.center_box
        return transforms.resize_crop_reduced(decoded, box(decoded.width, decoded.height), self._size)


class _Memory:
    """Pictures by number while all of them fit into `budget` bytes; once one does not, none, for good.

    A part of a set that is read in random order would cost memory and save little.
    """

    def __init__(self, budget: int) -> None:
        self._free = budget
        self._kept: dict[int, tuple[np.ndarray, tuple[str, ...]]] = {}
        self._lock = threading.Lock()

    def get(self, index: int) -> Picture | None:
        kept = self._kept.get(index)
        return kept and Picture(Image.fromarray(kept[0]), kept[1])

    def keep(self, index: int, picture: Picture) -> Picture:
        size = 3 * picture.image.width * picture.image.height
        with self._lock:
            if size > self._free:
                self._free = 0
                self._kept.clear()
            elif index not in self._kept:
                self._free -= size
                self._kept[index] = np.asarray(picture.image), picture.captions
        return picture
