"""The one door for images: any format, orientation and depth; whatever is damaged is one line."""

import io
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from glide_jax.data import transforms
from glide_jax.data.source import BadSample
from glide_jax.errors import GlideError
from glide_jax.images import UnreadableImage, image_size, open_image
from glide_jax.sample.image_inputs import load_image, load_mask
from glide_jax.ui.uploads import open_upload

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
HALVES = np.repeat(np.uint8([[0, 255]]), 4, axis=1).repeat(4, axis=0)  # 4 high, 8 wide, black then white


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format=form, **options)
    return file.getvalue()


def decode(content):
    return transforms.decode(content).image


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(HALVES, exif=exif)


@pytest.mark.parametrize("orientation", [0, 1, 9, 256, 65535])
def test_an_orientation_that_does_not_exist_is_upright(orientation):
    content = turned(orientation)
    assert image_size(content) == open_image(content).size == (8, 4)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_phone_photograph_is_upright_everywhere(orientation, tmp_path):
    content = turned(orientation)
    (tmp_path / "photo.png").write_bytes(content)
    assert image_size(content) == (4, 8)
    upright = np.asarray(decode(content))
    np.testing.assert_array_equal(np.asarray(open_upload(content, 99).convert("RGB")), upright)
    top = upright[0, 0, 0]
    for load in (load_image, load_mask):
        loaded = load(tmp_path / "photo.png", 4)
        assert (loaded[0] == (1 if top else loaded.min())).all()
        assert loaded[0, 0, 0] != loaded[-1, 0, 0]


@pytest.mark.parametrize("grey", [np.full((4, 4), 0x4000, np.uint16), encoded(np.full((4, 4), 0x4000, np.uint16))])
def test_sixteen_bits_are_scaled_everywhere(grey):
    assert np.asarray(open_image(grey))[0, 0].tolist() == [64, 64, 64]
    np.testing.assert_allclose(load_image(grey, 4), 64 / 127.5 - 1, rtol=1e-6)
    if isinstance(grey, bytes):
        assert np.asarray(decode(grey))[0, 0, 0] == open_upload(grey, 99).getpixel((0, 0))[0] == 64


def text_bomb():
    info = PngImagePlugin.PngInfo()
    info.add(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**21)))
    return encoded(HALVES, pnginfo=info)


UNREADABLE = {
    "floats": (encoded(np.ones((4, 4), np.float32), "TIFF"), "its values are floats"),
    "a cut file": (encoded(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))[:4000], "it is damaged"),
    "no image": (b"<!doctype html>", "it is damaged, or no JPEG"),
    "nothing": (b"", "it is damaged"),
    "a text bomb": (text_bomb(), "it is damaged"),
    "too many pixels": (encoded(Image.new("1", (20000, 10000))), "pixels"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is damaged"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_one_line_everywhere(name, tmp_path):
    content, why = UNREADABLE[name]
    path = tmp_path / "given.png"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for read in (open_image, lambda given: load_image(given, 8)):
            with pytest.raises(GlideError, match=why) as error:
                read(path)
            assert str(error.value).startswith(f"cannot read the image {path}: ")
            assert "\n" not in str(error.value)
        with pytest.raises(BadSample):
            decode(content)
        with pytest.raises(GlideError, match="not a readable image"):
            open_upload(content, 10**7)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.int64), np.zeros((4, 4, 3), np.float64), np.zeros((4, 4), np.float32),
        np.zeros((3, 8, 8), np.uint8), np.zeros((2, 4, 4, 3), np.uint8), np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8), np.zeros((4, 4, 3), bool),
    ],
)  # fmt: skip
def test_arrays_that_are_no_images_are_refused(array):
    with pytest.raises(UnreadableImage, match=r"an array must be uint8 \[height, width, 3\]"):
        load_image(array, 4)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 3), (4, 4, 4)])
def test_arrays_of_bytes_are_images(shape):
    np.testing.assert_array_equal(load_image(np.full(shape, 255, np.uint8), 4), 1.0)


