"""Carries out a client's request, as a series of states to show that end in image files."""

import contextlib
import html
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glide_jax.errors import GlideError
from glide_jax.evaluate import Scorer
from glide_jax.evaluate.scorer import score
from glide_jax.images import png, to_uint8
from glide_jax.options import Field
from glide_jax.sample import Pipeline, Samples, images_of, metadata, sheet
from glide_jax.ui.grids import compared
from glide_jax.ui.models import Models
from glide_jax.ui.request import SCALES, Choice, Limits, Request, Task, check_fit, checked, request_fields
from glide_jax.ui.worker import Images, Report, Worker

_BAR = "<div class='done'><div style='width: %.0f%%'></div></div>"


def said(error: Exception) -> str:
    """The message of an error for users; unexpected ones go to the server's log."""
    if isinstance(error, GlideError):
        return str(error)
    traceback.print_exception(error)
    return "an internal error occurred; the server's log has it"


class Generated(NamedTuple):
    """A uint8 image, its number, which decides the noise together with the seed, and its CLIP score if ranked."""

    pixels: np.ndarray
    number: int
    score: float | None = None


def generate(
    request: Request, load: Callable[[int], Pipeline], report: Report, scorer: Scorer | None
) -> list[Generated]:
    """All images of a request, in the order to show them; for the task "compare", their grid.

    Args:
        request: the request.
        load: returns its models, for a grid with the adapters of the cell of this number.
        report: called with the progress; an exception from it ends the sampling.
        scorer: ranks the images of task "rank".

    Raises:
        GlideError: the request does not fit the models, or there is no scorer for task "rank".
    """
    finished: Images = []

    def on_steps(done: int, x_0: Any) -> None:
        report(done, [*finished, *to_uint8(np.asarray(x_0))])

    images: dict[str, Any] = dict(request.images)
    how: dict[str, Any] = {"seed": request.seed, "on_steps": on_steps}
    if request.task == "compare":
        guided = {"negative_prompt": request.negative_prompt, "on_steps": on_steps}
        for number, cell in enumerate(request.cells):
            finished += images_of(load(number), request.prompt, [cell], **guided)
        return [Generated(sheet(finished, request.cells, columns=request.columns), 0)]
    pipeline = load(0)
    batches: Iterable[Samples]
    if request.task == "enlarge":
        batches = [pipeline.upsample([images["image"]], request.prompt, options=request.upsampler_options, **how)]
    else:
        batches = pipeline.batches(
            [request.prompt] * request.num_images, range(request.num_images), options=request.options,
            upsampler_options=request.upsampler_options, negative_prompt=request.negative_prompt, **images, **how,
        )  # fmt: skip
    for batch in batches:
        finished += list(batch.images)
    generated = [Generated(pixels, number) for number, pixels in enumerate(finished)]
    return _ranked(generated, request, scorer) if request.task == "rank" else generated


def _ranked(generated: Sequence[Generated], request: Request, scorer: Scorer | None) -> list[Generated]:
    if scorer is None:
        raise GlideError("no CLIP to rank by: start with --clip_model")
    scores = score(scorer, [each.pixels for each in generated], request.prompt)
    best = np.argsort(-scores, kind="stable")[: request.keep]
    return [generated[i]._replace(score=float(scores[i])) for i in best]


