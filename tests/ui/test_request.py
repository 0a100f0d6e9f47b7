import math
import re

import numpy as np
import pytest
from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.options import build, fields
from glide_jax.sample import SAMPLERS, SampleOptions, upsampling
from glide_jax.ui.request import Choice, Limits, check_fit, checked, kinds, request_fields

KNOWN = request_fields(Limits(max_images=3, max_steps=20), {})
NUMBERS = [name for name, field in KNOWN.items() if not field.option.choices and str not in kinds(field)]
IMAGE = Image.new("RGBA", (8, 8))


def request(task="draw", **values):
    return checked(task, {"base": "base", "prompt": "a cat", **values}, KNOWN)


def test_a_plain_request_has_the_command_line_s_defaults():
    made = request()
    assert (made.num_images, made.upsampler, made.upsampler_options) == (3, None, upsampling({}))
    assert made.options == build(SampleOptions, {"num_steps": 20})


@pytest.mark.parametrize("seed", [None, "", -1, "-1"])
def test_a_blank_seed_is_a_random_one(seed):
    seeds = {request(seed=seed).seed for _ in range(4)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_given_seed_is_kept():
    assert request(seed="7").seed == request(seed=7).seed == 7


def test_every_option_of_sampling_may_be_sent():
    assert set(fields(SampleOptions)) - set(KNOWN) == {"guidance_interval"}
    assert {"interval_low", "interval_high", "upsampler_num_steps", "upsample_temp"} < set(NUMBERS)


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_is_bounded(name):
    option = KNOWN[name].option
    low = option.low if option.above is None else option.above
    for value in (option.high * 1.01 + 1, low - 1.01, math.nan, math.inf, 10**400, "1e999", "many", [1], {}, True):
        with pytest.raises(GlideError, match=name):
            request(**{name: value})
    if int in kinds(KNOWN[name]):
        with pytest.raises(GlideError, match=f"{name} must be a whole number"):
            request(**{name: 1.5})
    if type(None) not in kinds(KNOWN[name]):
        with pytest.raises(GlideError, match=name):
            request(**{name: " "})


@pytest.mark.parametrize("name", [name for name, field in KNOWN.items() if field.option.choices])
def test_every_choice_is_one_of_the_menu(name):
    for value in ("other", 1, ["ddim"], "../../etc"):
        with pytest.raises(GlideError, match=f"{name} must be one of"):
            request(**{name: value})


def test_slow_and_historical_samplers_are_not_in_the_menu():
    assert set(SAMPLERS) - set(KNOWN["sampler"].option.choices) == {"prk", "dpm_2", "dpm_2_ancestral", "lms"}


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
        ({"guidance": "cfg"}, {"apg_eta": 0.5}),
        ({"thresholding": "none"}, {"dynamic_thresholding_ratio": 0.9}),
    ],
)
def test_fields_that_the_page_hides_have_no_say(choice, hidden):
    assert request(**choice, **hidden).options == request(**choice).options


def test_fields_that_it_shows_have():
    options = request(sampler="dpmpp_2m_sde", eta="0.5", rho="3", sigma_max="20", interval_low="1").options
    assert (options.solver.eta, options.levels.rho, options.levels.sigma_max) == (0.5, 3.0, 20.0)
    assert options.guidance.guidance_interval == (1.0, math.inf)
    up = request(upsampler_num_steps="9", upsample_temp="0.9", upsampler_sampler="ddpm").upsampler_options
    assert up == upsampling({"num_steps": 9, "temperature": 0.9, "sampler": "ddpm"})


def test_impossible_combinations_are_refused():
    with pytest.raises(GlideError, match=re.escape("cfg++")):
        request(guidance="cfg++", guidance_scale=3)


def test_tasks_need_their_images():
    for task in ("inpaint", "redraw", "enlarge"):
        with pytest.raises(GlideError, match="upload one"):
            request(task)
        with pytest.raises(GlideError, match="upload one"):
            request(task, image="/etc/passwd")
    blank = Image.new("L", (8, 8), 255)
    for mask in (None, blank, "mask.png"):
        with pytest.raises(GlideError, match="paint over"):
            request("inpaint", image=IMAGE, mask=mask)
    painted = Image.fromarray(np.eye(8, dtype=np.uint8) * 255)
    assert request("inpaint", image=IMAGE, mask=painted).images == {"image": IMAGE, "mask": painted}
    assert request("redraw", image=IMAGE, strength=0.3).options.strength == 0.3
    assert request(strength=0.3).options.strength == 1
    assert request("enlarge", image=IMAGE, prompt="", upsampler="up").num_images == 1


def test_ranking_keeps_no_more_than_it_generates():
    made = request("rank", candidates=3, top_k=9)
    assert (made.num_images, made.keep) == (3, 3)


def test_respacing_is_no_way_around_the_most_steps(models):
    pipeline = models.pipeline("base", None)
    with pytest.raises(GlideError, match="100 steps are too many: at most 20"):
        check_fit(pipeline, request(timestep_respacing="100"), 20)
    check_fit(pipeline, request(timestep_respacing="20"), 20)


def test_only_an_inpainting_model_inpaints(models):
    painted = Image.fromarray(np.eye(8, dtype=np.uint8) * 255)
    with pytest.raises(GlideError, match="base cannot inpaint"):
        check_fit(models.pipeline("base", None), request("inpaint", image=IMAGE, mask=painted), 20)


def test_adapters_are_named_each_with_a_scale():
    assert request(lora="mine", lora_scale="0.5").adapters == {"mine": 0.5}
    assert request(lora=["mine", "other"], lora_scale_2=2).adapters == {"mine": 1.0, "other": 2.0}
    assert request(lora=None).adapters == request("enlarge", image=IMAGE, upsampler="up", lora="mine").adapters == {}
    for lora, message in (
        (["a", "b", "c", "d"], "4 LoRAs are too many: at most 3"),
        (["a", "a"], "names the same twice"),
        *((sent, "lora must be a name or a list of up to 3 names") for sent in ([["a"]], 3, 0, False, {})),
    ):
        with pytest.raises(GlideError, match=message):
            Choice.of({"lora": lora})
