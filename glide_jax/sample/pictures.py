"""Pictures and masks that people give: any file or array, brought to what a model takes."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError

from glide_jax.errors import GlideError
from glide_jax.images import from_uint8

# A file, a PIL image, or a uint8 array [height, width, 3] ([height, width] for a mask).
Given = str | Path | Image.Image | UInt8[np.ndarray, "..."]


def load_picture(given: Given, size: int) -> Float[np.ndarray, "size size 3"]:
    """A picture in [-1, 1]: its middle square, resized; transparent parts on white.

    Raises:
        GlideError: not a readable picture.
    """
    image = _open(given).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return from_uint8(np.asarray(_square(flat, size, Image.Resampling.BICUBIC)))


def load_mask(given: Given, size: int) -> Float[np.ndarray, "size size 1"]:
    """A mask of 0 and 1 from a black and white picture, cut and resized as the picture is; white (1) is kept.

    Raises:
        GlideError: not readable, or neither black nor white.
    """
    grey = _open(given).convert("L")
    values = np.asarray(grey)
    between = np.mean((values > 32) & (values < 223))
    if between > 0.05:
        raise GlideError(
            f"the mask must be white where the picture is kept and black where it is drawn anew;"
            f" {between:.0%} of this one is neither"
        )
    kept = np.asarray(_square(grey, size, Image.Resampling.BOX)) > 127
    return kept[..., None].astype(np.float32)


def _open(given: Given) -> Image.Image:
    if isinstance(given, Image.Image):
        return given
    if isinstance(given, np.ndarray):
        return Image.fromarray(given)
    try:
        return Image.open(given)
    except (OSError, UnidentifiedImageError) as error:
        raise GlideError(f"cannot read the picture {given}: {error}") from error


def _square(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), resample)
