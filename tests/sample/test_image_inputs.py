"""Pictures and masks as people give them."""

import io

import numpy as np
import pytest
from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.images import to_uint8
from glide_jax.sample.image_inputs import load_image, load_inpainting, load_mask


def test_the_middle_square_is_taken_and_resized(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (255, 0, 0)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    for given in (tmp_path / "wide.png", str(tmp_path / "wide.png"), Image.fromarray(wide), wide):
        picture = load_image(given, 8)
        assert picture.shape == (8, 8, 3)
        np.testing.assert_array_equal(picture, np.broadcast_to(np.float32([1, -1, -1]), (8, 8, 3)))


@pytest.mark.parametrize(
    ("size", "box"), [((4, 8), (0, 5, 40, 25)), ((8, 4), (12, 0, 27, 30)), ((3, 4), (0, 0, 40, 30))]
)
def test_of_another_shape_the_middle_of_that_shape_is_taken(size, box):
    pixels = np.random.RandomState(0).randint(0, 256, (30, 40, 3)).astype(np.uint8)
    cut = Image.fromarray(pixels).crop(box).resize(size[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(to_uint8(load_image(pixels, size)), np.asarray(cut))
    line = np.full((1, 1000, 3), 128, np.uint8)
    assert np.abs(load_image(line, size)).max() < 0.01
    mask = np.where(np.arange(40) < 20, 255, 0).astype(np.uint8)[None].repeat(30, 0)
    assert load_mask(mask, size).shape == (*size, 1)


def test_transparent_parts_are_white():
    image = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    np.testing.assert_array_equal(load_image(image, 4), 1.0)


def test_a_mask_is_one_where_white():
    mask = np.zeros((30, 40), np.uint8)
    mask[:, 20:] = 255
    loaded = load_mask(mask, 10)
    assert loaded.shape == (10, 10, 1)
    assert set(np.unique(loaded)) == {0.0, 1.0}
    assert loaded[:, :5].max() == 0
    assert loaded[:, 5:].min() == 1


def test_a_mask_of_another_shape_is_refused_and_one_that_only_was_resized_is_not():
    photo = np.zeros((400, 300, 3), np.uint8)
    mask = np.where(np.arange(67)[:, None] < 30, 0, 255).astype(np.uint8).repeat(50, 1)
    image, kept = load_inpainting(photo, mask, 8)
    np.testing.assert_array_equal(image, load_image(photo, 8))
    np.testing.assert_array_equal(kept, load_mask(mask, 8))
    turned = Image.fromarray(photo)
    turned.getexif()[0x0112] = 6  # to be shown turned by a quarter
    file = io.BytesIO()
    turned.save(file, "jpeg", exif=turned.getexif())
    with pytest.raises(GlideError, match=r"image has 400 x 300 pixels .* and the mask 50 x 67: give a mask of the"):
        load_inpainting(Image.open(file), mask, 8)


def test_a_mask_that_is_cut_off_is_called_that():
    mask = np.where(np.arange(60) < 10, 0, 255).astype(np.uint8)[None].repeat(20, 0)
    with pytest.raises(GlideError, match="all would be kept of the 8:8 part in the middle, which is what is used"):
        load_mask(mask, 8)


def test_a_photograph_is_no_mask():
    photo = np.random.RandomState(0).randint(0, 256, (30, 30, 3)).astype(np.uint8)
    with pytest.raises(GlideError, match=r"white .* where the image is kept and black"):
        load_mask(photo, 10)


def test_files_that_are_no_pictures_are_refused(tmp_path):
    (tmp_path / "x.png").write_text("no picture")
    for path in (tmp_path / "x.png", tmp_path / "missing.png", tmp_path):
        with pytest.raises(GlideError, match="cannot read the image"):
            load_image(path, 8)
