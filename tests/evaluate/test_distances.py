"""Distances against independent computations, and intervals that hold as often as they say."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from glide_jax.errors import GlideError
from glide_jax.evaluate.distances import frechet, frechet_estimate, kernel, kernel_estimate, mean_estimate


def normal(seed, count=200, width=6, shift=0.0, scale=1.0):
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(width, width))
    return shift + scale * rng.normal(size=(count, width)) @ mix


def test_the_frechet_distance_is_that_of_its_formula():
    x, y = normal(0, shift=0.5), normal(1, count=150, scale=1.3)
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(cov_x + cov_y - 2 * sqrtm(cov_x @ cov_y).real)
    assert frechet(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet(y, x) == pytest.approx(expected, rel=1e-9)
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_of_known_gaussians():
    """Diagonal covariances: |m|^2 + sum (s_x - s_y)^2, met exactly by whitened samples."""
    x = np.random.default_rng(0).normal(size=(50, 3))
    x -= x.mean(0)
    x @= np.linalg.inv(np.linalg.cholesky(np.cov(x.T)).T)
    y = x * [2.0, 1.0, 0.5] + [1.0, 0.0, 2.0]
    assert frechet(x, y) == pytest.approx(5 + 1 + 0.25, rel=1e-9)


def test_fewer_images_than_features_are_no_trouble():
    x, y = normal(0, 5, 20), normal(1, 7, 20)
    assert np.isfinite(frechet(x, y))
    assert frechet(x, x) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("count", [7, 1100])  # 1100 are more than it multiplies at once
def test_the_kernel_distance_is_the_sum_over_pairs(count):
    def mean_of_pairs(a, b, *, without_itself):
        pairs = (a @ b.T / 3 + 1) ** 3
        return pairs[~np.eye(len(a), dtype=bool)].mean() if without_itself else pairs.mean()

    x, y = normal(0, count, 3), normal(1, count - 2, 3)
    expected = sum(mean_of_pairs(a, a, without_itself=True) for a in (x, y))
    expected -= 2 * mean_of_pairs(x, y, without_itself=False)
    assert kernel(x, y) == pytest.approx(expected, rel=1e-9)


def test_the_kernel_distance_is_unbiased():
    """Of two samples of one distribution it is zero on average: 3 standard errors."""
    values = [kernel(normal(2 * i, 20, 4), normal(2 * i + 1, 20, 4)) for i in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 200**0.5
    assert min(values) < 0


def test_leaving_groups_out_of_the_kernel_sums_is_computing_without_them():
    x, y, prompts = normal(0, 30), normal(1, 20), np.repeat(np.arange(6), 5)
    value, low, high = kernel_estimate(x, y, prompts)
    assert value == pytest.approx(kernel(x, y))
    others = np.array([kernel(x[prompts != i], y) for i in range(6)])
    error = np.sqrt(5 / 6 * np.square(others - others.mean()).sum())
    assert high - low == pytest.approx(2 * 2.5705818 * error, rel=1e-6)


@pytest.mark.parametrize("estimate", [frechet_estimate, kernel_estimate])
def test_images_of_one_prompt_stay_together(estimate):
    """Copies of one image tell nothing new: they must not narrow the interval."""
    x, y = normal(0, 60), normal(1, 200)
    copies = np.repeat(x, 4, axis=0)
    _, low, high = estimate(copies, y, np.arange(240))
    _, low_together, high_together = estimate(copies, y, np.repeat(np.arange(60), 4))
    assert high_together - low_together > 1.2 * (high - low)


def test_the_interval_of_a_mean_holds_19_times_of_20():
    hits = 0
    for seed in range(1000):
        _, low, high = mean_estimate(np.random.default_rng(seed).normal(3.0, 1.0, 4))
        hits += low < 3.0 < high
    assert 0.93 < hits / 1000 < 0.97
    assert mean_estimate(np.array([2.0])) == (2.0, None, None)


def test_the_interval_of_the_kernel_distance_holds_about_as_often():
    """The truth from two large samples; few draws, as each is a whole evaluation: 0.95 within sampling error."""
    y = normal(1, 400, 4)
    truth = kernel(normal(5, 4000, 4, shift=0.3), y)
    estimates = [kernel_estimate(normal(100 + i, 100, 4, shift=0.3), y, np.arange(100)) for i in range(100)]
    assert 0.87 <= np.mean([low < truth < high for _, low, high in estimates]) <= 1.0


@pytest.mark.parametrize("distance", [frechet, kernel])
def test_what_cannot_be_measured_is_refused(distance):
    x, broken = normal(0), normal(1)
    broken[3, 2] = np.nan
    with pytest.raises(GlideError, match="reference images are not all numbers"):
        distance(x, broken)
    with pytest.raises(GlideError, match="at least 2 images; there are 1 generated"):
        distance(x[:1], x)
    with pytest.raises(GlideError, match="cannot be compared"):
        distance(x, normal(0, width=5))
    with pytest.raises(GlideError, match="not numbers"):
        mean_estimate(np.array([1.0, np.nan]))
