"""What an evaluation draws: every picture has a number, and the seed and that number decide it."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8

from glide_jax.errors import GlideError
from glide_jax.files import valid_unicode
from glide_jax.sample import Pipeline, SampleOptions

OnPictures = Callable[[list[int], int], object]
Candidates = UInt8[np.ndarray, "num_images height width 3"]


@dataclass(frozen=True)
class Job:
    """Prompts, and how their candidates are drawn.

    Attributes:
        prompts: captions, in the order of their folders.
        num_images: candidates a prompt; candidate i of prompt p is picture p * num_images + i.
        seed: in [0, 2^31), shared by all pictures.
        negative_prompt: what guidance leads away from.
        options, upsampler_options: of the two stages, as `Pipeline` takes them.
    """

    prompts: tuple[str, ...]
    num_images: int = 1
    seed: int = 0
    negative_prompt: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    upsampler_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            raise GlideError('nothing to draw: give --prompts "one caption|another" or --prompt_file FILE')
        for prompt in (*self.prompts, self.negative_prompt):
            if valid_unicode(prompt) != prompt:
                raise GlideError(f"{prompt[:60]!r} is no valid Unicode: is the command line in another encoding?")
        if self.num_images < 1:
            raise GlideError(f"num_images must be at least 1, not {self.num_images}")
        if not 0 <= self.seed < 2**31:
            raise GlideError(f"seed must be in [0, 2^31), not {self.seed}")
        SampleOptions(**self.options)

    def numbers(self, prompt_index: int) -> range:
        """The pictures of one prompt."""
        return range(prompt_index * self.num_images, (prompt_index + 1) * self.num_images)

    def batches(self, batch_size: int, wanted: Collection[int]) -> list[list[int]]:
        """Picture numbers batch by batch: all batches that hold a picture of a wanted prompt.

        The cut does not depend on `wanted`, so a resumed job runs the same programs on the same batches, and a
        picture comes out the same to the last bit.
        """
        total = len(self.prompts) * self.num_images
        cut = [list(range(first, min(first + batch_size, total))) for first in range(0, total, batch_size)]
        return [batch for batch in cut if any(number // self.num_images in wanted for number in batch)]


def draw(
    pipeline: Pipeline, job: Job, wanted: Collection[int], on_pictures: OnPictures | None = None
) -> Iterator[tuple[int, Candidates]]:
    """Draws the candidates of the wanted prompts.

    Args:
        pipeline: the models; its `batch_size` pictures, of any prompts, are drawn at once.
        job: what to draw.
        wanted: indices of prompts.
        on_pictures: called with the numbers of the pictures at work and how many evaluations each has just had.

    Yields:
        The index of a prompt and its uint8 candidates, as soon as the last one is drawn, in order.
    """
    size = min(pipeline.batch_size, len(job.prompts) * job.num_images)
    held: dict[int, list[np.ndarray]] = {index: [] for index in wanted}
    for batch in job.batches(size, wanted):
        for number, image in zip(batch, _draw_batch(pipeline, job, batch, size, on_pictures), strict=True):
            index = number // job.num_images
            if index not in held:
                continue
            held[index].append(image)
            if len(held[index]) == job.num_images:
                yield index, np.stack(held.pop(index))


def _draw_batch(
    pipeline: Pipeline, job: Job, batch: list[int], size: int, on_pictures: OnPictures | None
) -> UInt8[np.ndarray, "n height width 3"]:
    """One batch, a short last one filled up so that it runs the same program."""
    filled = batch + [batch[-1]] * (size - len(batch))
    report = None if on_pictures is None else (lambda done, _: on_pictures(batch, done // size))
    samples = pipeline(
        [job.prompts[number // job.num_images] for number in filled],
        indices=filled,
        seed=job.seed,
        negative_prompt=job.negative_prompt,
        upsampler_options=job.upsampler_options,
        on_steps=report,
        **job.options,
    )
    return samples.images[: len(batch)]
