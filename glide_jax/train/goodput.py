"""How much of the time since a run first started went into updates that it still has."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self


@dataclass
class Goodput:
    """Kept in every checkpoint, so that what was lost between it and a kill counts as lost.

    Attributes:
        first_start: when the run first started, in seconds since 1970.
        productive: seconds spent in updates, without the wait for data.
    """

    first_start: float = field(default_factory=time.time)
    productive: float = 0.0

    @classmethod
    def from_record(cls, record: Mapping[str, float] | None) -> Self:
        """Goes on from a checkpoint's record, or starts now."""
        return cls(**record) if record else cls()

    def add(self, seconds: float) -> None:
        """Counts the time of an update."""
        self.productive += seconds

    def share(self, now: float | None = None) -> float:
        """Productive time as a share of all time since the first start, in [0, 1]."""
        elapsed = (time.time() if now is None else now) - self.first_start
        return self.productive / elapsed if elapsed > 0 else 0.0
