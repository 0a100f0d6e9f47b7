"""Batches of training examples as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from glide_jax.data.transforms import downsample
from glide_jax.errors import GlideError
from glide_jax.tokenizer import GlideTokenizer


@dataclass(frozen=True, slots=True)
class Shapes:
    """What a model takes; sizes that do not fit together raise `GlideError`.

    Attributes:
        image_size: side of the square picture in pixels.
        low_res_size: side of its low-resolution twin, a divisor of `image_size`; None where there is none.
        text_ctx: tokens a caption.
    """

    image_size: int
    low_res_size: int | None
    text_ctx: int

    def __post_init__(self) -> None:
        low, high = self.low_res_size or 1, self.image_size
        if high < 1 or low < 1 or high % low:
            raise GlideError(f"image_size {high} must be a positive multiple of low_res_size {low}")
        if self.text_ctx < 1:
            raise GlideError(f"text_ctx must be at least 1, not {self.text_ctx}")


class Batch(NamedTuple):
    """Examples side by side.

    Attributes:
        arrays: by name,
            `image` uint8 [batch, image_size, image_size, 3];
            `low_res` uint8 [batch, low_res_size, low_res_size, 3], for an upsampler only;
            `tokens` int32 and `mask` bool [batch, text_ctx], the mask all False for a dropped caption;
            `index` int32 [batch], the global example index modulo 2^31, which keys the example's noise;
            `weight` float32 [batch], 1 for an example and 0 for a row that only fills up the shape.
        captions: each picture's own caption, dropped or not; "" in rows of weight 0.
    """

    arrays: dict[str, np.ndarray]
    captions: list[str]


def empty_batch(shapes: Shapes, size: int) -> Batch:
    """A batch of `size` black rows without text, of weight 0."""
    tokens, mask = GlideTokenizer().padded([""] * size, shapes.text_ctx)
    arrays = {
        "image": _black(size, shapes.image_size),
        "tokens": tokens,
        "mask": mask,
        "index": np.zeros(size, np.int32),
        "weight": np.zeros(size, np.float32),
    }
    if shapes.low_res_size is not None:
        arrays["low_res"] = _black(size, shapes.low_res_size)
    return Batch(arrays, [""] * size)


def _black(size: int, side: int) -> UInt8[np.ndarray, "size side side 3"]:
    return np.zeros((size, side, side, 3), np.uint8)


def write_row(
    batch: Batch, row: int, index: int, image: Image.Image, caption: str, low_res_filter: str = "bicubic"
) -> None:
    """Writes an example's finished picture, and its low-resolution twin where the batch has one."""
    arrays = batch.arrays
    arrays["image"][row] = image
    if "low_res" in arrays:
        arrays["low_res"][row] = downsample(image, arrays["low_res"].shape[1], low_res_filter)
    arrays["index"][row] = index % 2**31
    arrays["weight"][row] = 1.0
    batch.captions[row] = caption


def write_texts(batch: Batch, first_row: int, texts: Sequence[str]) -> None:
    """Writes the tokens of texts into the rows from `first_row` on."""
    rows = slice(first_row, first_row + len(texts))
    tokens, mask = GlideTokenizer().padded(texts, batch.arrays["tokens"].shape[1])
    batch.arrays["tokens"][rows], batch.arrays["mask"][rows] = tokens, mask
