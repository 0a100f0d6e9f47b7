"""Every solver on Gaussian data, where the denoiser is linear and the flow is known: order, moments, identities."""

import inspect
import itertools
import math
from dataclasses import fields
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.diffusion import solvers
from glide_jax.diffusion.denoiser import Estimate, denoiser
from glide_jax.diffusion.levels import NoiseLevels
from glide_jax.diffusion.options import SAMPLERS, LevelOptions, SolverOptions, canonical_name, sampler_options
from glide_jax.diffusion.schedules import DiffusionConfig, Schedule
from glide_jax.diffusion.solvers import plan_steps
from glide_jax.diffusion.solvers.ddpm import ddim_inversion
from glide_jax.diffusion.solvers.solver import run_steps, start
from glide_jax.diffusion.solvers.table import Table, terms
from glide_jax.errors import GlideError

SCHEDULE = Schedule.from_config(DiffusionConfig())
DATA_STD = 0.5
HIGH, LOW = 5.0, 0.1
ROWS = 640  # of every table, so that a method is compiled once for each number of images


def shrink(sigma):
    """The denoiser of N(0, DATA_STD^2) data is D(x, sigma) = shrink(sigma) x."""
    return DATA_STD**2 / (DATA_STD**2 + sigma**2)


def gaussian(x_t, level, memory):
    sigma = level.sigma / level.alpha
    x = x_t / level.alpha
    x_0 = shrink(sigma) * x
    return Estimate(x_0, (x - x_0) / sigma, None, jnp.full_like(x, 0.5)), memory


def run(method, plan, x, rows=None, noise=None):
    """The image that a plan run in float64 from `x` has after row `rows`."""
    table = jax.tree.map(lambda column: np.resize(column, (ROWS, *column.shape[1:])), plan.rows)
    noise = np.resize(np.zeros(1) if noise is None else noise, (ROWS, *x.shape))
    return until(method, start(method, x), table, noise, len(plan) if rows is None else rows).state[0]


@partial(jax.jit, static_argnums=0)
def until(method, carry, table, noise, end):
    return run_steps(method, denoiser(gaussian, lambda x_0: x_0), lambda k: noise[k], carry, table, 0, end)


def error_between_two_sigmas(sampler, steps, **options):
    """Of the solver's own state at LOW, started from the flow's at HIGH; the last step, to 0, is left out."""
    levels = NoiseLevels(SCHEDULE, np.geomspace(HIGH, LOW, steps + 1))
    method, plan = plan_steps(SolverOptions(sampler, **options), levels)
    top, bottom = (plan.rows.level.alpha[i] / plan.rows.input_scale[i] for i in (0, -1))
    x = top * HIGH * jnp.ones((1, 1, 1, 1))
    state = run(method, plan, x, len(plan) - 1)
    exact = HIGH * math.sqrt((DATA_STD**2 + LOW**2) / (DATA_STD**2 + HIGH**2))
    return abs(float(state[0, 0, 0, 0]) / bottom - exact)


@pytest.mark.parametrize(
    ("sampler", "order", "options"),
    [
        ("euler", 1, {}),
        ("ddim", 1, {}),
        ("heun", 2, {}),
        ("dpm_2", 2, {}),
        ("dpmpp_2m", 2, {}),
        ("dpmpp_2s_ancestral", 2, {"eta": 0.0}),
        ("dpmpp_2m_sde", 2, {"eta": 0.0}),
        ("dpmpp_sde", 2, {"eta": 0.0}),
        # The first step of three has no past and is of first order, which an error of h^2 remains of.
        ("dpmpp_3m_sde", 2, {"eta": 0.0}),
        # A predictor of order 2, to which the corrector adds one.
        ("unipc", 3, {}),
    ],
)
def test_order_of_convergence(sampler, order, options):
    with jax.enable_x64(True):
        counts = [40, 80, 160]
        errors = [error_between_two_sigmas(sampler, count, **options) for count in counts]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.2, (slope, errors)


