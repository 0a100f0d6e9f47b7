import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from glide_jax.data import transforms
from glide_jax.data.order import generator
from glide_jax.data.source import BadSample
from glide_jax.data.transforms import Size

PHOTOGRAPHS = sorted((Path(__file__).parents[1] / "golden" / "photographs").glob("*.jpg"))
RED, WHITE = (255, 0, 0), (255, 255, 255)
SQUARE = Size.square(1)


def smooth(height, width):
    """Colours that change slowly, so that lossy formats and resizing keep them."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / height, 255 * x / width, 120 + 0 * x], -1).astype(np.uint8)


def halves(left=(200, 30, 60), right=(20, 180, 90), height=24, width=40):
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = left, right
    return pixels


def psnr(a, b):
    return 10 * np.log10(255**2 / max(1e-9, np.square(np.asarray(a, float) - np.asarray(b, float)).mean()))


def decoded(data, least=None):
    return np.asarray(transforms.decode(data, least).image)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_lossless_formats_come_back_exactly(encode, file_format):
    pixels = halves()
    options = {"lossless": True} if file_format == "WEBP" else {}
    np.testing.assert_array_equal(decoded(encode(pixels, file_format, **options)), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_undone(encode, orientation, file_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(smooth(16, 48), file_format, exif=exif)
    stored = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(decoded(data), np.asarray(ImageOps.exif_transpose(stored)))
    assert decoded(data).shape == ((16, 48, 3) if orientation < 5 else (48, 16, 3))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_spoil_the_image(encode):
    data = encode(smooth(16, 16), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decoded(data).shape == (16, 16, 3)


def test_transparent_parts_are_white(encode):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[0, 0] = (255, 0, 0, 255)
    rgba[0, 1] = (255, 0, 0, 128)
    pixels = decoded(encode(rgba))
    assert tuple(pixels[0, 0]) == RED
    np.testing.assert_allclose(pixels[0, 1], (255, 127, 127), atol=1)
    assert tuple(pixels[3, 3]) == WHITE


def test_grey_with_alpha_is_on_white(encode):
    grey_alpha = np.full((4, 4, 2), (10, 255), np.uint8)
    grey_alpha[0, 0, 1] = 0
    pixels = decoded(encode(Image.fromarray(grey_alpha)))
    assert tuple(pixels[0, 0]) == WHITE
    assert tuple(pixels[1, 1]) == (10, 10, 10)


def test_palettes_keep_their_colours_and_their_transparency(encode):
    palette = Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8)).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    np.testing.assert_array_equal(decoded(encode(palette)), [[RED, (0, 255, 0)], [(0, 0, 255)] * 2])
    assert tuple(decoded(encode(palette, transparency=2))[1, 1]) == WHITE


def test_a_transparent_colour_of_an_rgb_image_is_white(encode):
    assert tuple(decoded(encode(halves(left=RED), transparency=RED))[0, 0]) == WHITE


def test_cmyk_becomes_rgb(encode):
    cmyk = Image.fromarray(halves()).convert("CMYK")
    assert Image.open(io.BytesIO(encode(cmyk, "JPEG"))).mode == "CMYK"
    np.testing.assert_allclose(
        decoded(encode(cmyk, "JPEG", quality=95))[12, [4, 35]], [(200, 30, 60), (20, 180, 90)], atol=4
    )


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(encode, file_format):
    levels = np.array([[0, 256, 32768, 65535]], np.uint16)
    data = encode(levels, file_format)
    assert Image.open(io.BytesIO(data)).mode.startswith("I")
    np.testing.assert_array_equal(decoded(data)[0], [[v] * 3 for v in (0, 1, 128, 255)])


def test_what_cannot_be_decoded_is_told_by_its_reason(encode):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    cut = [data[: len(data) // 2] for data in (encode(noise, form) for form in ("JPEG", "PNG", "WEBP"))]
    no_images = [b"", b"<html>404</html>", b"\xff\xd8\xff\xe0" + bytes(100), encode(halves(), "PPM")]
    bombs = [encode(Image.new("1", (10_000, height))) for height in (8_500, 9_500)]  # below and above Pillow's limit
    floats = [encode(np.ones((4, 4), np.float32), "TIFF")]
    reasons = {"corrupt image": cut + no_images, "image too large": bombs, "image of floats": floats}
    for reason, files in reasons.items():
        for data in files:
            with pytest.raises(BadSample, match=f"^{reason}$"):
                transforms.decode(data)


def test_jpegs_are_decoded_small_but_not_too_small(encode):
    data = encode(smooth(400, 640), "JPEG")
    assert transforms.decode(data).image.size == (640, 400)
    assert transforms.decode(data, (100, 100)).image.size == (160, 100)
    assert transforms.decode(data, (101, 101)).image.size == (320, 200)
    assert transforms.decode(data, (401, 401)).image.size == (640, 400)


def test_scaled_decoding_changes_a_smooth_image_by_rounding_only(encode):
    data = encode(smooth(512, 512), "JPEG", quality=95)
    full, scaled = (
        np.asarray(transforms.resize_crop(image, transforms.center_box(*image.size, SQUARE), Size.square(32))).astype(
            int
        )
        for image in (transforms.decode(data).image, transforms.decode(data, (64, 64)).image)
    )
    np.testing.assert_allclose(scaled, full, atol=2)


@pytest.mark.parametrize("size", [32, 64, 100, 256])
@pytest.mark.parametrize("photograph", PHOTOGRAPHS, ids=lambda path: path.stem)
def test_scaled_decoding_of_photographs_keeps_38_db(photograph, size):
    data = photograph.read_bytes()
    whole, reduced = transforms.decode(data), transforms.decode(data, (2 * size, 2 * size))
    box = transforms.center_box(whole.width, whole.height, SQUARE)
    assert (whole.width, whole.height) == (reduced.width, reduced.height) == whole.image.size
    full = whole.image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    ours = transforms.resize_crop_reduced(reduced, box, Size.square(size))
    assert psnr(full, ours) >= 38


def test_most_photographs_are_decoded_at_a_reduced_scale():
    reductions = [transforms.decode(path.read_bytes(), (128, 128)).reduction for path in PHOTOGRAPHS]
    assert sorted(reductions) == [2, 2, 2, 4]


def test_squashing_shows_the_whole_image(encode):
    data = encode(halves(height=24, width=80))
    pixels = np.asarray(transforms.prepare(data, Size.square(8), "squash", resize_ratio=0.8, trim=False))
    assert tuple(pixels[4, 1]) == (200, 30, 60)
    assert tuple(pixels[4, 6]) == (20, 180, 90)


def test_a_white_border_is_trimmed():
    image = Image.new("RGB", (50, 40), (252, 255, 251))
    image.paste((10, 20, 30), (7, 9, 31, 22))
    image.putpixel((20, 15), (255, 255, 255))
    assert transforms.trim_white(image).size == (24, 13)
    assert transforms.trim_white(image).getpixel((0, 0)) == (10, 20, 30)
    white = Image.new("RGB", (5, 4), "white")
    assert transforms.trim_white(white).size == (5, 4)


def test_the_low_resolution_image_by_area_is_the_mean():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    means = pixels.reshape(4, 4, 4, 4, 3).mean((1, 3))
    area = np.asarray(transforms.downsample(Image.fromarray(pixels), Size.square(4), "area"))
    np.testing.assert_allclose(area, means, atol=1)
    bicubic = np.asarray(transforms.downsample(Image.fromarray(pixels), Size.square(4), "bicubic"))
    assert np.abs(bicubic - means).max() > 5


@pytest.mark.parametrize(("width", "height"), [(40, 24), (24, 40), (25, 24), (24, 24), (1, 9)])
def test_the_centre_box_is_the_largest_centred_square(width, height):
    box = transforms.center_box(width, height, SQUARE)
    side = min(width, height)
    assert (box.right - box.left, box.bottom - box.top) == (side, side)
    assert abs((box.left + box.right) - width) <= 1
    assert abs((box.top + box.bottom) - height) <= 1


@pytest.mark.parametrize(("width", "height"), [(400, 100), (100, 400), (200, 200), (1, 3)])
@pytest.mark.parametrize("ratio", [0.25, 0.8, 1.0])
def test_random_boxes_are_squares_inside_with_the_stated_area(width, height, ratio):
    largest = min(width, height)
    boxes = [transforms.random_box(width, height, SQUARE, ratio, generator(0, "crop", g)) for g in range(300)]
    for box in boxes:
        side = box.right - box.left
        assert box.bottom - box.top == side >= 1
        assert 0 <= box.left < box.right <= width
        assert 0 <= box.top < box.bottom <= height
        assert side >= math.floor(largest * math.sqrt(ratio))
    if largest >= 100:
        fractions = [((box.right - box.left) / largest) ** 2 for box in boxes]
        np.testing.assert_allclose(np.mean(fractions), (1 + ratio) / 2, atol=0.03)
        assert min(box.left for box in boxes) < 0.05 * width
        assert max(box.right for box in boxes) > 0.95 * width


def test_a_crop_keeps_the_aspect_ratio(encode):
    y, x = np.mgrid[:60, :120]
    disc = np.where(((x - 59.5) ** 2 + (y - 29.5) ** 2 < 20**2)[..., None], 0, 255).astype(np.uint8).repeat(3, -1)
    image = transforms.decode(encode(disc)).image
    small = (
        np.asarray(transforms.resize_crop(image, transforms.center_box(*image.size, SQUARE), Size.square(30)))[..., 0]
        < 128
    )
    assert small.any(0).sum() == small.any(1).sum() == 20


def test_a_crop_of_its_own_size_is_copied_exactly():
    pixels = halves(height=32, width=47)
    out = transforms.resize_crop(Image.fromarray(pixels), transforms.Box(7, 0, 39, 32), Size.square(32))
    np.testing.assert_array_equal(np.asarray(out), pixels[:, 7:39])


def test_reduction_is_antialiased():
    checkerboard = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    out = transforms.resize_crop(Image.fromarray(checkerboard), transforms.Box(0, 0, 256, 256), Size.square(32))
    np.testing.assert_allclose(np.asarray(out).astype(int), 128, atol=2)


@pytest.mark.parametrize(("width", "height"), [(300, 100), (100, 300), (160, 100), (7, 9)])
def test_boxes_of_a_shape_are_the_largest_or_parts_of_it(width, height):
    shape = Size(48, 80)
    largest = transforms.center_box(width, height, shape)
    wide, high = largest.right - largest.left, largest.bottom - largest.top
    assert wide / high == pytest.approx(80 / 48)
    assert wide == width or high == height
    assert abs(largest.left + largest.right - width) < 2
    assert abs(largest.top + largest.bottom - height) < 2
    for g in range(100):
        box = transforms.random_box(width, height, shape, 0.25, generator(0, "crop", g))
        assert 0 <= box.left < box.right <= width
        assert 0 <= box.top < box.bottom <= height
        for edge, whole in ((box.right - box.left, wide), (box.bottom - box.top, high)):
            assert whole / 2 - 0.5 <= edge <= whole + 0.5


def test_a_sideways_jpeg_is_reduced_as_far_as_its_upright_size_allows(encode):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(smooth(160, 640), "JPEG", exif=exif)
    assert transforms.decode(data, (40, 160)).image.size == (40, 160)
    assert transforms.decode(data, (160, 40)).image.size == (160, 640)


def test_decoding_leaves_every_crop_twice_the_size():
    assert transforms.least_decoded(Size(64, 48), "center", 0.25) == (96, 128)
    assert transforms.least_decoded(Size(64, 48), "random", 0.25) == (192, 256)
