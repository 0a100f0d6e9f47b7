"""A request from what a client sent to its pictures, as a series of things to show."""

import contextlib
import html
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from glide_jax.evaluate import Scorer
from glide_jax.sample import Pipeline
from glide_jax.sample.cli import unseen_end
from glide_jax.ui.drawing import Drawn, count_evaluations, draw
from glide_jax.ui.jobs import Job, Progress
from glide_jax.ui.models import Models
from glide_jax.ui.request import Limits, Request, Task, check_fit, checked
from glide_jax.ui.results import bundle, save

_BAR = "<div class='done'><div style='width: %.0f%%'></div></div>"


@dataclass(frozen=True)
class Studio:
    """What all requests share; nothing in it changes with a request but which models are loaded.

    Attributes:
        models: to choose from.
        base, upsampler: names of those chosen first; "" is none.
        limits: the most a request may ask for.
        scorer: ranks, if there is one.
        examples: captions to try.
        defaults: settings in place of the usual ones, for the page to start with and where a client names none.
    """

    models: Models
    base: str = ""
    upsampler: str = ""
    limits: Limits = field(default_factory=Limits)
    scorer: Scorer | None = None
    examples: Sequence[str] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shown:
    """One state of the page's result side.

    Attributes:
        status: a line of HTML.
        seed: of the pictures.
        side: theirs, in pixels; 0 while there are none.
        pictures: uint8 previews, or files with what is written below each; None leaves those shown before.
        download: all pictures in one file.
    """

    status: str
    seed: int
    side: int = 0
    pictures: Sequence[np.ndarray | tuple[Path, str | None]] | None = None
    download: Path | None = None


def follow(studio: Studio, task: Task, values: Mapping[str, Any]) -> Iterator[Shown]:
    """Checks a request, draws it and yields what to show on the way; closing the iterator stops the drawing.

    Files in what is yielded last until the iterator goes on.

    Args:
        studio: what there is to draw with.
        task: what is asked for.
        values: see `checked`.

    Raises:
        GlideError: an impossible request, or a model that cannot be loaded.
    """
    given = {name: value for name, value in values.items() if value is not None}
    request = checked(task, {**studio.defaults, **given}, studio.limits)
    yield Shown(_line("Getting the models ready …"), request.seed, pictures=[])
    pipeline = studio.models.pipeline(request.base, request.upsampler)
    check_fit(pipeline, request, studio.limits)
    total = count_evaluations(pipeline, request)
    begun = time.monotonic()
    job = Job(lambda report: draw(pipeline, request, report, studio.scorer))
    with contextlib.closing(job.progress()) as news:
        yield from _on_the_way(news, request, total, begun)
    with tempfile.TemporaryDirectory() as folder:
        files = save(Path(folder), request, job.result)
        captions = [None if each.score is None else f"{each.score:.3f}" for each in job.result]
        yield Shown(
            _line(_summary(request, job.result, time.monotonic() - begun), *_notes(request, pipeline)),
            request.seed,
            job.result[0].pixels.shape[0],
            list(zip(files, captions, strict=True)),
            bundle(Path(folder), request, files),
        )


def _on_the_way(news: Iterator[Progress], request: Request, total: int, begun: float) -> Iterator[Shown]:
    clock = _Clock(total, begun)
    latest: Progress | None = None
    for progress in news:
        pictures = progress.pictures if progress is not latest else None
        latest = progress
        side = pictures[-1].shape[0] if pictures else 0
        yield Shown(clock.bar(progress.done), request.seed, side, pictures)


class _Clock:
    """Time left of `total` evaluations; what is compiled before the first report does not count."""

    def __init__(self, total: int, begun: float) -> None:
        self._total, self._begun = total, begun
        self._first = self._last = (0, begun)

    def bar(self, done: int) -> str:
        """A line and a bar, as HTML."""
        now = time.monotonic()
        if not done:
            return _line(f"Starting; the first picture of a size takes longest … {now - self._begun:.0f} s") + _BAR % 0
        if done != self._last[0]:
            self._last = (done, now)
            self._first = self._first if self._first[0] else self._last
        left = self._left(now)
        return _line(f"Drawing: {done / self._total:.0%}{left}") + _BAR % (100 * done / self._total)

    def _left(self, now: float) -> str:
        (first, since), (done, at) = self._first, self._last
        if done == first:
            return ""
        seconds = (at - since) / (done - first) * (self._total - done) - (now - at)
        return f", about {max(seconds, 1):.0f} s left"


def _summary(request: Request, drawn: Sequence[Drawn], seconds: float) -> str:
    height, width = drawn[0].pixels.shape[:2]
    what = f"{len(drawn)} pictures" if len(drawn) > 1 else "1 picture"
    if request.task == "rank":
        what = f"The best {len(drawn)} of {request.num_images}"
    return f"{what} of {width} x {height} pixels in {seconds:.1f} s."


def _notes(request: Request, pipeline: Pipeline) -> list[str]:
    cut = unseen_end(request.prompt, pipeline) if request.prompt else ""
    return [f"The prompt is too long for this model; it does not see “{cut}”."] if cut else []


def _line(*sentences: str) -> str:
    return f"<p>{html.escape(' '.join(sentences))}</p>"
