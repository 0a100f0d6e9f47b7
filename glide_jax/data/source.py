"""What a data source is, captioned image files by number, and the registry of those there are."""

import importlib
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from glide_jax import images
from glide_jax.errors import GlideError

# By the name in `data.source`, the module in `sources/`, imported when it is used, and the class.
SOURCES = {
    "webdataset": ("webdataset", "WebDataset"),
    "folder": ("folder", "Folder"),
    "tfds": ("tfds", "Tfds"),
    "stream": ("stream", "ShardStream"),
}

PART = 10_000  # samples of a part at most, where nothing else divides them


class Sample(NamedTuple):
    """An encoded image file and the captions it may go under: at least one, none of them empty."""

    image: bytes
    captions: tuple[str, ...]


class BadSample(Exception):
    """A sample that cannot be used; its message is the reason under which it is counted."""


class Unavailable(BadSample):
    """A sample that cannot be read now, but may be another time."""


class Part(NamedTuple):
    """Samples in a row of which something may be kept in a cache.

    Attributes:
        identity: what they are, as JSON values.
        stamp: integers that change when the data do.
        samples: how many they are.
    """

    identity: Sequence[Any]
    stamp: Sequence[int]
    samples: int


class Share(NamedTuple):
    """Which part of a run's examples a process makes: those from `position` on, of each batch its own rows."""

    seed: int = 0
    position: int = 0
    process_index: int = 0
    process_count: int = 1

    def rows(self, batch_size: int) -> range:
        """The rows of a global batch that this process makes; raises `GlideError` if shares are unequal."""
        if self.position < 0:
            raise GlideError(f"the data position must not be negative, got {self.position}")
        if batch_size < 1 or batch_size % self.process_count:
            raise GlideError(f"batch_size {batch_size} must be a positive multiple of {self.process_count} processes")
        if not 0 <= self.process_index < self.process_count:
            raise GlideError(f"process {self.process_index} is not one of {self.process_count} processes")
        size = batch_size // self.process_count
        return range(self.process_index * size, (self.process_index + 1) * size)


WHOLE = Share()  # of one process, from the start


class Source(ABC):
    """The samples that passed the filters; order, transforms, faults and resuming are not its care.

    Attributes:
        resumable: whether a number always gives the same sample. Otherwise `[...]` gives the next one whatever the
            number, and the length is 0, for not known.
        indexed: of a source that is not resumable, the name of the one that reads the same path by number.
        counts: why samples were left out when the source was opened, by reason.
    """

    resumable: ClassVar[bool] = True
    indexed: ClassVar[str] = ""
    counts: Counter[str]

    @abstractmethod
    def __init__(self, config: Any, share: Share = WHOLE) -> None:
        """Opens the samples of `config.path`, a `DataConfig`'s; raises `GlideError` if there are none.

        Only a source that is not resumable reads just its `share` of them.
        """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample `index` in [0, len); safe to call from several threads.

        Raises:
            BadSample: it cannot be read now, or has no caption.
        """

    def parts(self) -> list[Part]:
        """All samples in order; a source that is not resumable has no parts."""
        return []

    def image_size(self, index: int) -> tuple[int, int]:
        """Width and height of an image in pixels, read without more of the sample than is needed.

        Raises:
            BadSample: it is damaged, or cannot be read now.
        """
        return image_size(self[index].image)

    def close(self) -> None:  # noqa: B027 (most have nothing to end)
        """Ends what reads ahead, if anything does."""


def source_type(name: str) -> type[Source]:
    """The class of a source in `SOURCES`."""
    module, cls = SOURCES[name]
    return getattr(importlib.import_module(f"glide_jax.data.sources.{module}"), cls)


def image_size(image: bytes | Path) -> tuple[int, int]:
    """Width and height of an image in pixels by its header; raises `BadSample`."""
    try:
        return images.image_size(image)
    except images.UnreadableImage as error:
        kind = Unavailable if error.reason == "unreadable file" else BadSample
        raise kind(error.reason) from error


def usable_captions(value: Any) -> tuple[str, ...]:
    """The captions in a text, its UTF-8 bytes, a finite number, or a list of such, stripped; all else is none.

    Raises:
        BadSample: there is none, or one is not text that UTF-8 can write (half a surrogate pair, another encoding).
    """
    try:
        texts = [_text(entry).strip() for entry in (value if isinstance(value, list | tuple) else [value])]
        for text in texts:
            text.encode("utf-8")
    except UnicodeError as error:
        raise BadSample("caption is not UTF-8") from error
    if not any(texts):
        raise BadSample("empty caption")
    return tuple(filter(None, texts))


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8-sig")
    if isinstance(value, float) and not math.isfinite(value):  # JSON writers turn missing values into NaN
        return ""
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def listed(counts: Counter[str]) -> str:
    """Reasons with their counts, the most frequent first."""
    return ", ".join(f"{reason}: {count}" for reason, count in counts.most_common())
