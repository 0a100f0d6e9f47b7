"""What the command line of `sample.py` means where it does not say, and what it writes into images."""

import pytest
from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.sample import Pipeline, base_options, cli, loading, metadata, upsampler_options
from glide_jax.sample.cli import parser, warn_of_size
from glide_jax.sample.pretrained import parse_with_settings
from tests.parallel.processes import ROOT
from tests.tiny.models import BASE, UPSAMPLER, random_model, save_lora, save_model

BUNDLED = "checkpoints/emoji/upsample"


@pytest.mark.parametrize(
    ("given", "sampler", "steps"),
    [
        ([], "ddpm", 10),
        (["--sampler", "unipc", "--upsampler_num_steps", "8"], "unipc", 8),
        (["--checkpoint", "models/base", "--upsampler", "models/upsample"], "ddim", "fast27"),
        (["--checkpoint", "runs/emoji_finetune", "--upsampler", BUNDLED], "ddim", 10),
        (["--upsampler", str(ROOT / BUNDLED), "--image", "small.png"], "ddim", 10),
        (["--upsampler", BUNDLED, "--upsampler_timestep_respacing", "fast27"], "ddim", "fast27"),
        (["--checkpoint", "checkpoints/emoji/base"], "ddpm", "fast27"),
        (["--upsampler", "checkpoints/emoji", "--image", "small.png"], "ddim", 10),
    ],
)
def test_the_bundled_models_have_settings_of_their_own(given, sampler, steps, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = parse_with_settings(parser(), given)
    options, up_options = (of(vars(args), args.settings) for of in (base_options, upsampler_options))
    levels = up_options.levels
    assert (options.solver.sampler, levels.timestep_respacing or levels.num_steps) == (sampler, steps)


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


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base model and an upsampler whose weights nobody reads."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "base")
    save_model(folder / "up", UPSAMPLER)
    (folder / "file").write_text("no folder, and no image")
    return folder


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--prompt_weights", "--negative_prompt", "a (red"], "brackets must be as (red:1.5)"),
        (["--num_samples", "0"], "--num_samples must be at least 1"),
        (["--seed", "-2"], "seed must be in"),
        (["--batch_size", "0"], "batch_size must be at least 1"),
        (["--height", "0"], "must be multiples of"),
        (["--num_steps", "2000"], "cannot take 2000 timesteps"),
        (["--xy", "num_steps=2,2000"], "cannot take 2000 timesteps"),
        (["--timestep_respacing", "many"], "'many' is not of the form"),
        (["--upsampler", "up", "--upsampler_timestep_respacing", "many"], "'many' is not of the form"),
        (["--upsampler", "base"], "is a base model"),
        (["--upsampler", "none"], "no checkpoint at none"),
        (["--lora", "none"], "no checkpoint at none"),
        (["--lora", "base"], "base has no adapters"),
        (["--checkpoint", "a" * 5000], "a" * 5000),
        (["--clip_guidance_scale", "2"], "needs a noised CLIP"),
        (["--upsampler", "up", "--upsampler_clip_guidance_scale", "2"], "needs a noised CLIP"),
        (["--init_image", "file"], "cannot read the image file"),
        (["--image", "file"], "both an image and a mask"),
        (["--attention", "dog"], "no attention map of 'dog'"),
        (["--output", "file/out"], "cannot write to file/out: Not a directory"),
        (["--animate", "file/a.gif"], "cannot write to file: Not a directory"),
    ],
)
def test_what_cannot_be_done_is_refused_before_weights_are_read(given, said, models, monkeypatch):
    monkeypatch.chdir(models)
    monkeypatch.setattr(cli, "keep_compiled_programs", lambda: None)
    monkeypatch.setattr(loading, "load_weights", lambda *_: pytest.fail("weights are read"))
    with pytest.raises(GlideError) as refused:
        cli.main(["--checkpoint", "base", "--prompt", "a cat", *given])
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give --image FILE"),
        (["--image", "file"], "cannot read the image file"),
        (["--image", "file", "--prompt", "a", "--prompt", "b"], "2 prompts for 1 images"),
        (["--image", "file", "--width", "16"], "an upsampler alone cannot use --width: give a base model"),
        (
            ["--image", "file", "--num_steps", "9", "--xy", "eta=0", "--mask", "file"],
            "cannot use --mask, --xy, --num_steps:",
        ),
    ],
)
def test_so_is_what_an_upsampler_alone_cannot_do(given, said, models, monkeypatch):
    monkeypatch.chdir(models)
    monkeypatch.setattr(cli, "keep_compiled_programs", lambda: None)
    monkeypatch.setattr(loading, "load_weights", lambda *_: pytest.fail("weights are read"))
    with pytest.raises(GlideError) as refused:
        cli.main(["--upsampler", "up", *given])
    assert said in str(refused.value)


def test_what_an_upsampler_alone_enlarges_says_how(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "keep_compiled_programs", lambda: None)
    up, small, out = models / "up", tmp_path / "small.png", tmp_path / "out"
    lora = save_lora(tmp_path / "lora", up, UPSAMPLER)
    Image.new("RGB", (9, 8), "red").save(small)
    given = ["--upsampler", up, "--image", small, "--lora", lora, "--upsampler_num_steps", 2, "--output", out]
    assert cli.main(list(map(str, given))) == 0
    assert "warning: of the upsampler, num_steps 2 with schedule leading starts from noise" in capsys.readouterr().out
    with Image.open(out / "0000.png") as image:
        assert image.size == (2 * BASE.image_size,) * 2
        assert [image.text[name] for name in ("upsampler", "lora", "image")] == [str(up), lora, str(small)]


@pytest.mark.parametrize(("height", "far"), [(None, False), (2, False), (0.5, False), (2.25, True), (0.25, True)])
def test_a_size_far_from_what_a_model_has_learnt_is_warned_of(height, far, capsys):
    side = BASE.image_size
    given = [] if height is None else ["--height", str(int(height * side))]
    warn_of_size(Pipeline(random_model()), parser().parse_args(given))
    said = f"warning: {int((height or 1) * side)} x {side} is far from the {side} x {side} that this model"
    assert capsys.readouterr().out.startswith(said) == far
