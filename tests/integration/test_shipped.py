"""The models in `checkpoints/emoji`: small, of the committed pages, and used where none is given."""

import numpy as np
import pytest
from PIL import Image

from configs import emoji, emoji_upsample
from glide_jax.config import from_ml_collections
from glide_jax.data import DataConfig, open_validation
from glide_jax.sample import LoadedModel, Pipeline
from tests.programs import ROOT, run

BASE, UPSAMPLER = "checkpoints/emoji/base", "checkpoints/emoji/upsample"


def test_all_of_it_takes_little_room():
    files = [file for file in (ROOT / "checkpoints/emoji").rglob("*") if file.is_file()]
    assert 1_000_000 < sum(file.stat().st_size for file in files) <= 12_000_000


@pytest.mark.parametrize(("page", "path"), [(emoji, BASE), (emoji_upsample, UPSAMPLER)], ids=["base", "upsampler"])
def test_it_is_of_the_committed_page(page, path):
    config, stage = from_ml_collections(page.get_config()), LoadedModel.from_checkpoint(ROOT / path).stage
    assert (stage.model.config, stage.diffusion) == (config.model, config.diffusion)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_a_caption_alone_draws_its_picture(tmp_path):
    result = run("sample.py", "--prompt", "a 3d render of a turtle", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    picture = Image.open(tmp_path / "0000.png")
    assert picture.size == (128, 128)
    used = {"checkpoint": BASE, "upsampler": UPSAMPLER, "sampler": "ddpm", "upsampler_num_steps": "10"}
    assert {name: picture.text[name] for name in used} == used
    assert_green_on_white(np.asarray(picture, float))


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_colours_follow_the_caption():
    captions = ["a 3d render of a turtle", "a 3d render of a tomato", "a 3d render of a banana"]
    drawn = Pipeline.from_checkpoints(ROOT / BASE)(captions, seed=0, sampler="ddpm", num_steps=25).images
    turtle, tomato, banana = drawn.astype(float)
    assert_green_on_white(turtle)
    red, green, _ = colour_of(tomato)
    assert red > 1.5 * green
    red, green, blue = colour_of(banana)
    assert min(red, green) > 1.3 * blue


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_the_upsampler_knows_more_than_interpolation():
    data = DataConfig(validation_path=str(ROOT / "datasets/emoji/val-food-3d.tar"), cache_mb=0)
    batch = next(iter(open_validation(data, image_size=128, text_ctx=16, batch_size=4)))
    true = batch.arrays["image"].astype(float)
    small = [Image.fromarray(picture).resize((32, 32), Image.Resampling.BICUBIC) for picture in batch.arrays["image"]]
    pipeline = Pipeline.from_checkpoints(upsampler=ROOT / UPSAMPLER)
    large = pipeline.upsample(small, batch.captions, seed=0, num_steps=10).images.astype(float)
    bicubic = np.stack([picture.resize((128, 128), Image.Resampling.BICUBIC) for picture in small]).astype(float)
    assert np.abs(large.mean((1, 2)) - true.mean((1, 2))).max() < 4  # its colours, each within a few grey levels
    # Edges of the true height are missing from what is interpolated.
    steep = [np.quantile(np.abs(np.diff(pictures, axis=2)), 0.99) for pictures in (bicubic, large, true)]
    assert steep[0] < 0.8 * steep[2]
    assert 1.2 * steep[0] < steep[1] < 1.2 * steep[2]
    bicubic_error, error = (np.sqrt(np.square(pictures - true).mean()) for pictures in (bicubic, large))
    assert error < 0.8 * bicubic_error


def assert_green_on_white(picture):
    red, green, blue = colour_of(picture)
    assert green > max(red, blue)
    assert picture[0].mean() > 220


def colour_of(picture):
    """Mean of the pixels that are not background."""
    return picture[(picture < 200).any(axis=-1)].mean(axis=0)
