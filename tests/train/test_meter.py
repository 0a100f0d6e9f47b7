"""Figures of a log line against hand arithmetic, on a clock of our own; and the FLOPs of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.train.meter import PEAK_FLOPS, Goodput, Meter, peak_flops, product_flops
from tests.tiny.training import make_config, make_program


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 100.0
        self.waited = 7.0


def values(loss, mse=(1.0, 0.0, 2.0, 4.0), counts=(2.0, 0.0, 1.0, 1.0)):
    arrays = {"loss": loss, "mse_by_quartile": mse, "count_by_quartile": counts}
    return {name: np.asarray(value, np.float32) for name, value in arrays.items()}


def test_three_updates_by_hand():
    clock = Clock()
    goodput = Goodput(first_start=0.0)
    # Steps of 6, 3 and 9 GFLOP, as their images' sizes differ, on a device of 10 GFLOP/s.
    meter = Meter(8, goodput, lambda: clock.waited, lambda: clock.now)
    for loss, seconds, wait, flops in ((1.0, 1.0, 0.5, 6e9), (2.0, 2.0, 0.0, 3e9), (6.0, 3.0, 0.25, 9e9)):
        clock.now += seconds
        clock.waited += wait
        meter.add(values(loss), skipped=False, at_peak=flops / 10e9)
        # A checkpoint, a grid: no part of any step.
        clock.now += 50.0
        clock.waited += 1.0
        meter.resume()
    figures = meter.read()
    assert figures["loss"] == 3.0
    assert figures["images_per_second"] == pytest.approx(3 * 8 / 6.0)
    assert figures["step_time_p50"] == 2.0
    assert figures["step_time_p95"] == pytest.approx(2.9)
    assert figures["data_wait_share"] == pytest.approx(0.75 / 6.0)
    assert figures["mfu"] == pytest.approx((6e9 + 3e9 + 9e9) / (6.0 * 10e9)) == pytest.approx(0.3)
    assert goodput.productive == pytest.approx(6.0 - 0.75)
    assert goodput.share(now=21.0) == pytest.approx(0.25)
    assert (figures["mse_q0"], figures["mse_q2"], figures["mse_q3"]) == (0.5, 2.0, 4.0)
    assert "mse_q1" not in figures  # no image had such a timestep


def test_a_skipped_update_takes_time_but_is_no_good():
    clock = Clock()
    goodput = Goodput(first_start=0.0)
    meter = Meter(8, goodput, lambda: clock.waited, lambda: clock.now)
    for loss, skipped in ((1.0, False), (np.nan, True)):
        clock.now += 1.0
        meter.add(values(loss), skipped=skipped)
    figures = meter.read()
    assert figures["loss"] == 1.0
    assert figures["images_per_second"] == 8.0
    assert goodput.productive == 1.0
    assert "mfu" not in figures
    clock.now += 1.0
    meter.add(values(np.nan), skipped=True)
    assert "loss" not in meter.read()


def test_goodput_resumes_from_a_record():
    assert Goodput(first_start=10.0, productive=5.0).share(now=30.0) == 0.25


def test_peak_of_a_device():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5p") == peak_flops("TPU v5") == 459e12
    assert peak_flops("NVIDIA L40") == 181e12
    assert peak_flops("NVIDIA RTX A1000") is peak_flops("NVIDIA A10G") is peak_flops("cpu") is None
    assert peak_flops("cpu", 0.5) == 0.5e12
    assert all(peak > 1e13 for peak in PEAK_FLOPS.values())


def convolved(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_flops_of_products_in_loops_and_branches():
    def program(x, kernel, matrix):
        x = convolved(x, kernel)
        x, _ = jax.lax.scan(lambda x, _: (x @ matrix, None), x, length=5)
        return jax.lax.cond(x.sum() > 0, lambda: x @ matrix, lambda: (x @ matrix) @ matrix)

    jaxpr = jax.make_jaxpr(program)(jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4)), jnp.zeros((4, 4)))
    assert product_flops(jaxpr.jaxpr) == 2 * (2 * 8 * 8) * (4 * 3 * 9 + 7 * 4 * 4)


def test_a_kernels_gradient_counts_as_the_convolution_does():
    gradient = jax.grad(lambda kernel, x: convolved(x, kernel).sum())
    jaxpr = jax.make_jaxpr(gradient)(jnp.zeros((3, 3, 3, 4)), jnp.zeros((2, 8, 8, 3)))
    assert product_flops(jaxpr.jaxpr) == 2 * 2 * (2 * 8 * 8) * (4 * 3 * 9)


def test_micro_batches_do_not_change_the_flops_of_a_step():
    whole, parts = (make_program(make_config(gradient_accumulation_steps=steps)).step_flops() for steps in (1, 4))
    assert parts == whole
    # At least the 3 x 3 convolutions, forward and twice backward: 5 of them in and out of 2 + 1 + 2 blocks.
    assert whole > 3 * 2 * 8 * 64 * (2 * 5 * 9 * 32 * 32)
