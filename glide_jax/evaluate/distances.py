"""Distances between two sets of images by their features, with confidence intervals."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtrit

from glide_jax.errors import GlideError

# One row per image; two sets may differ in both axes (widths are checked, with a message).
Features = Float[np.ndarray, "_images _width"]

_GROUPS = 10
_CONFIDENCE = 0.95
_BLOCK = 1024
# A negative eigenvalue beyond rounding, relative to the largest.
_NEGATIVE = 1e-6


class Estimate(NamedTuple):
    """A value and its 95 % interval; low and high are None if there are too few prompts."""

    value: float
    low: float | None
    high: float | None


def frechet(x: Features, y: Features) -> float:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), from means and covariances (Heusel et al. 2017, eq. 6).

    It is biased upwards by an amount proportional to 1 / images: compare only sets of the same size.

    Raises:
        GlideError: a set has fewer than two images, or features are not finite.
    """
    return _frechet_from(_checked(y, "reference"))(_checked(x, "generated"))


def kernel(x: Features, y: Features) -> float:
    """The unbiased squared MMD under (x.y / width + 1)^3 (Binkowski et al. 2018), over all images, not subsets.

    Raises:
        GlideError: as for `frechet`.
    """
    x, y = _checked(x, "generated"), _checked(y, "reference")
    sums = _KernelSums(x, y, np.zeros(len(x), int))
    return sums.mmd(np.array([True]))


def frechet_estimate(x: Features, y: Features, prompts: Int[np.ndarray, " _images"]) -> Estimate:
    """`frechet` with an interval that accounts for the generated images only; the reference is taken as fixed.

    Args:
        x, y: features of generated images and of the reference.
        prompts: the prompt index of each generated image: images of one prompt are not independent, and stay together.
    """
    x, distance = _checked(x, "generated"), _frechet_from(_checked(y, "reference"))
    group = _groups(prompts)
    return _jackknife(distance(x), lambda left_out: distance(x[group != left_out]), _sizes(group))


def kernel_estimate(x: Features, y: Features, prompts: Int[np.ndarray, " _images"]) -> Estimate:
    """`kernel` with an interval; arguments as for `frechet_estimate`."""
    x, y = _checked(x, "generated"), _checked(y, "reference")
    group = _groups(prompts)
    sums, count = _KernelSums(x, y, group), len(_sizes(group))
    every = np.ones(count, bool)
    return _jackknife(sums.mmd(every), lambda left_out: sums.mmd(np.arange(count) != left_out), _sizes(group))


def mean_estimate(values: Float[np.ndarray, " prompts"]) -> Estimate:
    """The mean of independent values, one per prompt, with Student's interval."""
    if not len(values) or not np.isfinite(values).all():
        raise GlideError("no mean: there are no scores, or some are not numbers")
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, None, None)
    return _interval(mean, float(np.std(values, ddof=1)) / len(values) ** 0.5, len(values) - 1)


def _checked(features: Features, which: str) -> Features:
    if len(features) < 2:
        raise GlideError(f"a distance needs at least 2 images; there are {len(features)} {which} ones")
    if not np.isfinite(features).all():
        raise GlideError(f"features of the {which} images are not all numbers: the extractor's weights are damaged")
    return features.astype(np.float64)


def _frechet_from(y: Features) -> Callable[[Features], float]:
    mean_y, cov_y = y.mean(0), np.atleast_2d(np.cov(y, rowvar=False))
    values, vectors = np.linalg.eigh(cov_y)
    root_y = (vectors * np.sqrt(_nonnegative(values))) @ vectors.T

    def distance(x: Features) -> float:
        if x.shape[1] != y.shape[1]:
            raise GlideError(f"features of {x.shape[1]} and of {y.shape[1]} numbers cannot be compared")
        cov_x = np.atleast_2d(np.cov(x, rowvar=False))
        # The trace of (C_x C_y)^(1/2) equals that of the root of the symmetric C_y^(1/2) C_x C_y^(1/2).
        inner = root_y @ cov_x @ root_y
        cross = np.sqrt(_nonnegative(np.linalg.eigvalsh((inner + inner.T) / 2))).sum()
        return float(np.square(x.mean(0) - mean_y).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * cross)

    return distance


def _nonnegative(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    if values.min() < -_NEGATIVE * max(values.max(), 1e-12):
        raise GlideError("a covariance has negative eigenvalues: the features are damaged")
    return np.maximum(values, 0.0)


class _KernelSums:
    """Sums of kernel values between groups of x, and of each group with y: enough to leave groups out."""

    def __init__(self, x: Features, y: Features, group: Int[np.ndarray, " _images"]) -> None:
        if x.shape[1] != y.shape[1]:
            raise GlideError(f"features of {x.shape[1]} and of {y.shape[1]} numbers cannot be compared")
        self._sizes, self._references = _sizes(group), len(y)
        count = len(self._sizes)
        members = np.eye(count)[group]
        self._xx, self._xy, self._yy = np.zeros((count, count)), np.zeros(count), 0.0
        for first in range(0, len(x), _BLOCK):
            part = slice(first, first + _BLOCK)
            self._xx += members[part].T @ _polynomial(x[part], x) @ members
            self._xy += members[part].T @ _polynomial(x[part], y).sum(1)
        self._xx -= np.diag(members.T @ _diagonal(x))
        for first in range(0, len(y), _BLOCK):
            self._yy += float(_polynomial(y[first : first + _BLOCK], y).sum())
        self._yy -= float(_diagonal(y).sum())

    def mmd(self, used: np.ndarray) -> float:
        """The unbiased squared MMD over the groups used."""
        n, m = int(self._sizes[used].sum()), self._references
        within = self._xx[np.ix_(used, used)].sum() / (n * (n - 1)) + self._yy / (m * (m - 1))
        return float(within - 2 * self._xy[used].sum() / (n * m))


def _polynomial(x: Features, y: Features) -> Float[np.ndarray, "_ _"]:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base


def _diagonal(x: Features) -> Float[np.ndarray, " _"]:
    return (np.square(x).sum(1) / x.shape[1] + 1) ** 3


def _groups(prompts: Int[np.ndarray, " _images"]) -> Int[np.ndarray, " _images"]:
    """At most ten groups of whole prompts."""
    _, place = np.unique(prompts, return_inverse=True)
    return place % _GROUPS


def _sizes(group: Int[np.ndarray, " _images"]) -> Int[np.ndarray, " groups"]:
    return np.bincount(group)


def _jackknife(value: float, without: Callable[[int], float], sizes: Int[np.ndarray, " groups"]) -> Estimate:
    """The interval from leaving out one group at a time."""
    groups = len(sizes)
    if groups < 2 or sizes.sum() - sizes.max() < 2:
        return Estimate(value, None, None)
    others = np.array([without(left_out) for left_out in range(groups)])
    error = np.sqrt((groups - 1) / groups * np.square(others - others.mean()).sum())
    return _interval(value, float(error), groups - 1)


def _interval(value: float, error: float, freedom: int) -> Estimate:
    reach = float(stdtrit(freedom, (1 + _CONFIDENCE) / 2)) * error
    return Estimate(value, value - reach, value + reach)
