import io

import numpy as np
import pytest
from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.sample.pictures import load_mask
from glide_jax.ui.uploads import from_editor, open_picture, uploaded


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


def test_what_is_painted_is_drawn_anew_and_the_rest_is_kept():
    layer = np.zeros((40, 60, 4), np.uint8)
    layer[10:30, 20:40] = 255
    picture = Image.new("RGBA", (60, 40))
    background, mask = from_editor({"background": picture, "layers": [Image.fromarray(layer)]})
    assert background is picture
    kept = load_mask(mask, 40)[..., 0]
    assert kept[20, 20] == 0
    assert kept.mean() == 1 - 20 * 20 / 40 / 40
    assert from_editor({"background": picture, "layers": []})[1].getextrema() == (255, 255)
    assert from_editor(None) == (None, None)


@pytest.mark.parametrize(
    "path", ["", None, "a\0b", "x" * 5000, "/dev/null", "/etc/hostname", "loop", "folder", "nowhere"]
)
def test_only_regular_files_of_the_upload_folder_are_opened(tmp_path, path):
    folder = tmp_path / "uploads"
    (folder / "folder").mkdir(parents=True)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "a.png").write_bytes(b"")
    assert uploaded(str(folder / "a.png"), str(folder)) == folder / "a.png"
    inside = path if path in ("", None) or path.startswith("/") else f"{folder}/{path}"
    with pytest.raises(GlideError, match="upload the image as a file"):
        uploaded(inside, str(folder))