@pytest.mark.parametrize("schedule", ["karras", "exponential", "trailing"])
def test_lms_does_not_amplify_errors_of_many_steps(schedule):
    levels = NoiseLevels.from_options(SCHEDULE, LevelOptions(num_steps=500, schedule=schedule))
    _, plan = plan_steps(SolverOptions("lms"), levels)

    def end(error):
        rng, state = np.random.default_rng(0), np.array([levels.sigmas[0], 0.0, 0.0, 0.0])
        for sigma, matrix in zip(levels.sigmas, plan.rows.coefficients, strict=True):
            state = matrix @ [*state, shrink(sigma) * state[0] + error * rng.normal()]
        return state[0]

    assert abs(end(0.0)) == pytest.approx(DATA_STD, rel=0.02)
    assert abs(end(1e-3) - end(0.0)) < 0.1


def test_a_table_refuses_images_that_it_does_not_have():
    levels = NoiseLevels.from_options(SCHEDULE, LevelOptions(num_steps=3, schedule="karras"))
    x, x_0, misspelt, noise = terms("x", "x_0", "x0", "noise")
    for churn, updates, message in (
        (0.0, {"x": x + misspelt}, r"\['x0'\] is not among"),
        (0.0, {"x": x_0, "lst": x}, r"\['lst'\] is not among"),
        (1.0, {"x": x_0 + noise}, "either churn or part of an update"),
    ):
        table = Table(levels, "x", "last")
        table.evaluate(1.0, churn, **updates)
        with pytest.raises(ValueError, match=message):
            table.build()


@pytest.mark.parametrize("sampler", ["plms", "prk"])
def test_pndm_converges_on_respaced_timesteps(sampler):
    """The fork's abar between two levels is interpolated, which leaves them second order."""

    def error(steps):
        levels = NoiseLevels.from_options(SCHEDULE, LevelOptions(num_steps=steps, schedule="leading"))
        method, plan = plan_steps(SolverOptions(sampler), levels)
        sigma = levels.sigmas[1]
        x = jnp.ones((1, 1, 1, 1)) * sigma / math.sqrt(1 + sigma**2)
        end = float(run(method, plan, x)[0, 0, 0, 0])
        # The clean-up step takes the mean at the least noisy level.
        low = levels.sigmas[-1]
        at_low = sigma * math.sqrt((DATA_STD**2 + low**2) / (DATA_STD**2 + sigma**2))
        return abs(end - shrink(low) * at_low)

    with jax.enable_x64(True):
        for steps in (20, 40, 80, 160):
            assert error(steps) < 2 / steps**2


def impulse_responses(sampler, levels, **options):
    """The last image as a linear function of the start and of each row's noise: exact moments, no Monte Carlo."""
    method, plan = plan_steps(SolverOptions(sampler, **options), levels)
    count = len(plan)
    with jax.enable_x64(True):
        # One "image" a source: the start, then each row's noise.
        x = jnp.zeros((count + 1, 1, 1, 1)).at[0].set(1.0)
        noise = jnp.eye(count + 1)[1:].reshape(count, count + 1, 1, 1, 1)
        final = np.asarray(run(method, plan, x, count - 1, noise))
    return final.ravel() / (plan.rows.level.alpha[-1] / plan.rows.input_scale[-1])


def ancestral(sigma, after, eta):
    up = min(after, eta * math.sqrt(after**2 * (sigma**2 - after**2) / sigma**2))
    return math.sqrt(after**2 - up**2), up


