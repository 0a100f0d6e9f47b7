import math
import re

import numpy as np
import pytest
from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.sample import SAMPLERS
from glide_jax.ui.request import CHOICES, Limits, bounds, check_fit, checked

LIMITS = Limits(num_images=3, num_steps=20, prompt=40)
PICTURE = Image.new("RGBA", (8, 8))


def request(task="draw", **values):
    return checked(task, {"base": "base", "prompt": "a cat", **values}, LIMITS)


def test_a_plain_request_has_the_command_line_s_defaults():
    made = request()
    assert (made.num_images, made.upsampler, made.upsampler_options) == (3, None, {})
    assert made.options["sampler"] == "ddim"
    assert made.options["num_steps"] == 20
    assert made.options["guidance_interval"] == (0.0, math.inf)
    assert "strength" not in made.options


@pytest.mark.parametrize("seed", [None, "", -1, "-1"])
def test_a_blank_seed_is_a_random_one(seed):
    seeds = {request(seed=seed).seed for _ in range(4)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_given_seed_is_kept():
    assert request(seed="7").seed == request(seed=7).seed == 7


@pytest.mark.parametrize("name", sorted(bounds(LIMITS)))
def test_every_number_is_bounded(name):
    bound = bounds(LIMITS)[name]
    for value in (bound.high * 1.01 + 1, bound.low - 1.01, math.nan, math.inf, 10**400, "1e999", "many", [1], {}, True):
        with pytest.raises(GlideError, match=name):
            request(**{name: value})
    if bound.whole:
        with pytest.raises(GlideError, match=f"{name} must be a whole number"):
            request(**{name: 1.5})
    if not bound.blank:
        with pytest.raises(GlideError, match=name):
            request(**{name: None})


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_every_choice_is_one_of_the_menu(name):
    for value in ("other", 1, ["ddim"], "../../etc"):
        with pytest.raises(GlideError, match=f"{name} must be one of"):
            request(**{name: value})


def test_slow_and_historical_samplers_are_not_in_the_menu():
    assert set(SAMPLERS) - set(CHOICES["sampler"]) == {"prk", "dpm_2", "dpm_2_ancestral", "lms"}


def test_texts_are_bounded_and_cleaned():
    assert request(prompt=" a\tcat\nin \x00 a\udc00 hat ").prompt == "a cat in a hat"
    for name in ("prompt", "negative_prompt", "timestep_respacing", "base"):
        with pytest.raises(GlideError, match=name):
            request(**{name: "x" * 2000})
        with pytest.raises(GlideError, match=f"{name} must be text"):
            request(**{name: ["a cat"]})
    with pytest.raises(GlideError, match="prompt is empty"):
        request(prompt="  ")


@pytest.mark.parametrize(
    ("choice", "hidden"),
    [
        ({"sampler": "ddim"}, {"s_churn": 5, "s_noise": 1, "rho": 3, "sigma_min": 0.1}),
        ({"sampler": "dpmpp_2m"}, {"eta": 0.5}),
        ({"sampler": "dpmpp_2m", "schedule": "exponential"}, {"rho": 3}),
        ({"sampler": "dpmpp_2m", "timestep_respacing": "10"}, {"sigma_max": 3}),
    ],
)
def test_fields_that_the_page_hides_have_no_say(choice, hidden):
    assert request(**choice, **hidden).options == request(**choice).options


def test_fields_that_it_shows_have():
    options = request(sampler="dpmpp_2m_sde", eta="0.5", rho="3", sigma_max="20", interval_low="1").options
    assert (options["eta"], options["rho"], options["sigma_max"]) == (0.5, 3.0, 20.0)
    assert options["guidance_interval"] == (1.0, math.inf)
    up = request(upsampler_num_steps="9", upsample_temp="0.9", upsampler_sampler="ddpm").upsampler_options
    assert up == {"num_steps": 9, "temperature": 0.9, "sampler": "ddpm"}


def test_impossible_combinations_are_refused():
    with pytest.raises(GlideError, match=re.escape("cfg++")):
        request(guidance="cfg++", guidance_scale=3)


def test_tasks_need_their_pictures():
    for task in ("inpaint", "redraw", "enlarge"):
        with pytest.raises(GlideError, match="upload one"):
            request(task)
        with pytest.raises(GlideError, match="upload one"):
            request(task, picture="/etc/passwd")
    blank = Image.new("L", (8, 8), 255)
    for mask in (None, blank, "mask.png"):
        with pytest.raises(GlideError, match="paint over"):
            request("inpaint", picture=PICTURE, mask=mask)
    painted = Image.fromarray(np.eye(8, dtype=np.uint8) * 255)
    assert request("inpaint", picture=PICTURE, mask=painted).mask is painted
    assert request("redraw", picture=PICTURE, strength=0.3).options["strength"] == 0.3
    assert request("enlarge", picture=PICTURE, prompt="", upsampler="up").num_images == 1


def test_ranking_keeps_no_more_than_it_draws():
    made = request("rank", candidates=3, top_k=9)
    assert (made.num_images, made.keep) == (3, 3)


def test_respacing_is_no_way_around_the_most_steps(models):
    pipeline = models.pipeline("base", None)
    with pytest.raises(GlideError, match="100 steps are too many: at most 20"):
        check_fit(pipeline, request(timestep_respacing="100"), LIMITS)
    check_fit(pipeline, request(timestep_respacing="20"), LIMITS)


def test_only_an_inpainting_model_inpaints(models):
    painted = Image.fromarray(np.eye(8, dtype=np.uint8) * 255)
    with pytest.raises(GlideError, match="base cannot inpaint"):
        check_fit(models.pipeline("base", None), request("inpaint", picture=PICTURE, mask=painted), LIMITS)
