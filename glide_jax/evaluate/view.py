"""What a person sees while an evaluation runs: tables and bars on a terminal, plain lines elsewhere."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import jax
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from glide_jax import progress
from glide_jax.evaluate.run_folder import PromptRecord

_RANKS_SHOWN = 8


class View:
    """One evaluation on `console`, by default standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    @property
    def rich(self) -> bool:
        """Whether there is a terminal to show them on."""
        return self.console.is_terminal

    def note(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def facts(self, title: str, facts: Mapping[str, object]) -> None:
        """Names and values: a table, or a line each."""
        if not self.rich:
            for name, value in facts.items():
                self.note(f"{name}: {value}")
            return
        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in facts.items():
            table.add_row(name, escape(str(value)))
        self.console.print(table)

    def results(self, record: PromptRecord, of: int) -> None:
        """The best candidates of one prompt."""
        best = record.kept[0]
        score = "" if best.clip_score is None else f", best {best.clip_score:.4f} (image {best.index})"
        if not self.rich or best.clip_score is None:
            kept = f"{len(record.kept)} of {len(record.candidates)} kept"
            self.note(f"prompt {record.prompt_idx + 1}/{of}: {kept}{score}: {record.prompt}")
            return
        table = Table("rank", "score", "image", "file", title=escape(record.prompt), title_justify="left")
        for kept_one in record.kept[:_RANKS_SHOWN]:
            table.add_row(str(kept_one.rank), f"{kept_one.clip_score:.4f}", str(kept_one.index), kept_one.filename)
        self.console.print(table)

    @contextmanager
    def generating(
        self, prompts: Sequence[str], num_images: int, batches: list[list[int]], evaluations: int
    ) -> Iterator["Bars"]:
        """Progress over `batches` of image numbers, each image taking so many evaluations of the models."""
        images = sum(map(len, batches))
        if not self.rich:
            with progress.bar("evaluations", images * evaluations) as bar:
                yield Bars(prompts, num_images, evaluations, bar, None)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            _Images(evaluations),
            _Rate(evaluations),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as bars:
            yield Bars(prompts, num_images, evaluations, None, bars, images)


class Bars:
    """The bars of an evaluation: one for all, one for the prompt at work."""

    def __init__(
        self, prompts: Sequence[str], num_images: int, evaluations: int, plain: progress.Bar | None,
        bars: Progress | None, images: int = 0,
    ) -> None:  # fmt: skip
        self._prompts, self._num_images, self._evaluations = prompts, num_images, evaluations
        self._plain, self._bars, self._prompt = plain, bars, -1
        if bars is not None:
            self._all = bars.add_task("all prompts", total=images * evaluations)
            self._one = bars.add_task("", total=num_images * evaluations)

    def advance(self, numbers: list[int], evaluations: int) -> None:
        """So many evaluations of each of these images are done."""
        if self._plain is not None:
            self._plain.update(len(numbers) * evaluations)
        if self._bars is None:
            return
        prompt = numbers[0] // self._num_images
        if prompt != self._prompt:
            self._prompt = prompt
            done = numbers[0] % self._num_images
            name = f"{prompt + 1}/{len(self._prompts)} {self._prompts[prompt][:40]}"
            self._bars.reset(self._one, completed=done * self._evaluations, description=escape(name))
        mine = sum(number // self._num_images == prompt for number in numbers)
        self._bars.advance(self._all, len(numbers) * evaluations)
        self._bars.advance(self._one, mine * evaluations)


class _Images(ProgressColumn):
    """Images done, of a task counted in evaluations."""

    def __init__(self, evaluations: int) -> None:
        super().__init__()
        self._evaluations = evaluations

    def render(self, task: Task) -> Text:
        done, total = task.completed // self._evaluations, (task.total or 0) // self._evaluations
        return Text(f"{done:.0f}/{total:.0f} images", no_wrap=True)


class _Rate(_Images):
    """Images a second, or seconds an image where they are slow."""

    def render(self, task: Task) -> Text:
        speed = (task.speed or 0.0) / self._evaluations
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each", no_wrap=True)


def device_facts() -> dict[str, str]:
    """The devices JAX computes on, and the memory there is."""
    devices = jax.devices()
    stats = devices[0].memory_stats() or {}
    facts = {"device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"}
    if "bytes_limit" in stats:
        used, limit = stats.get("bytes_in_use", 0) / 2**30, stats["bytes_limit"] / 2**30
        facts["device memory"] = f"{used:.1f} of {limit:.1f} GiB in use"
    elif hasattr(os, "sysconf"):
        free, total = (os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") / 2**30 for name in
                       ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))  # fmt: skip
        facts["memory"] = f"{free:.1f} of {total:.1f} GiB free"
    return facts
