"""The figures of a log line: metrics averaged over the updates since the last one, and how fast they went."""

import time
from collections.abc import Callable, Mapping

import numpy as np

from glide_jax.train.goodput import Goodput

# Metrics that are sums over a batch's pictures by quarter of [0, T), logged as mse_q0 (least noise) to mse_q3.
_SUMS, _COUNTS = "mse_by_quartile", "count_by_quartile"

Values = Mapping[str, np.ndarray]


class Meter:
    """Collects updates as they finish.

    Args:
        batch_size: pictures an update.
        goodput: counts the time of every update.
        waited: seconds spent waiting for data so far.
        utilization_per_second: FLOPs of a step over the device's peak FLOP/s; None where that is unknown.
        clock: seconds; a test may give its own.
    """

    def __init__(
        self,
        batch_size: int,
        goodput: Goodput,
        waited: Callable[[], float],
        utilization_per_second: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batch_size, self._goodput, self._waited = batch_size, goodput, waited
        self._utilization, self._clock = utilization_per_second, clock
        self._clear()
        self.resume()

    def resume(self) -> None:
        """Leaves out the time since the last update: it went into a checkpoint, a grid or a validation."""
        self._mark, self._waited_at_mark = self._clock(), self._waited()

    def add(self, values: Values, *, skipped: bool) -> None:
        """Takes in an update that has just finished; of a skipped one only the time counts."""
        before, waited_before = self._mark, self._waited_at_mark
        self.resume()
        seconds, wait = self._mark - before, self._waited_at_mark - waited_before
        self._seconds.append(seconds)
        self._wait += wait
        if not skipped:
            self._goodput.add(max(seconds - wait, 0.0))
            self._values.append(values)

    def read(self) -> dict[str, float]:
        """The figures since the last call: metrics' means, seconds a step (median, 95th percentile), rates, shares."""
        total = sum(self._seconds)
        p50, p95 = np.percentile(self._seconds, [50, 95])
        figures = self._means() | {
            "images_per_second": len(self._seconds) * self._batch_size / total,
            "step_time_p50": float(p50),
            "step_time_p95": float(p95),
            "data_wait_share": self._wait / total,
            "goodput": self._goodput.share(),
        }
        if self._utilization is not None:
            figures["mfu"] = self._utilization * len(self._seconds) / total
        self._clear()
        return figures

    def _clear(self) -> None:
        self._seconds: list[float] = []
        self._values: list[Values] = []
        self._wait = 0.0

    def _means(self) -> dict[str, float]:
        if not self._values:
            return {}
        columns = {name: np.stack([values[name] for values in self._values]) for name in self._values[0]}
        sums, counts = (columns.pop(name).sum(0) for name in (_SUMS, _COUNTS))
        means = {name: float(column.mean(dtype=np.float64)) for name, column in columns.items()}
        return means | {f"mse_q{i}": float(sums[i] / count) for i, count in enumerate(counts) if count}
