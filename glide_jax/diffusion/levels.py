"""The noise levels a sampler visits: timesteps with some spacing, or sigmas from some schedule.

sigma here is the noise of an image whose signal is not scaled down, x_0 + sigma eps, with sigma^2 = (1 - abar) / abar:
the variable used by Karras et al. (2022, arXiv:2206.00364) and k-diffusion.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int

from glide_jax.diffusion.options import TIMESTEP_SCHEDULES, LevelOptions
from glide_jax.diffusion.schedules import Schedule, space_timesteps
from glide_jax.errors import GlideError

Sigmas = Float[np.ndarray, " steps"]

# The cosine schedule's sigma is 642 at t = 998 and 20291 at t = 999: steps spent up there have no visible effect.
_SIGMA_MAX = 80.0


def karras(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Sigmas:
    """Evenly spaced in sigma^(1/rho), descending (Karras et al. 2022, eq. 5)."""
    ramp = np.linspace(0, 1, num_steps)
    top, bottom = np.float64(sigma_max) ** (1 / rho), np.float64(sigma_min) ** (1 / rho)
    return (top + ramp * (bottom - top)) ** rho


def polyexponential(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 1.0) -> Sigmas:
    """A ramp to the power rho in log sigma, descending; rho = 1 is `exponential`."""
    ramp = np.linspace(1, 0, num_steps) ** rho
    return np.exp(np.log(sigma_min) + ramp * (np.log(sigma_max) - np.log(sigma_min)))


def exponential(num_steps: int, sigma_min: float, sigma_max: float) -> Sigmas:
    """Evenly spaced in log sigma, descending."""
    return polyexponential(num_steps, sigma_min, sigma_max)


_SPACE_SIGMA = {"karras": karras, "exponential": exponential, "polyexponential": polyexponential}


class HostLevel(NamedTuple):
    """A `Level` in float64, in which coefficients are computed."""

    t: float
    alpha: float
    sigma: float


@dataclass(frozen=True, eq=False)
class NoiseLevels:
    """The levels to visit, from the noisiest down; the clean image (sigma = 0) follows the last.

    Attributes:
        schedule: the full schedule of the model.
        sigmas: float64, strictly descending, positive.
    """

    schedule: Schedule
    sigmas: Sigmas

    def __post_init__(self) -> None:
        if not _descend(self.sigmas):
            raise ValueError("sigmas must be positive and descend")

    @classmethod
    def from_timesteps(cls, schedule: Schedule, timesteps: Int[np.ndarray, " steps"]) -> Self:
        """The levels of original timesteps, given in ascending order."""
        return cls(schedule, schedule.sigmas[timesteps[::-1]])

    @classmethod
    def from_options(cls, schedule: Schedule, options: LevelOptions) -> Self:
        """The levels for `options` that name a schedule or a respacing.

        Raises:
            ValueError: they name neither (see `SampleOptions.levels_in_force`).
            GlideError: an impossible respacing, more steps than timesteps, or sigmas outside those the model was
                trained on.
        """
        if options.timestep_respacing:
            timesteps = space_timesteps(schedule.diffusion_steps, options.timestep_respacing)
            return cls.from_timesteps(schedule, timesteps)
        name = options.schedule
        if not name:
            raise ValueError("name a schedule")
        if name in TIMESTEP_SCHEDULES:
            return cls.from_timesteps(schedule, _spaced(schedule.diffusion_steps, name, options.num_steps))
        bottom, top = schedule.sigmas[[0, -1]]
        sigma_min = bottom if options.sigma_min is None else options.sigma_min
        sigma_max = min(top, _SIGMA_MAX) if options.sigma_max is None else options.sigma_max
        if not bottom <= sigma_min < sigma_max <= top:
            raise GlideError(
                f"sigma_min {sigma_min:.4g} and sigma_max {sigma_max:.4g} must ascend within"
                f" [{bottom:.4g}, {top:.4g}], the noise this model was trained on"
            )
        given = {} if options.rho is None else {"rho": options.rho}
        with np.errstate(all="ignore"):
            sigmas = _SPACE_SIGMA[name](options.num_steps, sigma_min, sigma_max, **given)
        if not _descend(sigmas):
            raise GlideError(
                f"rho {options.rho:g} leaves no {options.num_steps} different levels between sigma_min and sigma_max;"
                " choose one closer to the default"
            )
        return cls(schedule, sigmas)

    def __len__(self) -> int:
        return len(self.sigmas)

    @cached_property
    def steps(self) -> list[tuple[float, float]]:
        """Pairs of sigmas (from, to); the last goes to 0."""
        ends = [*self.sigmas.tolist(), 0.0]
        return list(itertools.pairwise(ends))

    @property
    def alphas_cumprod(self) -> Sigmas:
        """abar of each level."""
        return 1 / (1 + self.sigmas**2)

    @property
    def timesteps(self) -> Float[np.ndarray, " steps"]:
        """Original timestep of each level, possibly fractional."""
        return self.schedule.sigma_to_t(self.sigmas)

    def level(self, sigma: float) -> HostLevel:
        """The level of any sigma."""
        alpha = 1 / math.sqrt(1 + sigma**2)
        return HostLevel(float(self.schedule.sigma_to_t(np.asarray(sigma))), alpha, sigma * alpha)

    def last(self, count: int) -> Self:
        """The least noisy `count` levels."""
        return type(self)(self.schedule, self.sigmas[len(self) - count :])


def _descend(sigmas: Sigmas) -> bool:
    return len(sigmas) > 0 and bool(np.isfinite(sigmas).all() and (np.diff(sigmas) < 0).all() and sigmas[-1] > 0)


def _spaced(diffusion_steps: int, name: str, count: int) -> Int[np.ndarray, " steps"]:
    if count > diffusion_steps:
        raise GlideError(f"cannot take {count} timesteps from {diffusion_steps}; ask for at most {diffusion_steps}")
    if name == "leading":
        return np.arange(count) * (diffusion_steps // count)
    if name == "trailing":
        return np.rint(diffusion_steps * np.arange(1, count + 1) / count).astype(int) - 1
    return space_timesteps(diffusion_steps, str(count))
