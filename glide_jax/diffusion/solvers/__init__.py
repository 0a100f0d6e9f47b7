"""Samplers: short functions of the noise levels to visit, all of one form (`Solver`) and driven by `run_steps`."""

from collections.abc import Callable

from glide_jax.diffusion.levels import NoiseLevels
from glide_jax.diffusion.options import SolverOptions, canonical_name
from glide_jax.diffusion.solvers.ddpm import ddim, ddpm
from glide_jax.diffusion.solvers.dpmpp import (
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    dpmpp_3m_sde,
    dpmpp_sde,
)
from glide_jax.diffusion.solvers.euler import dpm_2, dpm_2_ancestral, euler, euler_ancestral, heun
from glide_jax.diffusion.solvers.multistep import lms, plms, prk, unipc
from glide_jax.diffusion.solvers.solver import Plan, Solver

_SOLVERS: dict[str, Callable[..., tuple[Solver, Plan]]] = {
    solver.__name__: solver
    for solver in (
        ddim, ddpm, plms, euler, euler_ancestral, heun, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_2s_ancestral,
        dpmpp_sde, unipc, prk, dpm_2, dpm_2_ancestral, lms,
    )
}  # fmt: skip


def plan_steps(options: SolverOptions, levels: NoiseLevels) -> tuple[Solver, Plan]:
    """The chosen sampler and its plan over given levels; raises `GlideError` if it needs more of them."""
    return _SOLVERS[canonical_name(options.sampler)](levels, **options.given)
