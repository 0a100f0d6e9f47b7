"""Which levels a sampler visits."""

import numpy as np
import pytest

from glide_jax.diffusion.levels import NoiseLevels, exponential, karras, polyexponential
from glide_jax.diffusion.options import LevelOptions
from glide_jax.diffusion.schedules import DiffusionConfig, Schedule
from glide_jax.errors import GlideError

COSINE = Schedule.from_config(DiffusionConfig())
LINEAR = Schedule.from_config(DiffusionConfig(noise_schedule="linear"))


def timesteps(**options):
    return np.rint(NoiseLevels.from_options(COSINE, LevelOptions(**options)).timesteps).astype(int).tolist()


def test_spacings_of_timesteps():
    assert timesteps(num_steps=4, schedule="leading") == [750, 500, 250, 0]
    assert timesteps(num_steps=4, schedule="trailing") == [999, 749, 499, 249]
    assert timesteps(num_steps=4, schedule="linspace") == [999, 666, 333, 0]
    assert timesteps(num_steps=30, schedule="leading")[:2] == [957, 924]
    assert timesteps(timestep_respacing="fast27")[0] == 997
    assert timesteps(num_steps=7, schedule="trailing")[0] == 999


def test_levels_of_timesteps_are_exactly_those_of_the_schedule():
    grid = NoiseLevels.from_options(COSINE, LevelOptions(timestep_respacing="ddim50"))
    np.testing.assert_array_equal(grid.timesteps, np.arange(0, 1000, 20)[::-1])
    np.testing.assert_allclose(grid.alphas_cumprod, COSINE.alphas_cumprod[::20][::-1], rtol=1e-12)
    level = grid.level(float(grid.sigmas[3]))
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-15)
    assert level.t == grid.timesteps[3]


@pytest.mark.parametrize("schedule", ["karras", "exponential", "polyexponential"])
@pytest.mark.parametrize("process", [COSINE, LINEAR])
def test_sigma_schedules_span_the_models_noise_but_not_its_absurd_end(schedule, process):
    grid = NoiseLevels.from_options(process, LevelOptions(num_steps=12, schedule=schedule))
    assert len(grid) == 12
    np.testing.assert_allclose(grid.sigmas[[0, -1]], [80.0, process.sigmas[0]], rtol=1e-12)
    assert (np.diff(grid.timesteps) < 0).all()
    assert grid.steps[-1][1] == 0


def test_formulas_of_sigma_schedules():
    np.testing.assert_allclose(np.diff(np.log(exponential(5, 0.1, 10))), -np.log(100) / 4)
    np.testing.assert_allclose(np.diff(karras(5, 0.1, 10) ** (1 / 7)), (0.1 ** (1 / 7) - 10 ** (1 / 7)) / 4)
    np.testing.assert_allclose(polyexponential(3, 0.1, 10, rho=2)[1], 0.1 * 100**0.25)
    np.testing.assert_allclose(karras(1, 0.1, 10), [10])


def test_a_grid_may_start_in_the_middle():
    grid = NoiseLevels.from_options(COSINE, LevelOptions(num_steps=10, schedule="leading"))
    np.testing.assert_array_equal(grid.last(3).sigmas, grid.sigmas[-3:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 1001, "schedule": "leading"}, "at most 1000"),
        ({"num_steps": 1001, "schedule": "linspace"}, "at most 1000"),
        ({"schedule": "karas"}, "karras"),
        ({"schedule": "exponential", "rho": 2.0}, "rho has no effect on exponential"),
        ({"schedule": "karras", "timestep_respacing": "fast27", "sigma_max": 9.0}, "no effect on .*fast27"),
        ({"schedule": "karras", "sigma_min": -1.0}, "sigma_min must be above 0"),
        ({"schedule": "karras", "sigma_min": 5.0, "sigma_max": 2.0}, "ascend"),
        ({"schedule": "karras", "sigma_max": 1e6}, "trained on"),
        ({"schedule": "karras", "sigma_min": 1e-6}, "trained on"),
    ],
)
def test_impossible_levels_are_refused(options, message):
    with pytest.raises(GlideError, match=message):
        NoiseLevels.from_options(COSINE, LevelOptions(**options))


@pytest.mark.parametrize("rho", [0.1, 0.01, 0.001, 1e-9, 1e30])
def test_a_rho_that_leaves_no_levels_is_refused(rho):
    with pytest.raises(GlideError, match="different levels"):
        NoiseLevels.from_options(COSINE, LevelOptions(num_steps=2 if rho < 1 else 50, schedule="karras", rho=rho))
