"""What every data source is: captioned picture files by number."""

from collections import Counter
from typing import NamedTuple, Protocol


class Sample(NamedTuple):
    """An encoded picture file and its caption, which is not empty."""

    image: bytes
    caption: str


class BadSample(Exception):
    """A sample that cannot be used; its message is the reason under which it is counted."""


class Source(Protocol):
    """Random access to the samples that passed the filters.

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
