"""Which grids the page refuses, in one line, before anything is generated."""

import pytest

from glide_jax.errors import GlideError
from glide_jax.sample import of_upsampler
from glide_jax.ui.grids import compared, example_counts, examples, options_to_vary, values_to_show
from glide_jax.ui.request import Limits, request_fields

KNOWN = request_fields(Limits(max_images=4, max_steps=20), {})


def asked(x="", y="", has_clip=False, **values):
    sides = {f"{side}_{what}": text for side, axis in (("x", x), ("y", y))
             for what, text in zip(("option", "values"), axis.split("="), strict=False)}  # fmt: skip
    return compared({"base": "base", "prompt": "a cat", **sides, **values}, KNOWN, has_clip=has_clip)


def test_each_image_has_the_settings_of_its_cell():
    request = asked("num_steps=5, 10", "guidance_scale=1,3", sampler="ddpm", seed=7)
    assert (request.num_images, request.keep) == (4, 1)
    found = [(cell.options.levels.num_steps, cell.options.guidance.guidance_scale) for cell in request.cells]
    assert found == [(5, 1.0), (10, 1.0), (5, 3.0), (10, 3.0)]
    assert {(cell.seed, cell.options.solver.sampler) for cell in request.cells} == {(7, "ddpm")}
    assert request.cells[1].label == "num_steps 10\nguidance_scale 1.0"
    assert request.columns == asked("eta=0,1").columns == 2
    assert asked(y="eta=0,1").columns == 1


def test_a_blank_seed_is_one_for_all_and_others_may_be_varied():
    assert len({cell.seed for cell in asked("eta=0,1").cells}) == 1
    several = asked("seed=3,4", seed=7)
    assert [cell.seed for cell in several.cells] == [3, 4]
    assert (several.one_seed, asked("eta=0,1", seed=7).one_seed) == (None, 7)


@pytest.mark.parametrize(
    ("x", "values", "message"),
    [
        ("", {}, "choose an option to vary"),
        ("num_steps=", {}, "num_steps: give its values, separated by commas"),
        ("num_steps=1,,2", {}, "num_steps: give its values, separated by commas"),
        ("num_steps=5,500", {}, r"num_steps must be in \[1, 20\], not 500"),
        ("num_steps=5,many", {}, "num_steps must be a number, not 'many'"),
        ("num_steps=1,2,3,4,5", {}, "a grid of 5 images is too large: at most 4"),
        ("num_steps=1,2,3", {"y_option": "seed", "y_values": "1,2"}, "a grid of 6 images is too large: at most 4"),
        ("num_steps=1,2", {"y_option": "num_steps", "y_values": "3"}, "one option or two different ones"),
        ("num_steps=3,4,3.0", {}, "num_steps=3,4,3: gives a value twice"),
        ("=1,2", {"y_option": "seed", "y_values": "1,2"}, "x_values are given without x_option"),
        ("sampler=ddim,prk", {}, "sampler must be one of"),
        ("strength=0.1", {}, "cannot vary strength"),
        ("num_images=1,2", {}, "cannot vary num_images"),
        ("clip_guidance_scale=1", {}, "cannot vary clip_guidance_scale"),
        ("upsampler_strength=0.5,1", {}, "upsampler_strength needs an upsampler: choose one"),
        ("rho=3,7", {}, "rho has no effect"),
        ("lora_scale=0,1", {}, "lora_scale needs one more LoRA"),
        ("lora_scale_2=0,1", {"lora": ["few"]}, "lora_scale_2 needs one more LoRA"),
        ("lora_scale=1,3", {"lora": ["few"]}, r"lora_scale must be in \[0, 2\], not 3"),
        ("apg_eta=0,1", {}, "apg_eta has no effect"),
        ("num_steps=5", {"timestep_respacing": "10"}, "leave that blank"),
        ("seed=1,-1", {}, "seeds from 0 on"),
        (f"eta={'0,' * 200}1", {}, "x_values has 401 characters"),
        ("eta=0,1", {"y_option": ["sampler"]}, "y_option must be text"),
    ],
)
def test_what_cannot_be_varied_is_one_line(x, values, message):
    with pytest.raises(GlideError, match=message) as refused:
        asked(x, **values)
    assert "\n" not in str(refused.value)


def test_what_has_an_effect_may_be_varied():
    assert "clip_guidance_scale" in options_to_vary(KNOWN, has_clip=True)
    assert len(asked("sampler=ddim,dpmpp_2m", "rho=3,7").cells) == 4
    assert len(asked("upsample_temp=0.9,1", upsampler="up").cells) == 2


def test_the_strength_of_a_lora_may_be_varied():
    request = asked("lora_scale_2=0,0.5", lora=["few", "more"], lora_scale=0.3)
    assert request.strengths == [{"few": 0.3, "more": 0.0}, {"few": 0.3, "more": 0.5}]
    assert request.adapters == request.strengths[0]


def test_every_option_has_examples_that_a_model_takes(models):
    """Beside what gives it an effect, and with what models bring of their own."""
    effective = {
        "rho": {"schedule": "karras"}, "sigma_min": {"schedule": "karras"}, "sigma_max": {"schedule": "karras"},
        "s_churn": {"sampler": "euler"}, "s_tmin": {"sampler": "euler"}, "s_tmax": {"sampler": "euler"},
        "s_noise": {"sampler": "euler"}, "dynamic_thresholding_ratio": {"thresholding": "dynamic"},
    }  # fmt: skip
    pipeline = models.pipeline("base", "more/up")
    for brought in ({}, {"num_steps": 2, "guidance_scale": 0.6, "guidance": "cfg++"}):
        known = request_fields(Limits(), brought)
        for name in options_to_vary(known, has_clip=True):
            values = examples(name, known, 3)
            beside = effective.get(name, {"guidance": "apg"} if name.startswith("apg_") else {})
            axes = {"x_option": name, "x_values": values, "lora": list("abc"), "upsampler": "more/up"}
            request = compared({"base": "base", "prompt": "a cat", **axes, **beside}, known, has_clip=True)
            assert 1 < len(request.cells) <= 3, name
            for cell in request.cells:
                up, options = of_upsampler(name), (cell.options, cell.upsampler_options)
                (pipeline.base, pipeline.upsampler)[up].stage.levels(options[up])
    assert examples("num_steps", KNOWN, 3) == "10, 20"
    assert examples("num_steps", known, 3) == "2, 4, 27"
    assert examples("num_steps", known, 2) == "2, 4"


@pytest.mark.parametrize("most", range(1, 10))
def test_the_examples_of_both_sides_are_a_grid_that_is_allowed(most):
    across, down = example_counts(most)
    assert 1 <= across * down <= most
    assert example_counts(8) == (3, 2)


@pytest.mark.parametrize(
    ("option", "typed", "shown"),
    [
        ("num_steps", "", "10, 20"),
        ("num_steps", "1, 3, 6", "10, 20"),
        ("num_steps", "7, 8", "7, 8"),
        ("sampler", "7, 8", "ddim, dpmpp_2m, euler_ancestral"),
        ("", "7, 8", ""),
        (["seed"], "7, 8", ""),
    ],
)
def test_values_that_were_typed_stay_while_the_option_takes_them(option, typed, shown):
    assert values_to_show(option, typed, "1, 3, 6", KNOWN, 3) == shown