def recursion_factors(sampler, sigma, after, eta):
    """(A, [B...]) of x' = A x + sum of B z for one step of the linear denoiser."""
    c = shrink(sigma)
    down, up = ancestral(sigma, after, eta)
    if sampler in ("euler_ancestral", "ddim"):
        return c + down * (1 - c) / sigma, [up]
    middle = math.sqrt(sigma * down)
    if sampler == "dpm_2_ancestral":
        at_middle = 1 + (middle - sigma) * (1 - c) / sigma
        return 1 + (down - sigma) * (1 - shrink(middle)) / middle * at_middle, [up]
    if sampler == "dpmpp_2s_ancestral":
        at_middle = middle / sigma + (1 - middle / sigma) * c
        return down / sigma + (1 - down / sigma) * shrink(middle) * at_middle, [up]
    assert sampler == "dpmpp_sde"
    middle = math.sqrt(sigma * after)
    down_m, up_m = ancestral(sigma, middle, eta)
    at_middle = down_m / sigma + (1 - down_m / sigma) * c
    reach = (1 - down / sigma) * shrink(middle)
    share = (sigma - middle) / (sigma - after)
    # With r = 1/2, x_0 of the whole step is the one at the middle.
    first, second = reach * up_m + up * math.sqrt(share), up * math.sqrt(1 - share)
    return down / sigma + reach * at_middle, [first, second]


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"])
def test_moments_follow_the_exact_recursion(sampler, eta):
    levels = NoiseLevels(SCHEDULE, np.geomspace(HIGH, LOW, 9))
    mean, variance = 1.0, 0.0
    for sigma, after in levels.steps[:-1]:
        factor, spreads = recursion_factors(sampler, sigma, after, eta)
        mean, variance = factor * mean, factor**2 * variance + sum(spread**2 for spread in spreads)
    responses = impulse_responses(sampler, levels, eta=eta)
    start = math.sqrt(1 + HIGH**2) if sampler == "ddim" else 1.0
    np.testing.assert_allclose(responses[0] / start, mean, rtol=1e-10)
    np.testing.assert_allclose((responses[1:] ** 2).sum(), variance, rtol=1e-10)


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_moments_of_multistep_methods_follow_their_recursion(sampler):
    """x' = e^-2h x + (1 - e^-2h) (x_0 + extrapolation) + after sqrt(1 - e^-2h) z, on vectors of responses."""
    levels = NoiseLevels(SCHEDULE, np.geomspace(HIGH, LOW, 9))
    h = math.log(HIGH / LOW) / 8
    decay, phi_1 = math.exp(-2 * h), -math.expm1(-2 * h)
    phi_2 = 1 - phi_1 / (2 * h)
    phi_3 = phi_2 / (2 * h) - 0.5
    x = np.eye(9)[0]
    past = []
    for i, (sigma, after) in enumerate(levels.steps[:-1]):
        x_0 = shrink(sigma) * x
        new = decay * x + phi_1 * x_0 + after * math.sqrt(phi_1) * np.eye(9)[i + 1]
        if sampler == "dpmpp_2m_sde" and past:
            new += phi_1 / 2 * (x_0 - past[-1])
        if sampler == "dpmpp_3m_sde" and len(past) == 1:
            new += phi_2 * (x_0 - past[-1])
        if sampler == "dpmpp_3m_sde" and len(past) > 1:
            bend = (x_0 - 2 * past[-1] + past[-2]) / 2
            new += phi_2 * (x_0 - past[-1] + bend) - phi_3 * bend
        past.append(x_0)
        x = new
    np.testing.assert_allclose(impulse_responses(sampler, levels)[:9], x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "sampler",
    ["ddim", "euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"],
)
def test_stochastic_samplers_reach_the_true_variance(sampler):
    true = DATA_STD**2 + LOW**2

    def gap(steps):
        levels = NoiseLevels(SCHEDULE, np.geomspace(HIGH, LOW, steps + 1))
        responses = impulse_responses(sampler, levels, eta=1.0)
        start = math.sqrt(DATA_STD**2 + HIGH**2) / (math.sqrt(1 + HIGH**2) if sampler == "ddim" else 1.0)
        return abs((responses[0] * start) ** 2 + (responses[1:] ** 2).sum() - true) / true

    assert gap(80) < 0.05
    assert gap(80) < 0.6 * gap(40)


def final(sampler, levels, noise, **options):
    method, plan = plan_steps(SolverOptions(sampler, **options), levels)
    x = np.full((1, 1, 1, 1), 0.7) * plan.start.noise_alone
    with jax.enable_x64(True):
        return float(run(method, plan, jnp.asarray(x), None, noise)[0, 0, 0, 0])


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_euler_on_the_same_levels(eta):
    levels = NoiseLevels.from_options(SCHEDULE, LevelOptions(num_steps=20, schedule="leading"))
    noise = np.random.RandomState(0).standard_normal((20, 1, 1, 1, 1))
    ddim = final("ddim", levels, noise, eta=eta)
    np.testing.assert_allclose(final("euler_ancestral", levels, noise, eta=eta), ddim, rtol=1e-9)
    if eta == 0:
        np.testing.assert_allclose(final("euler", levels, noise), ddim, rtol=1e-9)


