"""The interface of a data source, which provides captioned image files by number, and the registry of sources."""

import importlib
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from glide_jax import images
from glide_jax.errors import GlideError

# For each `data.source`, the module in `sources/`, imported on use, and the class.
SOURCES = {
    "webdataset": ("webdataset", "WebDataset"),
    "folder": ("folder", "Folder"),
    "tfds": ("tfds", "Tfds"),
    "stream": ("stream", "ShardStream"),
}

PART = 10_000  # samples per part, if nothing else divides them


class Sample(NamedTuple):
    """An encoded image file and its alternative captions: at least one, none of them empty."""

    image: bytes
    captions: tuple[str, ...]


class BadSample(Exception):
    """A sample cannot be used; the message is the reason it is counted under."""


class Unavailable(BadSample):
    """A sample cannot be read now, but perhaps later."""


class Part(NamedTuple):
    """Consecutive samples about which something may be cached.

    Attributes:
        identity: identifies them, as JSON values.
        stamp: integers that change with the data.
        samples: their number.
    """

    identity: Sequence[Any]
    stamp: Sequence[int]
    samples: int


class Share(NamedTuple):
    """The examples of a run that a process makes: from `position` on, its own rows of each batch."""

    seed: int = 0
    position: int = 0
    process_index: int = 0
    process_count: int = 1

    def rows(self, batch_size: int) -> range:
        """The rows of a global batch made by this process; raises `GlideError` if the shares are unequal."""
        if self.position < 0:
            raise GlideError(f"the data position must not be negative, got {self.position}")
        if batch_size < 1 or batch_size % self.process_count:
            raise GlideError(f"batch_size {batch_size} must be a positive multiple of {self.process_count} processes")
        if not 0 <= self.process_index < self.process_count:
            raise GlideError(f"process {self.process_index} is not one of {self.process_count} processes")
        size = batch_size // self.process_count
        return range(self.process_index * size, (self.process_index + 1) * size)


WHOLE = Share()  # a single process, from the start


class Source(ABC):
    """The samples that passed the filters; order, transforms, faults and resuming are handled elsewhere.

    Attributes:
        resumable: whether a number always gives the same sample. If not, `[...]` gives the next one whatever the
            number, and the length is 0 for unknown.
        indexed: for a source that is not resumable, the name of the one that reads the same path by number.
        counts: samples left out when the source was opened, by reason.
    """

    resumable: ClassVar[bool] = True
    indexed: ClassVar[str] = ""
    counts: Counter[str]

    @abstractmethod
    def __init__(self, config: Any, share: Share = WHOLE) -> None:
        """Opens the samples at `config.path` of a `DataConfig`; raises `GlideError` if there are none.

        Only a source that is not resumable restricts itself to its `share`.
        """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample `index` in [0, len); thread-safe.

        Raises:
            BadSample: it cannot be read now, or has no caption.
        """

    @abstractmethod
    def parts(self) -> list[Part]:
        """All samples in order, in parts; a source that is not resumable has none."""

    def named(self, index: int) -> str:
        """What a message calls a sample."""
        return f"sample {index}"

    def image_size(self, index: int) -> tuple[int, int]:
        """Width and height of an image in pixels, reading no more of the sample than necessary.

        Raises:
            BadSample: it is damaged, or cannot be read now.
        """
        return image_size(self[index].image)

    def close(self) -> None:  # noqa: B027 (most have nothing to end)
        """Ends threads that read ahead, if any."""


def source_type(name: str) -> type[Source]:
    """The class of a source in `SOURCES`."""
    module, cls = SOURCES[name]
    return getattr(importlib.import_module(f"glide_jax.data.sources.{module}"), cls)


def image_size(image: bytes | Path) -> tuple[int, int]:
    """Width and height of an image in pixels according to its header; raises `BadSample`."""
    try:
        return images.image_size(image)
    except images.UnreadableImage as error:
        kind = Unavailable if error.reason == "unreadable file" else BadSample
        raise kind(error.reason) from error


def usable_captions(value: Any) -> tuple[str, ...]:
    """The captions, stripped, in a text, its UTF-8 bytes, a finite number, or a list of these; other values have none.

    Raises:
        BadSample: there is none, or one is not valid Unicode (a lone surrogate, another encoding).
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
