"""Samplers: short functions of a grid of noise levels, all of the same shape (`Solver`), all driven by `run_steps`."""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

from glide_jax.diffusion.grid import Grid
from glide_jax.diffusion.solvers.ddim import ddim
from glide_jax.diffusion.solvers.ddpm import ddpm
from glide_jax.diffusion.solvers.dpmpp import (
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    dpmpp_3m_sde,
    dpmpp_sde,
)
from glide_jax.diffusion.solvers.euler import dpm_2, dpm_2_ancestral, euler, euler_ancestral, heun
from glide_jax.diffusion.solvers.lms import lms
from glide_jax.diffusion.solvers.pndm import plms, prk
from glide_jax.diffusion.solvers.solver import Plan, Solver
from glide_jax.diffusion.solvers.unipc import unipc
from glide_jax.errors import GlideError

_SOLVERS: dict[str, Callable[..., tuple[Solver, Plan]]] = {
    solver.__name__: solver
    for solver in (
        ddim, ddpm, plms, euler, euler_ancestral, heun, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_2s_ancestral,
        dpmpp_sde, unipc, prk, dpm_2, dpm_2_ancestral, lms,
    )
}  # fmt: skip
SAMPLERS = tuple(_SOLVERS)
# Names of glide-finetune and of web front ends.
_ALIASES = {
    "standard": "plms",
    "euler_a": "euler_ancestral",
    "dpm++": "dpmpp_2m",
    "dpmpp_2s_a": "dpmpp_2s_ancestral",
    "dpm_2_a": "dpm_2_ancestral",
}
_OPTIONS = ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise")
# The noise that these go on with need not be the one that made x_0.
SAMPLERS_WITH_CFGPP = ("ddim", "euler", "euler_ancestral")


@dataclass(frozen=True)
class SolverOptions:
    """A method and its own options; those left at None take the method's default.

    Attributes:
        sampler: one of `SAMPLERS`, or a usual short name ("euler_a", "dpm++", "standard").
        eta: share of ancestral noise, in [0, 1]: ddim (default 0), the ancestral and the SDE methods (default 1).
        s_churn, s_tmin, s_tmax: noise added before steps of euler, heun and dpm_2, and between which sigmas.
        s_noise: standard deviation of added noise, of all those methods but ddim.
    """

    sampler: str = "ddim"
    eta: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None

    def __post_init__(self) -> None:
        for name in self.given:
            if name not in sampler_options(self.sampler):
                takers = [sampler for sampler in SAMPLERS if name in sampler_options(sampler)]
                raise GlideError(f"sampler {self.sampler} has no {name}; {', '.join(takers)} do")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise GlideError(f"eta must be in [0, 1], not {self.eta}")
        for name in ("s_churn", "s_noise"):
            if (getattr(self, name) or 0) < 0:
                raise GlideError(f"{name} must be at least 0, not {getattr(self, name)}")

    @property
    def given(self) -> dict[str, float]:
        """The options that are not left at None."""
        values = {name: getattr(self, name) for name in _OPTIONS}
        return {name: value for name, value in values.items() if value is not None}

    def plan(self, grid: Grid) -> tuple[Solver, Plan]:
        """The method and its plan over some levels."""
        return _SOLVERS[canonical_name(self.sampler)](grid, **self.given)


def canonical_name(sampler: str) -> str:
    """The name in `SAMPLERS` of a sampler or of a short name for one.

    Raises:
        GlideError: unknown; the nearest names are listed.
    """
    name = _ALIASES.get(sampler, sampler)
    if name not in _SOLVERS:
        near = difflib.get_close_matches(sampler, [*SAMPLERS, *_ALIASES], n=3) or SAMPLERS
        raise GlideError(f"sampler {sampler!r} is unknown; did you mean {' or '.join(near)}?")
    return name


def default_schedule(sampler: str) -> str:
    """The schedule that suits a sampler: timesteps for methods of first order and PNDM, sigmas for the others.

    On a known distribution the multistep ones come 3 to 8 times closer in 20 steps with "karras" than with "leading",
    DDIM 2 times closer with "leading" (docs/samplers.md).
    """
    on_timesteps = ("ddim", "ddpm", "euler", "euler_ancestral", "plms", "prk")
    return "leading" if canonical_name(sampler) in on_timesteps else "karras"


def sampler_options(sampler: str) -> list[str]:
    """Names of the options that a sampler takes."""
    return [name for name in inspect.signature(_SOLVERS[canonical_name(sampler)]).parameters if name != "grid"]