def test_the_sde_form_without_noise_is_the_ode_method():
    levels = NoiseLevels(SCHEDULE, np.geomspace(HIGH, LOW, 12))
    method = plan_steps(SolverOptions("dpmpp_2m_sde", eta=0.0), levels)[0]
    assert method is plan_steps(SolverOptions("dpmpp_2m"), levels)[0], "no noise, so one program for both"
    np.testing.assert_allclose(
        final("dpmpp_2m_sde", levels, None, eta=0.0), final("dpmpp_2m", levels, None), rtol=1e-12
    )


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2"])
def test_churn_adds_the_noise_it_says_before_its_own_step(sampler):
    """s_noise^2 (raised^2 - sigma^2) of it, at the levels up to s_tmax."""
    levels = NoiseLevels(SCHEDULE, np.array([4.0, 2.0, 1.0]))
    _, plan = plan_steps(SolverOptions(sampler, s_churn=0.3, s_tmax=3.0, s_noise=1.1), levels)
    sigmas, churn = plan.rows.level.sigma / plan.rows.level.alpha, plan.rows.churn
    np.testing.assert_allclose(sigmas[churn > 0], [2.2, 1.1], rtol=1e-12)
    np.testing.assert_allclose(churn[churn > 0], [1.1 * math.sqrt(0.21) * 2.0, 1.1 * math.sqrt(0.21)], rtol=1e-12)
    assert sigmas[0] == pytest.approx(4.0)
    assert churn[0] == 0


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2"])
def test_churned_runs_follow_the_noise_of_their_own_steps(sampler):
    """The first step's noise moves the result, and without churn none does."""
    levels = NoiseLevels(SCHEDULE, np.geomspace(HIGH, LOW, 5))
    responses = impulse_responses(sampler, levels, s_churn=1.0)
    assert abs(responses[1]) > 1e-3
    assert not impulse_responses(sampler, levels)[1:].any()


def test_inversion_then_ddim_returns_with_an_error_that_halves():
    def error(steps):
        levels = NoiseLevels.from_options(SCHEDULE, LevelOptions(num_steps=steps, schedule="leading"))
        method, plan = ddim_inversion(levels)
        noise = run(method, plan, 0.4 * jnp.ones((1, 1, 1, 1)))
        method, plan = plan_steps(SolverOptions("ddim"), levels)
        return abs(float(run(method, plan, noise)[0, 0, 0, 0]) - 0.4)

    with jax.enable_x64(True):
        errors = [error(steps) for steps in (25, 50, 100, 200)]
    for coarse, fine in itertools.pairwise(errors):
        assert 0.4 < fine / coarse < 0.6


STOCHASTIC = (
    "ddpm",
    "euler_ancestral",
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_last_step_is_free_of_noise_and_the_others_are_not(sampler):
    levels = NoiseLevels.from_options(SCHEDULE, LevelOptions(num_steps=6, schedule="leading"))
    rows = len(plan_steps(SolverOptions(sampler), levels)[1])
    noise = np.random.RandomState(0).standard_normal((rows, 1, 1, 1, 1))

    def with_other_noise(changed):
        other = noise.copy()
        other[changed] += 1
        return final(sampler, levels, other)

    assert with_other_noise(slice(-1, None)) == final(sampler, levels, noise)
    assert (with_other_noise(slice(-1)) != final(sampler, levels, noise)) == (sampler in STOCHASTIC)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_listed_options_are_those_that_the_solver_takes(sampler):
    taken = inspect.signature(getattr(solvers, sampler)).parameters
    assert {name for name in taken if name in {field.name for field in fields(SolverOptions)}} == {
        *sampler_options(sampler)
    }


def test_names_aliases_and_options():
    assert canonical_name("euler_a") == "euler_ancestral"
    assert canonical_name("dpm++") == "dpmpp_2m"
    assert canonical_name("standard") == "plms"
    assert sampler_options("ddim") == ("eta",)
    with pytest.raises(GlideError, match=r"did you mean .*dpmpp_2m"):
        canonical_name("dpmpp2m")
    for theirs, ours in {
        "DPM++ 2M Karras": "dpmpp_2m, with schedule karras",
        "sample_heun": "heun",
        "DDIMScheduler": "ddim",
        "EulerDiscreteScheduler": "euler",
        "Euler a": "euler_a",
    }.items():
        with pytest.raises(GlideError, match=rf"is unknown; did you mean {ours}\?$"):
            canonical_name(theirs)
    with pytest.raises(GlideError, match="dpmpp_2m has no eta; ddim, "):
        SolverOptions("dpmpp_2m", eta=1.0)
    with pytest.raises(GlideError, match="at least 3 steps"):
        plan_steps(
            SolverOptions("plms"), NoiseLevels.from_options(SCHEDULE, LevelOptions(num_steps=2, schedule="leading"))
        )
