"""Solvers in sigma against k-diffusion's, with its noise injected: a closed-form denoiser, and the tiny base model."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.diffusion import levels as schedules
from glide_jax.diffusion.denoiser import Estimate, denoiser
from glide_jax.diffusion.guidance import guided
from glide_jax.diffusion.levels import NoiseLevels
from glide_jax.diffusion.options import SolverOptions
from glide_jax.diffusion.schedules import DiffusionConfig, Schedule
from glide_jax.diffusion.solvers import plan_steps
from glide_jax.diffusion.solvers.solver import run_steps, start
from glide_jax.models import Conditioning, Glide
from tests.parity.recipe import draw_image, golden_arrays, golden_params, model_config, network, relative_error

GOLDEN = golden_arrays("kdiffusion")
MIXTURE_CASES = [name.split("|") for name in GOLDEN if name.startswith("mixture") and not name.endswith("|sigmas")]
SCHEDULE = Schedule.from_config(DiffusionConfig())
SIGMAS = {"10": (10, 0.02, 80.0), "25": (25, 0.01, 40.0)}
MEANS, STD = (-0.6, 0.1, 0.7), 0.15


def sigmas_of(case):
    name, count = case.removeprefix("mixture/")[:-2], case[-2:]
    rho = {"polyexponential": {"rho": 1.5}}.get(name, {})
    return getattr(schedules, name)(*SIGMAS[count], **rho)


def recorded_noise(case, solver, plan, shape):
    """The reference draws in order of use: the noise of each row of the plan that takes some."""
    takes = (plan.rows.coefficients[:, :, -1] != 0).any(axis=1)
    drawn = iter(draw_image(f"{case}/{solver}/noise/{k}", shape) for k in range(takes.sum()))
    return np.stack([next(drawn) if take else np.zeros((shape[0], *shape[2:], 3), np.float32) for take in takes])


def sample(run, case, solver, sigmas, shape):
    """`run` takes the method, its carry, rows, their noise and how many rows there are, and returns the carry."""
    method, plan = plan_steps(SolverOptions(solver), NoiseLevels(SCHEDULE, sigmas))
    rows = plan.on_device()
    recorded = np.zeros((len(jax.tree.leaves(rows)[0]), shape[0], *shape[2:], 3), np.float32)
    if "ancestral" in solver or "sde" in solver:
        recorded[: len(plan)] = recorded_noise(case, solver, plan, shape)
    carry = start(method, jnp.asarray(draw_image(f"{case}/x", shape) * np.float32(GOLDEN[f"{case}|sigmas"][0])))
    carry = run(method, carry, rows, jnp.asarray(recorded), len(plan))
    return np.asarray(carry.state[0]).transpose(0, 3, 1, 2)


def mixture(x_t, level, memory):
    """E[x_0 | x] of a mixture of three equal Gaussians, as the noise that leads there."""
    x, sigma = x_t / level.alpha, level.sigma / level.alpha
    means = jnp.asarray(MEANS)
    spread = STD**2 + sigma**2
    weights = jax.nn.softmax(-jnp.square(x[..., None] - means.reshape(1, 1, 1, 1, -1)) / (2 * spread), axis=-1)
    centre = (weights * means.reshape(1, 1, 1, 1, -1)).sum(-1)
    x_0 = centre + STD**2 / spread * (x - centre)
    return Estimate(x_0, (x - x_0) / sigma, None, jnp.full_like(x, 0.5)), memory


@partial(jax.jit, static_argnums=0)
def run_on_mixture(method, carry, rows, recorded, end):
    return run_steps(method, denoiser(mixture, lambda x_0: x_0), lambda k: recorded[k], carry, rows, 0, end)


@pytest.mark.parametrize("case", sorted({case for case, _ in MIXTURE_CASES}))
def test_sigma_schedules(case):
    np.testing.assert_allclose(np.append(sigmas_of(case), 0), GOLDEN[f"{case}|sigmas"], rtol=2e-6)


@pytest.mark.parametrize(("case", "solver"), MIXTURE_CASES)
def test_solvers_on_a_closed_form_denoiser(case, solver):
    ours = sample(run_on_mixture, case, solver, sigmas_of(case), (2, 3, 8, 8))
    assert relative_error(ours, GOLDEN[f"{case}|{solver}"]) < 3e-5


@pytest.fixture(scope="module")
def base():
    model = Glide(model_config("tiny", "base"))
    params = golden_params(model, "tiny/base")
    text = jax.jit(model.encode_text)(params, GOLDEN["glide|tokens"], GOLDEN["glide|mask"])
    run = network(model, params, Conditioning(text))
    return guided(None, run, run)


# One method without noise and one with it; all are compared on the closed forms above.
@pytest.mark.parametrize("solver", ["dpmpp_2m", "euler_ancestral"])
def test_solvers_on_the_tiny_base_model(base, solver):
    case = "glide/karras8"
    denoise = denoiser(base, lambda x_0: x_0)

    def run(method, carry, rows, recorded, end):
        with jax.disable_jit():
            return run_steps(method, denoise, lambda k: recorded[k], carry, rows, 0, end)

    ours = sample(run, case, solver, schedules.karras(8, 0.02, 60.0), (2, 3, 64, 64))
    assert relative_error(ours, GOLDEN[f"{case}|{solver}"]) < 5e-5


def test_sigmas_and_timesteps():
    """The reference computes both in float32."""
    np.testing.assert_allclose(SCHEDULE.sigmas, GOLDEN["glide/sigmas_all"], rtol=3e-4)
    t = SCHEDULE.sigma_to_t(GOLDEN["glide/sigma_to_t|sigma"].astype(np.float64))
    np.testing.assert_allclose(t, GOLDEN["glide/sigma_to_t|t"], atol=5e-4)
    evenly = np.exp(np.interp(np.linspace(999, 0, 10), np.arange(1000), np.log(SCHEDULE.sigmas)))
    np.testing.assert_allclose(np.append(evenly, 0), GOLDEN["glide/get_sigmas10"], rtol=3e-4)
