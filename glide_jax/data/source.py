"""What every data source is: captioned picture files by number."""

import math
from collections import Counter
from typing import Any, NamedTuple, Protocol


class Sample(NamedTuple):
    """An encoded picture file and the captions it may go under: at least one, none of them empty."""

    image: bytes
    captions: tuple[str, ...]


class BadSample(Exception):
    """A sample that cannot be used; its message is the reason under which it is counted."""


class Source(Protocol):
    """Random access to the samples that passed the filters; order, transforms, faults and resuming are not its care.

    Attributes:
        counts: why samples were left out when the source was opened, by reason.
    """

    counts: Counter[str]

    def __len__(self) -> int:
        """The number of samples, at least one."""

    def __getitem__(self, index: int) -> Sample:
        """Sample `index` in [0, len); safe to call from several threads.

        Raises:
            BadSample: it cannot be read now, or has no caption.
        """


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
