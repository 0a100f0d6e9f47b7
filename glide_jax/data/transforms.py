"""Picture files to training pictures: decode to RGB on white, crop a square, resize with antialiasing.

Pictures are 8-bit RGB Pillow images here; they become [height, width, 3] arrays when a batch is filled.
"""

import io
import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from glide_jax.data.source import BadSample

# Only formats of photographs and web pictures: Pillow's others include programs (EPS) and videos.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_MAX_PIXELS = 80_000_000
_ORIENTATION = 0x0112
_SIDEWAYS = 5  # orientations from here on exchange width and height
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_REDUCING_GAP = 2.0
_WHITE_FROM = 250


class Box(NamedTuple):
    """A rectangle in pixels of its picture; `right` and `bottom` are exclusive."""

    left: float
    top: float
    right: float
    bottom: float


class Decoded(NamedTuple):
    """A decoded picture, its size in the file, and how many pixels there became one here (1, 2, 4 or 8)."""

    image: Image.Image
    width: int
    height: int
    reduction: int


def decode(data: bytes, side: int = 0) -> Image.Image:
    """The picture alone: see `decode_reduced`."""
    return decode_reduced(data, side).image


def decode_reduced(data: bytes, side: int = 0) -> Decoded:
    """An encoded picture as RGB: upright by EXIF, transparent parts on white, 16 bits cut to 8.

    Args:
        data: a JPEG, PNG, WebP, GIF (first frame), BMP, TIFF or AVIF file.
        side: if positive, a JPEG is decoded at the smallest of the scales 1, 1/2, 1/4 and 1/8 that leaves its
            shorter side at least this long.

    Raises:
        BadSample: it cannot be decoded to the end, or has more than 80 million pixels.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > _MAX_PIXELS:
            raise BadSample("picture too large")
        orientation, size = _orientation(image), image.size
        if side:
            image.draft("RGB", (side, side))
        image.load()
        reduction = round(size[0] / image.width)
        upright = _UPRIGHT.get(orientation)
        image = _rgb(image if upright is None else image.transpose(upright))
        return Decoded(image, *(size[::-1] if orientation >= _SIDEWAYS else size), reduction)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSample("picture too large") from error
    except BadSample:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise BadSample("corrupt picture") from error


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels of an encoded picture, upright by EXIF; raises `BadSample`."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            return (height, width) if _orientation(image) >= _SIDEWAYS else (width, height)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSample("picture too large") from error
    except Exception as error:
        raise BadSample("corrupt picture") from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata does not spoil the picture
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BadSample("picture of floats")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scale
        levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray((levels >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    return image.convert("RGB")


def center_box(width: int, height: int) -> Box:
    """The largest centred square."""
    side = min(width, height)
    return _square((width - side) // 2, (height - side) // 2, side)


def random_box(width: int, height: int, resize_ratio: float, rng: np.random.Generator) -> Box:
    """A square anywhere in the picture whose area is uniform in [resize_ratio, 1] of the largest square's.

    For square pictures this is `RandomResizedCrop(scale=(resize_ratio, 1), ratio=(1, 1))`; for longer ones
    the fraction is of the largest square, not of the whole picture, so it never falls back to the centre.
    """
    side = max(1, round(min(width, height) * math.sqrt(rng.uniform(resize_ratio, 1.0))))
    return _square(int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1)), side)


def _square(left: int, top: int, side: int) -> Box:
    return Box(left, top, left + side, top + side)


def whole_box(width: int, height: int) -> Box:
    """All of the picture."""
    return Box(0, 0, width, height)


def resize_crop_reduced(decoded: Decoded, box: Box, size: int) -> Image.Image:
    """The part in a box of pixels in the file, to fractions of a pixel where decoding has reduced them."""
    return resize_crop(decoded.image, Box(*(edge / decoded.reduction for edge in box)), size)


def resize_crop(image: Image.Image, box: Box, size: int) -> Image.Image:
    """The part in `box` at `size` pixels a side: averaged to no less than twice that, then bicubic."""
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=_REDUCING_GAP)


def downsample(image: Image.Image, size: int, method: str = "bicubic") -> Image.Image:
    """The low-resolution picture of an upsampling pair, from the finished crop: antialiased `bicubic`, or `area`."""
    return image.resize((size, size), Image.Resampling.BOX if method == "area" else Image.Resampling.BICUBIC)


def trim_white(image: Image.Image) -> Image.Image:
    """The picture without the white border around it, where white is 250 of 255 and more; all of it if it is white."""
    box = image.convert("L").point([255] * _WHITE_FROM + [0] * (256 - _WHITE_FROM)).getbbox()
    return image if box is None else image.crop(box)


def mirror(image: Image.Image) -> Image.Image:
    """The picture with left and right exchanged."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def decoding_side(size: int, crop: str, resize_ratio: float) -> int:
    """The shorter side in pixels to decode to at least, so that every possible crop has twice `size`."""
    return math.ceil(2 * size / (math.sqrt(resize_ratio) if crop == "random" else 1.0))
