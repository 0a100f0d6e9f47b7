"""Samplers: one file each, all of the same shape (`Solver`), all driven by `run_steps`."""

import difflib
from collections.abc import Callable

from glide_jax.diffusion.schedules import Schedule
from glide_jax.diffusion.solvers import ddim, ddpm
from glide_jax.diffusion.solvers.solver import Plan, Solver
from glide_jax.errors import GlideError

# Name -> method, and its plan for a full schedule, a respacing and eta.
_SOLVERS: dict[str, tuple[Solver, Callable[[Schedule, str, float], Plan]]] = {
    "ddpm": (ddpm.DDPM, lambda schedule, respacing, eta: ddpm.plan(schedule.respace(respacing))),
    "ddim": (ddim.DDIM, lambda schedule, respacing, eta: ddim.plan(schedule.respace(respacing), eta)),
}
SAMPLERS = tuple(_SOLVERS)


def make_plan(sampler: str, schedule: Schedule, respacing: str, eta: float = 0.0) -> tuple[Solver, Plan]:
    """The method of that name, and its steps on a full schedule.

    Args:
        sampler: one of `SAMPLERS`.
        schedule: what the model was trained on.
        respacing: which timesteps to visit ("50", "fast27", ...).
        eta: share of ancestral noise of "ddim", in [0, 1].

    Raises:
        GlideError: an unknown name (the nearest ones are named), or an impossible `respacing` or `eta`.
    """
    if sampler not in _SOLVERS:
        near = difflib.get_close_matches(sampler, SAMPLERS, n=3) or SAMPLERS
        raise GlideError(f"sampler {sampler!r} is unknown; did you mean {' or '.join(near)}?")
    if not 0.0 <= eta <= 1.0:
        raise GlideError(f"eta must be in [0, 1], not {eta}")
    solver, plan = _SOLVERS[sampler]
    return solver, plan(schedule, respacing, eta)
