"""What the command line of `sample.py` means where it does not say, and what it writes into images."""

import pytest

from glide_jax.sample import Pipeline, base_options, metadata, upsampler_options
from glide_jax.sample.cli import parser, warn_of_size
from glide_jax.sample.pretrained import parse_with_settings
from tests.parallel.processes import ROOT
from tests.tiny.models import BASE, random_model

BUNDLED = "checkpoints/emoji/upsample"


@pytest.mark.parametrize(
    ("given", "sampler", "strength"),
    [
        ([], "ddpm", 0.5),
        (["--sampler", "unipc", "--upsampler_strength", "0.8"], "unipc", 0.8),
        (["--checkpoint", "models/base", "--upsampler", "models/upsample"], "ddim", 1.0),
        (["--checkpoint", "runs/emoji_finetune", "--upsampler", BUNDLED], "ddim", 0.5),
        (["--upsampler", str(ROOT / BUNDLED), "--image", "small.png"], "ddim", 0.5),
        (["--upsampler", BUNDLED, "--upsampler_strength", "1"], "ddim", 1.0),
        (["--checkpoint", "checkpoints/emoji/base"], "ddpm", 1.0),
        (["--upsampler", "checkpoints/emoji", "--image", "small.png"], "ddim", 0.5),
    ],
)
def test_the_bundled_models_have_settings_of_their_own(given, sampler, strength, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = parse_with_settings(parser(), given)
    options, up_options = (of(vars(args), args.settings) for of in (base_options, upsampler_options))
    assert (options.solver.sampler, up_options.strength) == (sampler, strength)


def test_images_say_how_they_were_enlarged_if_they_were():
    args = parser().parse_args(["--sampler", "euler_a", "--upsampler_strength", "0.5", "--upsample_temp", "0.9"])
    options, up_options = base_options(vars(args)), upsampler_options(vars(args))
    alone = {"sampler": "euler_a", "num_steps": "50", "schedule": "leading", "guidance_scale": "3.0"}
    assert metadata(options, None) == alone
    enlarged = {"upsampler_strength": "0.5", "upsample_temp": "0.9"}
    assert metadata(None, up_options) == enlarged
    assert metadata(options, up_options) == alone | enlarged


def test_every_sampling_option_is_there_for_the_upsampler_too():
    args = parser().parse_args(["--upsampler_eta", "0.5", "--upsampler_num_steps", "9"])
    options = upsampler_options(vars(args))
    assert (options.solver.eta, options.levels.num_steps) == (0.5, 9)
    assert options.levels.timestep_respacing == "", "steps take the place of fast27"
    assert options.temperature == 0.997


@pytest.mark.parametrize(("height", "far"), [(None, False), (2, False), (0.5, False), (2.25, True), (0.25, True)])
def test_a_size_far_from_what_a_model_has_learnt_is_warned_of(height, far, capsys):
    side = BASE.image_size
    given = [] if height is None else ["--height", str(int(height * side))]
    warn_of_size(Pipeline(random_model()), parser().parse_args(given))
    said = f"warning: {int((height or 1) * side)} x {side} is far from the {side} x {side} that this model"
    assert capsys.readouterr().out.startswith(said) == far