MASKS = {
    "0 and 255": HALVES,
    "0 and 1": HALVES // 255,
    "0 and 1 as int64": HALVES.astype(np.int64) // 255,
    "0 and 1 as float": HALVES.astype(np.float64) / 255,
    "booleans": HALVES > 0,
    "a channel": (HALVES // 255)[..., None],
    "16 bits": HALVES.astype(np.uint16) * 257,
    "16 bits, 0 and 1": HALVES.astype(np.uint16) // 255,
    "a file": encoded(HALVES),
    "a file of 0 and 1": encoded(HALVES // 255),
    "a file of 16 bits, 0 and 1": encoded(HALVES.astype(np.uint16) // 255),
    "a file of floats": encoded(HALVES.astype(np.float32) / 255, "TIFF"),
    "a file of one bit": encoded(Image.fromarray(HALVES).convert("1")),
    "alpha over one colour": Image.merge("RGBA", [*[Image.new("L", (8, 4), 90)] * 3, Image.fromarray(HALVES)]),
}


@pytest.mark.parametrize("name", MASKS)
def test_every_way_to_write_a_mask_is_understood(name):
    mask = load_mask(MASKS[name], 4)
    np.testing.assert_array_equal(mask[..., 0], np.repeat(np.float32([[0, 0, 1, 1]]), 4, axis=0))


@pytest.mark.parametrize(("value", "kept"), [(0, 0.0), (255, 1.0), (1, 1.0)])
def test_a_mask_may_be_all_of_one_kind(value, kept):
    np.testing.assert_array_equal(load_mask(np.full((4, 4), value, np.uint8), 4), kept)


def speck(background, value):
    mask = np.full((64, 64), background, np.uint8)
    mask[0, 0] = value
    return mask


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (speck(0, 255), "all would be inpainted"),
        (speck(255, 0), "all would be kept"),
        (HALVES // 25, "all would be inpainted"),
        (np.full((4, 4), -1), "values of 0 to 255"),
        (np.full((4, 4), 1e6), "values of 0 to 255"),
        (np.full((4, 4), np.nan), "finite numbers"),
        (np.zeros((2, 4, 4)), "finite numbers"),
        (np.array([["a"]]), "finite numbers"),
    ],
)
def test_masks_that_say_nothing_are_refused(mask, message):
    with pytest.raises(GlideError, match=message):
        load_mask(mask, 8)


@pytest.fixture(scope="module")
def originals():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (24, 20, 3), np.uint8)
    files = [encoded(pixels, form) for form in FORMATS]
    exif = Image.Exif()
    exif[0x0112] = 6
    files += [encoded(pixels, "JPEG", exif=exif, progressive=True), encoded(pixels, "PNG", interlace=1)]
    files += [encoded(Image.fromarray(pixels).convert(mode), form) for mode, form in (("P", "PNG"), ("CMYK", "TIFF"))]
    return [*files, encoded(pixels[..., 0].astype(np.uint16) * 257)]


def mutated(content, random):
    content = bytearray(content)
    match random.integers(4):
        case 0:  # cut
            del content[random.integers(len(content)) :]
        case 1:  # cut out
            start = random.integers(len(content))
            del content[start : start + random.integers(1, 40)]
        case 2:  # repeat
            start = random.integers(len(content))
            content[start:start] = content[start : start + random.integers(1, 40)]
        case _:  # other bytes
            for at in random.integers(len(content), size=random.integers(1, 8)):
                content[at] = random.integers(256)
    return bytes(content)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(8))
def test_damaged_files_are_an_image_or_one_line(originals, seed):
    """2,000 mutated files in all, of 12 kinds."""
    random = np.random.default_rng(seed)
    outcomes = {"image": 0, "refused": 0}
    for number in range(250):
        content = mutated(originals[number % len(originals)], random)
        try:
            said = open_image(content, 10**6).mode
        except UnreadableImage as error:
            said = str(error)
        outcomes["image" if said == "RGB" else "refused"] += 1
        assert said == "RGB" or (said.startswith("cannot read the image: ") and "\n" not in said)
    assert min(outcomes.values()) > 20
