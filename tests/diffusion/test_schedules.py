"""Schedule tables and respacing against the reference's, to float64 rounding."""

import numpy as np
import pytest

from glide_jax.diffusion.respacing import space_timesteps
from glide_jax.diffusion.schedules import DiffusionConfig, Schedule
from glide_jax.errors import GlideError
from tests.parity.recipe import golden_arrays

CASES = sorted({name.rsplit("|", 1)[0] for name in golden_arrays("diffusion")})
TABLES = (
    "betas",
    "alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)


@pytest.mark.parametrize("case", CASES)
def test_tables_equal_the_reference(case):
    golden = {k.rsplit("|", 1)[1]: v for k, v in golden_arrays("diffusion").items() if k.rsplit("|", 1)[0] == case}
    name, respacing = case.split("|")
    schedule = Schedule.from_config(DiffusionConfig(noise_schedule=name)).respace(respacing)
    np.testing.assert_array_equal(schedule.timesteps, golden["timestep_map"])
    for table in TABLES:
        np.testing.assert_allclose(getattr(schedule, table), golden[table], rtol=1e-12, atol=1e-12, err_msg=table)


def test_respacing_accumulates_as_the_reference_does():
    assert space_timesteps(1000, "27")[:4].tolist() == [0, 38, 77, 115]
    # The published example of the upsampler's schedule.
    expected = [0, 22, 44, 66, 88, 111, 133, 155, 177, 199, 200, 222]
    assert space_timesteps(1000, "fast27")[:12].tolist() == expected
    assert space_timesteps(1000, "fast27")[-1] == 997
    assert space_timesteps(1000, "17")[:4].tolist() == [0, 62, 125, 187]


@pytest.mark.parametrize(
    "respacing",
    [
        "0",
        "-3",
        "ten",
        "ddim",
        "ddim7x",
        "1001",
        "500,501",
        "1,,2",
        "ddim5,3",
        "ddim0",
        "ddim-5",
        "ddim 5",
        "fast27,3",
        " ",
        ",",
        "1e2",
        "\u0665",
        "9" * 5000,
        "ddim" + "9" * 5000,
    ],
)
def test_impossible_respacing_is_refused(respacing):
    with pytest.raises(GlideError):
        space_timesteps(1000, respacing)


def test_no_stride_gives_49_steps():
    with pytest.raises(GlideError, match="exactly 49"):
        space_timesteps(1000, "ddim49")


def test_known_values_of_the_cosine_schedule():
    abar = Schedule.from_config(DiffusionConfig()).alphas_cumprod
    np.testing.assert_allclose(
        abar[[0, 250, 500, 900, 999]], [0.999959, 0.845888, 0.492285, 0.0236161, 2.42877e-9], 1e-5
    )


@pytest.mark.parametrize("steps", [7, 20])
def test_too_few_steps_for_the_linear_schedule_are_refused(steps):
    with pytest.raises(GlideError, match="use at least 21"):
        DiffusionConfig(steps, "linear")
    for config in (DiffusionConfig(21, "linear"), DiffusionConfig(steps)):
        assert np.isfinite(Schedule.from_config(config).alphas_cumprod).all()
