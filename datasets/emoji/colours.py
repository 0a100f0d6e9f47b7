"""The main colour of an image, as one of the eleven basic colour words."""

import numpy as np
from PIL import Image

NAMES = ("black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
_HUE_ENDS = (15, 40, 66, 165, 255, 292, 338)
_HUE_NAMES = ("red", "orange", "yellow", "green", "blue", "purple", "pink")


def main_colour(image: Image.Image) -> tuple[str, float]:
    """Returns the commonest colour word among the opaque pixels, and its share of them in (0, 1].

    image: RGBA, before it is put on a background.
    """
    small = np.asarray(image.convert("RGBA").resize((64, 64), Image.Resampling.BOX), np.float64) / 255
    words = _name_pixels(small[small[..., 3] > 0.5, :3])
    counts = np.bincount(words, minlength=len(NAMES))
    return NAMES[counts.argmax()], round(float(counts.max() / counts.sum()), 2)


def _name_pixels(rgb: np.ndarray) -> np.ndarray:
    """Maps RGB in [0, 1], [pixels, 3], to indices into NAMES, [pixels], by hue, saturation and value."""
    value = rgb.max(-1)
    chroma = value - rgb.min(-1)
    saturation = chroma / np.maximum(value, 1e-9)
    hue = _hue_degrees(rgb, value, chroma)
    colourless = saturation < np.where(value > 0.6, 0.16, 0.26)
    steel = (hue > 180) & (hue < 255) & (saturation < 0.36) & (value < 0.85)
    earthy = (value < 0.62) | (saturation < 0.5) & (value < 0.9) | (saturation < 0.75) & (value < 0.8)
    wine = (saturation < 0.6) & (value < 0.74)
    rules = (  # the first that holds gives the word
        (value < 0.24, "black"),
        (colourless & (value < 0.32), "black"),
        (colourless & (value > 0.88), "white"),
        (colourless | steel, "grey"),
        (((hue < 24) | (hue >= 338)) & (saturation < 0.45) & (value > 0.9), "pink"),
        (((hue < 15) | (hue >= 338)) & (saturation < 0.5) & (value > 0.75), "pink"),
        ((hue >= 8) & (hue < 46) & earthy, "brown"),
        (((hue < 8) | (hue >= 330)) & wine, "brown"),
        *((hue < end, name) for end, name in zip(_HUE_ENDS, _HUE_NAMES, strict=True)),
    )
    words = [NAMES.index(name) for _, name in rules]
    return np.select([where for where, _ in rules], words, NAMES.index("red"))


def _hue_degrees(rgb: np.ndarray, value: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Returns the HSV hue in [0, 360), [pixels]; 0 for greys."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    safe = np.maximum(chroma, 1e-9)
    sixths = np.select(
        [chroma == 0, value == red, value == green],
        [0.0, (green - blue) / safe, 2 + (blue - red) / safe],
        4 + (red - green) / safe,
    )
    return np.asarray(np.mod(60 * sixths, 360))
