"""The model in `checkpoints/emoji`: small, of the committed page, and used where none is given."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from configs import emoji
from glide_jax.checkpoint import read_record
from glide_jax.config import from_ml_collections
from glide_jax.sample import Pipeline
from tests.integration.test_train_and_sample import ROOT, run

BASE = "checkpoints/emoji/base"


def test_all_of_it_takes_little_room():
    files = [file for file in (ROOT / "checkpoints/emoji").rglob("*") if file.is_file()]
    assert 1_000_000 < sum(file.stat().st_size for file in files) <= 12_000_000


def test_it_is_of_the_committed_page():
    config, record = from_ml_collections(emoji.get_config()), read_record(ROOT / BASE)
    assert record["model"] == json.loads(json.dumps(asdict(config.model)))
    assert record["diffusion"] == asdict(config.diffusion)


@pytest.mark.slow
def test_a_caption_alone_draws_its_picture(tmp_path):
    result = run("sample.py", "--prompt", "a 3d render of a turtle", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    picture = Image.open(tmp_path / "0000.png")
    assert picture.size == (32, 32)
    assert {name: picture.text[name] for name in ("checkpoint", "sampler")} == {"checkpoint": BASE, "sampler": "ddpm"}
    assert_green_on_white(np.asarray(picture, float))


@pytest.mark.slow
def test_colours_follow_the_caption():
    captions = ["a 3d render of a turtle", "a 3d render of a tomato", "a 3d render of a banana"]
    drawn = Pipeline.from_checkpoints(ROOT / BASE)(captions, seed=0, sampler="ddpm", num_steps=25).images
    turtle, tomato, banana = drawn.astype(float)
    assert_green_on_white(turtle)
    red, green, _ = colour_of(tomato)
    assert red > 1.5 * green
    red, green, blue = colour_of(banana)
    assert min(red, green) > 1.3 * blue


def assert_green_on_white(picture):
    red, green, blue = colour_of(picture)
    assert green > max(red, blue)
    assert picture[0].mean() > 220


def colour_of(picture):
    """Mean of the pixels that are not background."""
    return picture[(picture < 200).any(axis=-1)].mean(axis=0)
