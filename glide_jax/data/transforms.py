"""From image files to training images: decode to RGB on white, crop to a shape, resize with antialiasing.

Images here are 8-bit RGB Pillow images; they become [height, width, 3] arrays when a batch is filled.
"""

import math
from typing import NamedTuple, Self

import numpy as np
from PIL import Image

from glide_jax import images
from glide_jax.data.source import BadSample
from glide_jax.images import Decoded

_REDUCING_GAP = 2.0
_WHITE_FROM = 250


class Size(NamedTuple):
    """Height and width of an image in pixels, written as "48x80"."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @classmethod
    def square(cls, side: int) -> Self:
        """A square of this side."""
        return cls(side, side)

    @property
    def aspect(self) -> float:
        """Width / height."""
        return self.width / self.height


class Box(NamedTuple):
    """A rectangle in an image's pixels; `right` and `bottom` are exclusive."""

    left: float
    top: float
    right: float
    bottom: float


def decode(data: bytes, least: tuple[int, int] | None = None) -> Decoded:
    """Decodes an image, as `images.open_image` does.

    Args:
        data: the content of a file.
        least: as for `images.decode`.

    Raises:
        BadSample: it cannot be fully decoded, or has more than 80 million pixels.
    """
    try:
        decoded = images.decode(data, least=least)
        return decoded._replace(image=images.on_white(images.eight_bits(decoded.image)))
    except images.UnreadableImage as error:
        raise BadSample(error.reason) from error


def prepare(data: bytes, size: Size, crop: str, resize_ratio: float, trim: bool) -> Image.Image:
    """Processes an encoded image as far as possible without random numbers; raises `BadSample`.

    Unless `crop` is "random", it is cropped and resized to `size`; otherwise it stays whole, with a JPEG decoded at the
    smallest scale that leaves every possible crop at least twice `size`. With `trim`, a white border is cut off first.
    """
    if trim:  # the border is known only after decoding
        image = trim_white(decode(data).image)
        decoded = Decoded(image, *image.size)
    else:
        decoded = decode(data, least_decoded(size, crop, resize_ratio))
    if crop == "random":
        return decoded.image
    width, height = decoded.width, decoded.height
    box = Box(0, 0, width, height) if crop == "squash" else center_box(width, height, size)
    return resize_crop_reduced(decoded, box, size)


def least_decoded(size: Size, crop: str, resize_ratio: float) -> tuple[int, int]:
    """The minimum width and height in pixels to decode to, so that every possible crop has twice `size`."""
    least = math.sqrt(resize_ratio) if crop == "random" else 1.0
    return math.ceil(2 * size.width / least), math.ceil(2 * size.height / least)


def center_box(width: int, height: int, shape: Size) -> Box:
    """The largest centred box with the shape of `size`."""
    wide, high = _largest(width, height, shape)
    left, top = (width - wide) // 2, (height - high) // 2
    return Box(left, top, left + wide, top + high)


def random_box(width: int, height: int, shape: Size, resize_ratio: float, rng: np.random.Generator) -> Box:
    """A random box with the shape of `size`, whose area is uniform in [resize_ratio, 1] of the largest one's.

    For square images and boxes, this is `RandomResizedCrop(scale=(resize_ratio, 1), ratio=(1, 1))`; for others the
    fraction is relative to the largest box, not the whole image, so it never falls back to the centre.
    """
    scale = math.sqrt(rng.uniform(resize_ratio, 1.0))
    wide, high = (max(1, round(edge * scale)) for edge in _largest(width, height, shape))
    left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
    return Box(left, top, left + wide, top + high)


def _largest(width: int, height: int, shape: Size) -> tuple[float, float]:
    """Width and height of the largest box with the shape of `size` in an image."""
    return min(width, height * shape.width / shape.height), min(height, width * shape.height / shape.width)


def resize_crop_reduced(decoded: Decoded, box: Box, size: Size) -> Image.Image:
    """Resizes the part in a box given in the file's pixels, which decoding may have reduced."""
    return resize_crop(decoded.image, Box(*(edge / decoded.reduction for edge in box)), size)


def resize_crop(image: Image.Image, box: Box, size: Size) -> Image.Image:
    """Resizes the part in `box` to `size`: averaged to at least twice that, then bicubic."""
    return image.resize((size.width, size.height), Image.Resampling.BICUBIC, box=box, reducing_gap=_REDUCING_GAP)


def downsample(image: Image.Image, size: Size, method: str = "bicubic") -> Image.Image:
    """An upsampler's low-resolution input, from the finished crop: antialiased `bicubic`, or `area`."""
    kind = Image.Resampling.BOX if method == "area" else Image.Resampling.BICUBIC
    return image.resize((size.width, size.height), kind)


def trim_white(image: Image.Image) -> Image.Image:
    """The image without its white border, where white means 250 of 255 or more; an all-white image stays whole."""
    box = image.convert("L").point([255] * _WHITE_FROM + [0] * (256 - _WHITE_FROM)).getbbox()
    return image if box is None else image.crop(box)


def mirror(image: Image.Image) -> Image.Image:
    """The image mirrored horizontally."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
