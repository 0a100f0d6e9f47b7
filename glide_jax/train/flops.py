"""Model FLOP utilisation: what share of the device's arithmetic a step uses."""

from typing import Any

import jax

# Dense bfloat16 FLOP/s of one device as its vendor states it, by a part of `jax.Device.device_kind`; first match.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
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


def peak_flops(device_kind: str, peak_tflops: float = 0.0) -> float | None:
    """FLOP/s of a device: `peak_tflops` where it is not 0, else from the table; None where it is unknown."""
    if peak_tflops:
        return peak_tflops * 1e12
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_kind), None)


def step_flops(compiled: jax.stages.Compiled, gradient_accumulation_steps: int = 1) -> float:
    """FLOPs of one device in one step, by XLA's count: recomputation is in it, the inside of custom kernels is not.

    XLA counts the body of a loop once, so micro-batches are multiplied by their number. Of the gradient in a kernel,
    which is a loop over blocks of rows on CPUs, one block is counted.
    """
    costs: Any = compiled.cost_analysis()
    return float(costs["flops"]) * gradient_accumulation_steps
