"""A pipeline's output, and how a request is cut into batches of one size."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from glide_jax.images import grid, png, save_png

Pixels = UInt8[np.ndarray, "n height width 3"]

CELL = 128  # width of an image in a grid, in pixels


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        count, height, width, _ = self.images.shape
        return f"Samples({count} of {height} x {width}, seed {self.seed})"

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return png(self.grid())

    def pil(self) -> list[Image.Image]:
        """The images as PIL images."""
        return [Image.fromarray(image) for image in self.images]

    def grid(self) -> UInt8[np.ndarray, "_height _width 3"]:
        """All images with their prompts, in rows."""
        return grid(list(self.images), self.prompts, cell=CELL)

    def save(self, folder: str | Path, settings: Mapping[str, str] = MappingProxyType({})) -> None:
        """Writes 0000.png, 0001.png, ... and grid.png; a file's text has its prompt, seed, index and `settings`.

        Raises:
            GlideError: the folder cannot be written to.
        """
        each = zip(self.images, self.prompts, self.indices, strict=True)
        for number, (image, prompt, index) in enumerate(each):
            own = {"prompt": prompt, "seed": str(self.seed), "index": str(index)}
            save_png(Path(folder) / f"{number:04d}.png", image, {**own, **settings})
        save_png(Path(folder) / "grid.png", self.grid())

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
