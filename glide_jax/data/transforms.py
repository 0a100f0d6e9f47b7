"""Image files to training images: decode to RGB on white, crop a square, resize with antialiasing.

Images are 8-bit RGB Pillow images here; they become [height, width, 3] arrays when a batch is filled.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from glide_jax import images
from glide_jax.data.source import BadSample
from glide_jax.images import Decoded

_REDUCING_GAP = 2.0
_WHITE_FROM = 250


class Box(NamedTuple):
    """A rectangle in pixels of its image; `right` and `bottom` are exclusive."""

    left: float
    top: float
    right: float
    bottom: float


def decode(data: bytes, side: int = 0) -> Decoded:
    """An encoded image as `images.open_image` gives it.

    Args:
        data: the content of a file.
        side: as for `images.decode`.

    Raises:
        BadSample: it cannot be decoded to the end, or has more than 80 million pixels.
    """
    try:
        decoded = images.decode(data, side=side)
        return decoded._replace(image=images.on_white(images.eight_bits(decoded.image)))
    except images.UnreadableImage as error:
        raise BadSample(error.reason) from error


def prepare(data: bytes, size: int, crop: str, resize_ratio: float, trim: bool) -> Image.Image:
    """An encoded image as far as it can be made without random numbers; raises `BadSample`.

    Unless `crop` is "random" it is cropped and resized to `size`; otherwise it is whole, and a JPEG is decoded at the
    smallest scale that leaves every possible crop twice `size`. With `trim`, a white border is cut off first.
    """
    if trim:  # how much of an image is border is known only when it is decoded
        image = trim_white(decode(data).image)
        decoded = Decoded(image, *image.size)
    else:
        decoded = decode(data, decoding_side(size, crop, resize_ratio))
    if crop == "random":
        return decoded.image
    width, height = decoded.width, decoded.height
    box = Box(0, 0, width, height) if crop == "squash" else center_box(width, height)
    return resize_crop_reduced(decoded, box, size)


def decoding_side(size: int, crop: str, resize_ratio: float) -> int:
    """The shorter side in pixels to decode to at least, so that every possible crop has twice `size`."""
    return math.ceil(2 * size / (math.sqrt(resize_ratio) if crop == "random" else 1.0))


def center_box(width: int, height: int) -> Box:
    """The largest centred square."""
    side = min(width, height)
    return _square((width - side) // 2, (height - side) // 2, side)


def random_box(width: int, height: int, resize_ratio: float, rng: np.random.Generator) -> Box:
    """A square anywhere in the image whose area is uniform in [resize_ratio, 1] of the largest square's.

    For square images this is `RandomResizedCrop(scale=(resize_ratio, 1), ratio=(1, 1))`; for longer ones
    the fraction is of the largest square, not of the whole image, so it never falls back to the centre.
    """
    side = max(1, round(min(width, height) * math.sqrt(rng.uniform(resize_ratio, 1.0))))
    return _square(int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1)), side)


def _square(left: int, top: int, side: int) -> Box:
    return Box(left, top, left + side, top + side)


def resize_crop_reduced(decoded: Decoded, box: Box, size: int) -> Image.Image:
    """The part in a box of pixels in the file, to fractions of a pixel where decoding has reduced them."""
    return resize_crop(decoded.image, Box(*(edge / decoded.reduction for edge in box)), size)


def resize_crop(image: Image.Image, box: Box, size: int) -> Image.Image:
    """The part in `box` at `size` pixels a side: averaged to no less than twice that, then bicubic."""
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=_REDUCING_GAP)


def downsample(image: Image.Image, size: int, method: str = "bicubic") -> Image.Image:
    """An upsampler's low-resolution input, from the finished crop: antialiased `bicubic`, or `area`."""
    return image.resize((size, size), Image.Resampling.BOX if method == "area" else Image.Resampling.BICUBIC)


def trim_white(image: Image.Image) -> Image.Image:
    """The image without the white border around it, where white is 250 of 255 and more; all of it if it is white."""
    box = image.convert("L").point([255] * _WHITE_FROM + [0] * (256 - _WHITE_FROM)).getbbox()
    return image if box is None else image.crop(box)


def mirror(image: Image.Image) -> Image.Image:
    """The image with left and right exchanged."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
