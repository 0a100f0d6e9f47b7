"""What every data source is: captioned picture files by number."""

from collections import Counter
from typing import NamedTuple, Protocol


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


def one_caption(data: bytes) -> str:
    """The text of a caption file, stripped.

    Raises:
        BadSample: it is not UTF-8, or blank.
    """
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadSample("caption is not UTF-8") from error
    if not text:
        raise BadSample("empty caption")
    return text


def listed(counts: Counter[str]) -> str:
    """Reasons with their counts, the most frequent first."""
    return ", ".join(f"{reason}: {count}" for reason, count in counts.most_common())
