"""What the command line of `sample.py` means where it does not say, and what it writes into pictures."""

import pytest

from glide_jax.sample.cli import parser, picture_metadata, sample_options, upsampler_metadata
from glide_jax.sample.shipped import parse_with_shipped
from tests.parallel.processes import ROOT

SHIPPED = "checkpoints/emoji/upsample"


@pytest.mark.parametrize(
    ("given", "sampler", "strength"),
    [
        ([], "ddpm", 0.5),
        (["--sampler", "unipc", "--upsampler_strength", "0.8"], "unipc", 0.8),
        (["--checkpoint", "models/base", "--upsampler", "models/upsample"], "ddim", None),
        (["--checkpoint", "runs/emoji_finetune", "--upsampler", SHIPPED], "ddim", 0.5),
        (["--upsampler", str(ROOT / SHIPPED), "--image", "small.png"], "ddim", 0.5),
        (["--upsampler", SHIPPED, "--upsampler_strength", "1"], "ddim", 1.0),
    ],
)
def test_the_shipped_models_have_settings_of_their_own(given, sampler, strength, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = parse_with_shipped(parser(), given)
    assert (args.sampler, args.upsampler_strength) == (sampler, strength)


def test_pictures_say_how_they_were_enlarged_if_they_were():
    given = ["--checkpoint", "base", "--upsampler_strength", "0.5", "--upsample_temp", "0.9"]
    alone = parser().parse_args(given)
    assert not any(name.startswith("upsample") for name in picture_metadata(alone, sample_options(alone)))
    both = parser().parse_args([*given, "--upsampler", "up"])
    enlarged = {"upsampler": "up", "upsampler_strength": "0.5", "upsample_temp": "0.9"}
    assert upsampler_metadata(both) == enlarged
    assert enlarged.items() <= picture_metadata(both, sample_options(both)).items()
