"""The uint8 edge, picture files and grids."""

import json
import sys
import time

import numpy as np
import pytest
from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.images import from_uint8, grid, save_animation, save_jpeg, save_png, to_uint8


def test_every_grey_level_survives_the_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(to_uint8(from_uint8(levels)), levels)


def test_values_are_rounded_and_clipped():
    x = np.array([-1.5, -1.0, 0.0, 1.0, 7.0], np.float32).reshape(1, 1, 5, 1)
    assert to_uint8(x).ravel().tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("ending", ["gif", "webp", "PNG"])
def test_an_animation_has_all_frames_and_rests_on_the_last(ending, tmp_path):
    frames = [np.full((8, 12, 3), level, np.uint8) for level in (0, 100, 250)]
    path = tmp_path / "folder" / f"forming.{ending}"
    save_animation(path, frames)
    with Image.open(path) as animation:
        assert (animation.n_frames, animation.size, animation.info["loop"]) == (3, (12, 8), 0)
        shown = []
        for index in range(3):
            animation.seek(index)
            animation.load()  # a WebP's duration is known after that
            shown.append((np.asarray(animation.convert("RGB"), int).mean(), animation.info["duration"]))
    np.testing.assert_allclose([level for level, _ in shown], [0, 100, 250], atol=3)
    assert [milliseconds for _, milliseconds in shown] == [200, 200, 2000]


def test_an_animation_is_of_the_formats_that_move(tmp_path):
    with pytest.raises(GlideError, match=r"must end with \.gif, \.webp, \.png, \.mp4$"):
        save_animation(tmp_path / "forming.avi", [np.zeros((2, 2, 3), np.uint8)])


def test_a_video_has_all_frames_and_rests_on_the_last(tmp_path, monkeypatch):
    av = pytest.importorskip("av")
    frames = [np.full((33, 47, 3), level, np.uint8) for level in (0, 100, 250)]
    save_animation(tmp_path / "forming.mp4", frames)
    with av.open(tmp_path / "forming.mp4") as video:
        shown = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert video.duration == pytest.approx(2.4e6, rel=0.1)
    assert shown[0].shape == (34, 48, 3)
    np.testing.assert_allclose([image[:30, :44].mean() for image in shown], [0, 100, *[250] * 10], atol=3)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(GlideError, match="uv sync --inexact --extra video"):
        save_animation(tmp_path / "forming.mp4", frames)


@pytest.mark.parametrize("count", [1, 2, 5, 7, 9])
def test_a_grid_drops_no_picture(count):
    pictures = [np.full((8, 8, 3), 10 + i, np.uint8) for i in range(count)]
    sheet = grid(pictures, [f"picture {i}" for i in range(count)], cell=24)
    for i in range(count):
        assert (sheet == 10 + i).all(axis=-1).sum() >= 24 * 24


def test_small_pictures_grow_by_whole_factors_and_large_ones_stay():
    sheet = grid([np.full((8, 8, 3), 1, np.uint8), np.full((20, 20, 3), 2, np.uint8)], cell=20)
    assert (sheet == 1).all(axis=-1).sum() == 16 * 16
    assert (sheet == 2).all(axis=-1).sum() == 20 * 20


def test_a_png_carries_its_metadata(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    save_png(tmp_path / "new" / "a.png", pixels, {"prompt": "ein grüner Käfer 🐞"})
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.text["prompt"] == "ein grüner Käfer 🐞"
        np.testing.assert_array_equal(np.asarray(image), pixels)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_an_unwritable_place_gets_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GlideError, match=r"cannot write .*a\.png"):
        save_png(tmp_path / "file" / "a.png", np.zeros((2, 2, 3), np.uint8))


def test_a_jpeg_carries_its_metadata(tmp_path):
    pixels = np.full((16, 16, 3), 100, np.uint8)
    save_jpeg(tmp_path / "a.jpg", pixels, {"prompt": "ein Käfer"})
    with Image.open(tmp_path / "a.jpg") as image:
        assert json.loads(image.info["comment"]) == {"prompt": "ein Käfer"}
        assert np.abs(np.asarray(image).astype(int) - pixels).max() <= 1


def test_a_caption_of_any_length_is_laid_out_at_once():
    begun = time.monotonic()
    for text in ("a" * 100_000, "a " * 50_000):
        sheet = grid([np.zeros((64, 64, 3), np.uint8)], [text], cell=256)
        assert sheet.shape[1] == 256 + 8
    assert time.monotonic() - begun < 2


def test_paths_that_are_no_text_are_recorded(tmp_path):
    metadata = {"init_image": "caf\udce9.png"}
    save_png(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8), metadata)
    save_jpeg(tmp_path / "a.jpg", np.zeros((2, 2, 3), np.uint8), metadata)
    with Image.open(tmp_path / "a.png") as png, Image.open(tmp_path / "a.jpg") as jpeg:
        assert png.text["init_image"] == json.loads(jpeg.info["comment"])["init_image"] == "caf\\udce9.png"
