"""One picture by every sampler and number of steps, with the seconds each takes."""

import time
from collections.abc import Sequence
from typing import Any

from glide_jax import sample
from glide_jax.images import Pixels, grid
from glide_jax.progress import Bar

_CELL = 128


def compare(
    pipeline: "sample.Pipeline", prompt: str, samplers: Sequence[str], steps: Sequence[int], bar: Bar, **options: Any
) -> tuple[Pixels, list[str]]:
    """Draws `prompt` from the same noise in every way.

    Args:
        pipeline: the models; the base model's sampler is what varies.
        prompt: the caption.
        samplers: names, a row of the grid each.
        steps: values of num_steps, a column each.
        bar: advanced by one for each picture.
        **options: of a pipeline call, the same for all.

    Returns:
        A labelled grid, and a line of text for each picture. Compilation is not counted: all step counts of a sampler
        share a program, which a short run compiles first.
    """
    pictures, labels = [], []
    for sampler in samplers:
        pipeline(prompt, **options | {"sampler": sampler, "num_steps": min(steps)})
        for count in steps:
            begun = time.monotonic()
            samples = pipeline(prompt, **options | {"sampler": sampler, "num_steps": count})
            labels.append(f"{sampler} {count} steps {time.monotonic() - begun:.1f} s")
            pictures.append(samples.images[0])
            bar.update(figures=labels[-1])
    return grid(pictures, labels, columns=len(steps), cell=_CELL), labels
