"""A pipeline's output, and how a request is cut into batches of one size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "n height width 3"]


@dataclass(frozen=True)
class Samples:
    """Images and what they were generated from.

    Attributes:
        images: uint8 [n, height, width, 3], from the last stage.
        prompts: the prompt of each image.
        indices: the number of each image, which decides its noise together with the seed.
        seed: the seed they share.
        small: the base model's images, if an upsampler enlarged them.
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
        """Concatenates samples of one seed."""
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
