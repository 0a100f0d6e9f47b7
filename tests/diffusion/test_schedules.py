"""Schedule tables and respacing against the reference's, to float64 rounding."""

import numpy as np
import pytest

from glide_jax.diffusion.schedules import DiffusionConfig, Schedule, space_timesteps
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
    full, kept = Schedule.from_config(DiffusionConfig(noise_schedule=name)), space_timesteps(1000, respacing)
    schedule = full.through(full.alphas_cumprod[kept], kept)
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
        "5,,3",
        "1.5",
        "fast",
        "DDIM5",
        "999999",
    ],
)
def test_impossible_respacing_is_refused_in_one_short_line(respacing):
    with pytest.raises(GlideError, match=r"\A.{20,150}\Z"):
        space_timesteps(1000, respacing)


def test_no_stride_gives_49_steps():
    with pytest.raises(GlideError, match="exactly 49"):
        space_timesteps(1000, "ddim49")


def test_known_values_of_the_cosine_schedule():
    abar = Schedule.from_config(DiffusionConfig()).alphas_cumprod
    np.testing.assert_allclose(
        abar[[0, 250, 500, 900, 999]], [0.999959, 0.845888, 0.492285, 0.0236161, 2.42877e-9], 1e-5
    )


@pytest.mark.parametrize(
    ("steps", "schedule", "message"),
    [(steps, "linear", "use at least 21") for steps in (1, 2, 7, 20)]
    + [(steps, "squaredcos_cap_v2", "in [1, 999999]") for steps in (0, -1, 10**12)],
)
def test_steps_that_give_no_schedule_are_refused_in_one_line(steps, schedule, message):
    with pytest.raises(GlideError, match=rf"^diffusion\.diffusion_steps .*{steps}.*$") as refusal:
        DiffusionConfig(steps, schedule)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("steps", "schedule"), [(21, "linear"), *((steps, "squaredcos_cap_v2") for steps in (1, 2, 3, 7))]
)
def test_the_fewest_steps_give_finite_tables(steps, schedule):
    made = Schedule.from_config(DiffusionConfig(steps, schedule))
    assert ((made.betas > 0) & (made.betas < 1)).all()
    tables = (made.alphas_cumprod, made.sigmas, made.posterior_mean_coef1, made.posterior_mean_coef2)
    assert np.isfinite([*tables, made.posterior_variance, made.posterior_log_variance_clipped]).all()


@pytest.mark.parametrize("respacing", [" 5", "5 ", "05"])
def test_spaces_and_zeros_around_a_number_change_nothing(respacing):
    assert space_timesteps(1000, respacing).tolist() == space_timesteps(1000, "5").tolist()