@dataclass(frozen=True)
class Service:
    """Everything requests share; a request changes only which models are loaded.

    Attributes:
        models: the models to choose from.
        base, upsampler, adapters: names of the initial selection; "" for none.
        limits: limits of a request.
        scorer: ranks images, if there is one.
        examples: prompts to try.
    """

    models: Models
    base: str = ""
    upsampler: str = ""
    limits: Limits = field(default_factory=Limits)
    scorer: Scorer | None = None
    examples: Sequence[str] = ()
    adapters: tuple[str, ...] = ()

    @property
    def start(self) -> Choice:
        """The initial selection."""
        return Choice(self.base, self.upsampler, self.adapters)

    @cached_property
    def fields(self) -> dict[str, Field]:
        """The settings of a request for the initial selection."""
        return self.fields_of(self.start)

    def fields_of(self, choice: Choice) -> dict[str, Field]:
        """The settings of a request, with the defaults of its models and adapters: see `request_fields`.

        Raises:
            GlideError: the settings of one of them cannot be used.
        """
        scales = map(self.models.scale, choice.adapters)
        return request_fields(self.limits, {**self.models.settings(*choice), **dict(zip(SCALES, scales, strict=False))})

    def for_its_base(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a client sent, without initial adapters that belong to another base model than it selected.

        For a program that names no adapters, gradio sends the initial ones.

        Raises:
            GlideError: there is no such model, or it cannot be loaded.
        """
        chosen = Choice.of(values)
        if not chosen.adapters or chosen.adapters != self.adapters or chosen.base == self.base:
            return values
        fitting = [each.name for each in self.models.fitting(chosen.base)]
        return {**values, "lora": [name for name in self.adapters if name in fitting]}


class Shown(NamedTuple):
    """A state of the page's results.

    Attributes:
        status: a line of HTML.
        seed: the images' seed; None if they have several.
        side: the images' side in pixels; 0 while there are none.
        images: uint8 previews, or files with their labels; None keeps those shown before.
        download: a file with all images.
    """

    status: str
    seed: int | None
    side: int = 0
    images: Sequence[np.ndarray | tuple[Path, str | None]] | None = None
    download: Path | None = None


def follow(service: Service, task: Task, values: Mapping[str, Any]) -> Iterator[Shown]:
    """Checks a request, carries it out and yields states to show; closing the iterator stops the work.

    Yielded files last until the iterator continues. For `values` see `checked`.

    Raises:
        GlideError: an impossible request, or a model that cannot be loaded.
    """
    if task != "enlarge":
        values = service.for_its_base(values)
    known = service.fields_of(Choice.of(values))
    if task == "compare":
        request = compared(values, known, has_clip=service.models.has_clip)
    else:
        request = checked(task, values, known)
    # Looked up together, because what a name stands for may change while images are generated.
    wanted = [service.models.wanted(request.base, request.upsampler, each)
              for each in request.strengths or [request.adapters]]  # fmt: skip
    outline = service.models.outline(wanted[0])
    check_fit(outline, request, service.limits.max_steps)
    total = _evaluations(outline, request)
    yield Shown(_line("Loading models…"), request.one_seed, images=[])
    load = lambda number: service.models.load(wanted[number])  # noqa: E731
    pipeline, clock, latest = load(0), _Clock(total), None
    job = Worker(lambda report: generate(request, load, report, service.scorer))
    with contextlib.closing(job.progress()) as news:
        for progress in news:
            images = progress.images if progress is not latest else None
            latest = progress
            yield Shown(clock.bar(progress.done), request.one_seed, images[-1].shape[0] if images else 0, images)
    with tempfile.TemporaryDirectory() as folder:
        files = _save(Path(folder), request, job.result)
        scores = [None if each.score is None else f"{each.score:.3f}" for each in job.result]
        yield Shown(
            _line(*_summary(request, job.result, pipeline, clock.seconds)),
            request.one_seed,
            job.result[0].pixels.shape[0],
            list(zip(files, scores, strict=True)),
            _download(Path(folder), request, files),
        )


def _evaluations(pipeline: Pipeline, request: Request) -> int:
    """The evaluations for all images of a request, as `generate` will report them."""
    if request.task == "compare":
        return sum(pipeline.count_evaluations(1, each.options, each.upsampler_options) for each in request.cells)
    return pipeline.count_evaluations(
        request.num_images, request.options, request.upsampler_options, from_image=request.task == "redraw"
    )


class _Clock:
    """The time left for `total` evaluations, not counting compilation before the first report."""

    def __init__(self, total: int) -> None:
        self._total, self._begun = total, time.monotonic()
        self._first = self._last = (0, self._begun)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._begun

    def bar(self, done: int) -> str:
        """A line and a bar, as HTML."""
        if not done:
            return _line(f"Compiling (first run at this size)… {self.seconds:.0f} s") + _BAR % 0
        if done != self._last[0]:
            self._last = (done, time.monotonic())
            self._first = self._first if self._first[0] else self._last
        return _line(f"Generating: {done / self._total:.0%}{self._left(done)}") + _BAR % (100 * done / self._total)

    def _left(self, done: int) -> str:
        (first, since), (_, at) = self._first, self._last
        if done == first:
            return ""
        seconds = (at - since) / (done - first) * (self._total - done) - (time.monotonic() - at)
        return f", about {max(seconds, 1):.0f} s left"


def _summary(request: Request, generated: Sequence[Generated], pipeline: Pipeline, seconds: float) -> Iterator[str]:
    height, width = generated[0].pixels.shape[:2]
    what = f"{request.num_images} images" if request.num_images > 1 else "1 image"
    if request.task == "rank":
        what = f"The best {len(generated)} of {request.num_images}"
    elif request.task == "compare":
        what += " in a grid"
    yield f"{what} of {width} x {height} pixels in {seconds:.1f} s."
    both = [(cell.options, cell.upsampler_options) for cell in request.cells] or [
        (request.options, request.upsampler_options)
    ]
    redraws = request.task == "redraw"
    found = (pipeline.doubts(*each, prompts=[request.prompt], from_image=redraws) for each in both)
    for line in dict.fromkeys(chain.from_iterable(found)):
        yield f"Note: {line}."


def _line(*sentences: str) -> str:
    return f"<p>{html.escape(' '.join(sentences))}</p>"


def _save(folder: Path, request: Request, generated: Sequence[Generated]) -> list[Path]:
    """Writes PNG files in order, with the entries that sample.py writes."""
    paths = []
    for rank, each in enumerate(generated, 1):
        ranked = f"-rank{rank}" if each.score is not None else ""
        number = "grid" if request.task == "compare" else f"{each.number:02d}"
        seed = "seeds" if request.one_seed is None else request.seed
        paths.append(folder / f"glide-{seed}-{number}{ranked}.png")
        # Not with `save_png`, whose errors name the path: a failure in our own folder is an internal error.
        paths[-1].write_bytes(png(each.pixels, entries(request, each)))
    return paths


def entries(request: Request, each: Generated) -> dict[str, str]:
    """An image file's metadata: prompt, seed and settings, as in sample.py's files."""
    own = {"prompt": request.prompt, "seed": str(request.seed), "index": str(each.number)}
    varied = [axis.flag for axis in request.axes]
    if request.adapters:
        scales = zip(SCALES, request.adapters.items(), strict=False)
        own["lora"] = " ".join(name if flag in varied else f"{name}:{scale:g}" for flag, (name, scale) in scales)
    if request.axes:
        own["xy"] = " ".join(map(str, request.axes))
    if each.score is not None:
        own["clip_score"] = f"{each.score:.6f}"
    named = {"checkpoint": request.base, "negative_prompt": request.negative_prompt, "upsampler": request.upsampler}
    own |= {name: value for name, value in named.items() if value} | dict.fromkeys(request.images, "uploaded")
    options = [(cell.options, cell.upsampler_options) for cell in request.cells]
    settings = [
        metadata(base if request.base else None, upsampling if request.upsampler else None)
        for base, upsampling in options or [(request.options, request.upsampler_options)]
    ]
    # For a grid, what all its images have in common.
    own |= set.intersection(*(set(each.items()) for each in settings))
    return {name: value for name, value in own.items() if name not in varied}


def _download(folder: Path, request: Request, images: Sequence[Path]) -> Path:
    """A file to download: the image, or an archive of several."""
    if len(images) == 1:
        return images[0]
    path = folder / f"glide-{request.seed}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for image in images:
            archive.write(image, image.name)
    return path
