"""How fast a run goes: metrics averaged between log lines, step times, goodput, FLOP utilization (MFU)."""

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.extend.core import Jaxpr, jaxprs_in_params

# The vendor's dense bfloat16 FLOP/s of one device, by whole words of `jax.Device.device_kind`; the first match counts.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "V100": 125e12,
    "T4": 65e12,
    "TPU v6": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}

# Metrics that are sums over the images in each quarter of [0, T), logged as mse_q0 (least noise) to mse_q3.
_SUMS, _COUNTS = "mse_by_quartile", "count_by_quartile"

Values = Mapping[str, np.ndarray]


def peak_flops(device_kind: str, peak_tflops: float = 0.0) -> float | None:
    """FLOP/s of a device: `peak_tflops` if that is not 0, else from the table; None if unknown."""
    if peak_tflops:
        return peak_tflops * 1e12
    return next((peak for name, peak in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", device_kind)), None)


def product_flops(jaxpr: Jaxpr) -> float:
    """FLOPs of all matrix products and convolutions in a program, including loop iterations and recomputation.

    Of several branches the costliest counts, so cuDNN's attention counts as much as XLA's, the other branch.
    """
    flops = 0.0
    for equation in jaxpr.eqns:
        shapes: list[Any] = [variable.aval for variable in (*equation.invars, *equation.outvars)]
        inner = [product_flops(body) for body in jaxprs_in_params(equation.params)]
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            flops += 2 * shapes[-1].size * math.prod(shapes[0].shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            features = equation.params["dimension_numbers"].rhs_spec[0]
            flops += 2 * shapes[-1].size * shapes[1].size / shapes[1].shape[features]
        elif inner:
            flops += equation.params.get("length", 1) * (max(inner) if name == "cond" else sum(inner))
    return flops


@dataclass
class Goodput:
    """The share of the time since a run first started that went into steps it has kept.

    Stored in every checkpoint, so that work lost between a checkpoint and a kill counts as lost.

    Attributes:
        first_start: when the run first started, in seconds since 1970.
        productive: seconds spent in steps, not counting waits for data.
    """

    first_start: float = field(default_factory=time.time)
    productive: float = 0.0

    def share(self, now: float | None = None) -> float:
        """Productive time as a share of all time since the first start, in [0, 1]."""
        elapsed = (time.time() if now is None else now) - self.first_start
        return self.productive / elapsed if elapsed > 0 else 0.0


class Meter:
    """Collects steps as they finish and computes the figures of a log line.

    Args:
        batch_size: images per step.
        goodput: credited with the time of every step that is not skipped.
        waited: seconds spent waiting for data so far.
        clock: current time in seconds; tests pass their own.
    """

    def __init__(
        self,
        batch_size: int,
        goodput: Goodput,
        waited: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batch_size, self._goodput, self._waited = batch_size, goodput, waited
        self._clock = clock
        self._clear()
        self.resume()

    def resume(self) -> None:
        """Leaves out the time since the last step, which went into a checkpoint, a sample grid or validation."""
        self._mark, self._waited_at_mark = self._clock(), self._waited()

    def add(self, values: Values, *, skipped: bool, at_peak: float | None = None) -> None:
        """Records a step that has just finished; for a skipped one only the time counts.

        Args:
            values: its metrics.
            skipped: whether it was.
            at_peak: seconds it would take at the device's peak FLOP/s; None if unknown.
        """
        before, waited_before = self._mark, self._waited_at_mark
        self.resume()
        seconds, wait = self._mark - before, self._waited_at_mark - waited_before
        self._seconds.append(seconds)
        self._at_peak.append(at_peak or 0.0)
        self._wait += wait
        if not skipped:
            self._goodput.productive += max(seconds - wait, 0.0)
            self._values.append(values)

    def read(self) -> dict[str, float]:
        """The figures since the last call: mean metrics, seconds per step (median, 95th percentile), rates, shares."""
        total = sum(self._seconds)
        p50, p95 = np.percentile(self._seconds, [50, 95])
        figures = self._means() | {
            "images_per_second": len(self._seconds) * self._batch_size / total,
            "step_time_p50": float(p50),
            "step_time_p95": float(p95),
            "data_wait_share": self._wait / total,
            "goodput": self._goodput.share(),
        }
        if any(self._at_peak):
            figures["mfu"] = sum(self._at_peak) / total
        self._clear()
        return figures

    def _clear(self) -> None:
        self._seconds: list[float] = []
        self._at_peak: list[float] = []
        self._values: list[Values] = []
        self._wait = 0.0

    def _means(self) -> dict[str, float]:
        if not self._values:
            return {}
        columns = {name: np.stack([values[name] for values in self._values]) for name in self._values[0]}
        sums, counts = (columns.pop(name).sum(0) for name in (_SUMS, _COUNTS))
        means = {name: float(column.mean(dtype=np.float64)) for name, column in columns.items()}
        return means | {f"mse_q{i}": float(sums[i] / count) for i, count in enumerate(counts) if count}
