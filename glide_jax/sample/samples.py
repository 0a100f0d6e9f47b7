"""What comes out of a pipeline, and how a request is cut into batches of one size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "n height width 3"]


@dataclass(frozen=True)
class Samples:
    """Images and what they were generated from, in order.

    Attributes:
        images: uint8 [n, height, width, 3], of the last stage.
        prompts: caption of each image.
        indices: number of each image, which with the seed decides its noise.
        seed: the seed they share.
        small: the base model's images, where an upsampler enlarged them.
    """

    images: Pixels
    prompts: list[str]
    indices: list[int]
    seed: int
    small: UInt8[np.ndarray, "n small_height small_width 3"] | None = None

    def pil(self) -> list[Image.Image]:
        """The images as PIL images."""
        return [Image.fromarray(image) for image in self.images]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Several, of one seed, one after another."""
        small = [part.small for part in parts if part.small is not None]
        return cls(
            np.concatenate([part.images for part in parts]),
            [prompt for part in parts for prompt in part.prompts],
            [index for part in parts for index in part.indices],
            parts[0].seed,
            np.concatenate(small) if small else None,
        )


def cut(count: int, size: int) -> Iterator[tuple[list[int], int]]:
    """Positions batch by batch, and how many of a batch are real: the last is filled up by its last position."""
    for first in range(0, count, size):
        yield [min(first + i, count - 1) for i in range(size)], min(size, count - first)
