"""A request drawn: batch by batch, with previews; ranked by CLIP where that is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glide_jax.errors import GlideError
from glide_jax.evaluate.scorer import Scorer, score
from glide_jax.images import to_uint8
from glide_jax.sample import Pipeline, Samples
from glide_jax.ui.jobs import Pictures, Report
from glide_jax.ui.request import Request


@dataclass(frozen=True)
class Drawn:
    """A picture of a request.

    Attributes:
        pixels: uint8 [height, width, 3].
        index: its number, which with the seed decides its noise.
        score: cosine with the caption, if it was ranked.
    """

    pixels: np.ndarray
    index: int
    score: float | None = None


def draw(pipeline: Pipeline, request: Request, report: Report, scorer: Scorer | None = None) -> list[Drawn]:
    """All pictures of a request, in the order to be shown in.

    Args:
        pipeline: the request's models.
        request: what to draw.
        report: told of evaluations done and pictures by now; what it raises ends the drawing.
        scorer: ranks, for task "rank".

    Raises:
        GlideError: models and request do not fit.
    """
    if request.task == "enlarge":
        return _enlarge(pipeline, request, report)
    finished: Pictures = []
    size = min(pipeline.batch_size, request.num_images)
    for first in range(0, request.num_images, size):
        numbers = list(range(first, min(first + size, request.num_images)))
        finished += list(_batch(pipeline, request, numbers, size, report, finished).images[: len(numbers)])
    drawn = [Drawn(pixels, index) for index, pixels in enumerate(finished)]
    return _ranked(drawn, request, scorer) if request.task == "rank" else drawn


def count_evaluations(pipeline: Pipeline, request: Request) -> int:
    """How many image evaluations `draw` will report."""
    return pipeline.count_evaluations(
        request.num_images, request.options, request.upsampler_options, from_picture=request.task == "redraw"
    )


def _batch(
    pipeline: Pipeline, request: Request, numbers: Sequence[int], size: int, report: Report, before: Pictures
) -> Samples:
    """One batch, a short last one filled up so that it runs the same program."""

    def on_steps(steps: int, x_0: Any) -> None:
        report(steps // size * len(numbers), [*before, *to_uint8(np.asarray(x_0)[: len(numbers)])])

    more: dict[str, Any] = {}
    if request.task == "redraw":
        more["init_image"] = request.picture
    if request.task == "inpaint":
        more |= {"image": request.picture, "mask": request.mask}
    return pipeline(
        [request.prompt] * size,
        indices=[*numbers, *[numbers[-1]] * (size - len(numbers))],
        seed=request.seed,
        negative_prompt=request.negative_prompt,
        upsampler_options=request.upsampler_options,
        on_steps=on_steps,
        **more,
        **request.options,
    )


def _enlarge(pipeline: Pipeline, request: Request, report: Report) -> list[Drawn]:
    assert request.picture is not None
    on_steps = lambda steps, x_0: report(steps, list(to_uint8(np.asarray(x_0))))  # noqa: E731
    samples = pipeline.upsample(
        [request.picture], request.prompt, seed=request.seed, on_steps=on_steps, **request.upsampler_options
    )
    return [Drawn(samples.images[0], 0)]


def _ranked(drawn: Sequence[Drawn], request: Request, scorer: Scorer | None) -> list[Drawn]:
    if scorer is None:
        raise GlideError("no CLIP to rank by: start with --clip_model")
    scores = score(scorer, [each.pixels for each in drawn], request.prompt)
    best = np.argsort(-scores, kind="stable")[: request.keep]
    return [Drawn(drawn[i].pixels, drawn[i].index, float(scores[i])) for i in best]
