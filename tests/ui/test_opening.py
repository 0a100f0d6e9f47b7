import io
import time

import numpy as np
import pytest
from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.sample.inputs import load_image
from glide_jax.ui.opening import SIDE, open_apart, open_picture


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, **{"format": "PNG"} | options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pictures_of_any_mode_are_read(mode):
    assert open_picture(encoded(Image.new(mode, (5, 4))), 20).mode == "RGBA"
    assert open_picture(encoded(Image.new("CMYK", (5, 4)), format="JPEG"), 20).size == (5, 4)


def test_a_photograph_is_turned_upright():
    exif = Image.Exif()
    exif[274] = 6
    assert open_picture(encoded(Image.new("RGB", (6, 3)), format="JPEG", exif=exif), 99).size == (3, 6)


def test_more_pixels_than_allowed_are_refused_before_they_are_decoded():
    content = encoded(Image.new("L", (3000, 2000)))
    with pytest.raises(GlideError, match="3000 x 2000 pixels, more than 1 million"):
        open_picture(content[:200], 1_000_000)


def test_a_decompression_bomb_is_refused():
    with pytest.raises(GlideError, match="too many pixels"):
        open_picture(encoded(Image.new("1", (13500, 13500))), 10**9)


@pytest.mark.parametrize("content", [b"", b"a text", encoded(Image.new("RGB", (64, 64), "red"))[:100], b"%!PS-Adobe"])
def test_what_is_no_picture_is_refused(content, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    for source in (content, tmp_path / "x.png"):
        with pytest.raises(GlideError, match=r"^cannot read this image: it is damaged, or no JPEG, PNG, WebP"):
            open_picture(source, 10**6)


@pytest.mark.parametrize("options", [{}, {"format": "JPEG", "quality": 95}])
def test_a_large_picture_is_reduced_as_it_is_opened(options):
    rows = np.linspace(0, 255, 2 * SIDE + 100).astype(np.uint8)
    large = Image.fromarray(np.broadcast_to(rows[:, None, None], (len(rows), len(rows), 3)))
    opened = open_picture(encoded(large, **options), 10**7)
    assert opened.size == (len(rows) // 2,) * 2
    np.testing.assert_allclose(load_image(opened, 64), load_image(large, 64), atol=3 / 255)
    assert open_picture(encoded(large.crop((0, 0, 9, 2 * SIDE)), **options), 10**7).size == (9, 2 * SIDE)


def of_many_scans(side, scans):
    """A progressive JPEG, small to send and long to decode: its last scan over and over."""
    content = encoded(Image.new("L", (side, side), 200), format="JPEG", progressive=True)
    last = content[content.rfind(b"\xff\xc4", 0, content.rfind(b"\xff\xda")) : -2]
    return content[:-2] + scans * last + b"\xff\xd9"


def test_what_takes_too_long_is_ended(tmp_path):
    (tmp_path / "a.jpg").write_bytes(of_many_scans(2000, 100_000))
    for source in (tmp_path / "a.jpg", (tmp_path / "a.jpg").read_bytes()):
        begun = time.monotonic()
        with pytest.raises(GlideError, match=r"^cannot read this image: it takes longer than 1 s$"):
            open_apart(source, 10**7, seconds=1)
        assert time.monotonic() - begun < 5


def test_apart_is_as_here(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    (tmp_path / "a ü.png").write_bytes(encoded(picture))
    for source in (tmp_path / "a ü.png", encoded(picture)):
        np.testing.assert_array_equal(open_apart(source, 600), open_picture(source, 600))
    with pytest.raises(GlideError, match=r"^cannot read this image: it has 30 x 20 pixels"):
        open_apart(tmp_path / "a ü.png", 599)
