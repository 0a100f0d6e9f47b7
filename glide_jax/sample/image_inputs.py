"""Images and masks from users: any file or array, converted to what a model takes."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.images import ImageSource, decode, eight_bits, from_uint8, on_white, open_image

# The most by which a mask's aspect ratio may differ from the image's, relatively: small ones are rounded.
_MOST_UNLIKE = 0.05
_CONVENTION = "a mask is white (255, or 1) where the image is kept and black (0) where it is inpainted"


def load_image(given: ImageSource, size: int | tuple[int, int]) -> Float[np.ndarray, "height width 3"]:
    """An image in [-1, 1]: centre-cropped and resized, rotated according to EXIF, on white where transparent.

    Args:
        given: a file, array or PIL image.
        size: (height, width), or the side of a square.

    Raises:
        GlideError: not a readable image (`UnreadableImage`).
    """
    return from_uint8(np.asarray(_fitted(open_image(given), size, Image.Resampling.BICUBIC)))


def load_inpainting(
    image: ImageSource, mask: ImageSource, size: int | tuple[int, int]
) -> tuple[Float[np.ndarray, "height width 3"], Float[np.ndarray, "height width 1"]]:
    """An image as by `load_image`, and the mask of what to keep of it as by `load_mask`.

    Raises:
        GlideError: one of them cannot be used, or they have different shapes, so that the mask would be elsewhere.
    """
    picture, grey = open_image(image), _grey(mask)
    across, down = picture.width * grey.height, picture.height * grey.width
    if abs(across - down) > _MOST_UNLIKE * max(across, down):
        sizes = [f"{each.width} x {each.height}" for each in (picture, grey)]
        raise GlideError(
            f"the image has {sizes[0]} pixels (turned upright, if it says how) and the mask {sizes[1]}: give a mask of"
            " the image's shape"
        )
    return load_image(picture, size), load_mask(grey, size)


def load_mask(given: ImageSource, size: int | tuple[int, int]) -> Float[np.ndarray, "height width 1"]:
    """A mask of 0 and 1 from a black and white image, cropped and resized like the image; white (1) is kept.

    Values of 0 and 1 are taken for 0 and 255, also in arrays of any type. If only the alpha channel varies, over a
    single colour, it is the mask.

    Raises:
        GlideError: it cannot be read, is not black and white, or becomes all black or all white at this size.
    """
    grey = _grey(given)
    values = np.asarray(grey)
    between = np.mean((values > 32) & (values < 223))
    if between > 0.05:
        raise GlideError(f"{_CONVENTION}; {between:.0%} of this one is neither")
    kept = np.asarray(_fitted(grey, size, Image.Resampling.BOX)) > 127
    if (kept.all() or not kept.any()) and values.min() != values.max():
        everything = "kept" if kept.all() else "inpainted"
        height, width = kept.shape
        low, high = _cropped(grey, size).getextrema()
        if low == high:
            raise GlideError(
                f"{_CONVENTION}; all would be {everything} of the {width}:{height} part in the middle, which is what is"
                " used: crop the image and the mask first"
            )
        raise GlideError(
            f"{_CONVENTION}; at {width} x {height} pixels all would be {everything} by this one, whose values are"
            f" {values.min()} to {values.max()}: make the smaller part larger, or whiter or blacker"
        )
    return kept[..., None].astype(np.float32)


def _grey(given: ImageSource) -> Image.Image:
    """The mask in 8-bit grey."""
    if isinstance(given, np.ndarray) and given.dtype not in (np.uint8, np.uint16):
        return Image.fromarray(_scaled(_plane(given)))
    image = decode(given).image
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_scaled(np.asarray(image)))
    image = eight_bits(image)
    if image.mode == "RGBA":
        values = np.asarray(image)
        colours, alpha = values[..., :3], values[..., 3]
        if alpha.min() < alpha.max() and (colours == colours[0, 0]).all():
            return Image.fromarray(alpha)
    return Image.fromarray(_scaled(np.asarray(on_white(image).convert("L"))))


def _plane(array: np.ndarray) -> np.ndarray:
    plane = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if plane.ndim != 2 or not plane.size or plane.dtype.kind not in "biuf" or not np.isfinite(plane).all():
        raise GlideError(f"a mask must be finite numbers [height, width], not {array.dtype} {list(array.shape)}")
    return plane


def _scaled(values: np.ndarray) -> UInt8[np.ndarray, "_ _"]:
    """Scales to 0..255 from 0..1, 0..255 or, if there are larger values, 0..65535."""
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise GlideError(f"{_CONVENTION}, with values of 0 to 255; this one's are {low} to {high}")
    if high <= 1:
        return np.rint(255 * values.astype(np.float32)).astype(np.uint8)
    return (values.astype(np.int64) >> (8 if high > 255 else 0)).astype(np.uint8)


def _fitted(image: Image.Image, size: int | tuple[int, int], resample: Image.Resampling) -> Image.Image:
    height, width = (size, size) if isinstance(size, int) else size
    return _cropped(image, size).resize((width, height), resample)


def _cropped(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    height, width = (size, size) if isinstance(size, int) else size
    # The largest crop of that shape, in whole pixels.
    wide = max(1, min(image.width, image.height * width // height))
    high = max(1, min(image.height, image.width * height // width))
    left, top = (image.width - wide) // 2, (image.height - high) // 2
    return image.crop((left, top, left + wide, top + high))
