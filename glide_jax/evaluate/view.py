"""The display of a running evaluation: tables on a terminal, plain lines elsewhere."""

import os
from collections.abc import Mapping

import jax
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glide_jax import progress
from glide_jax.evaluate.run_folder import PromptRecord

_RANKS_SHOWN = 8


class View:
    """The display of an evaluation on a console, by default standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console

    @property
    def console(self) -> Console:
        """As given, or what `progress.console` is now."""
        return self._console or progress.console()

    @property
    def rich(self) -> bool:
        """Whether the console is a terminal."""
        return self.console.is_terminal

    def note(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def facts(self, title: str, facts: Mapping[str, object]) -> None:
        """Names and values: as a table, or a line each."""
        if not self.rich:
            for name, value in facts.items():
                self.note(f"{name}: {value}")
            return
        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in facts.items():
            table.add_row(name, escape(str(value)))
        self.console.print(table, highlight=False)

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
        self.console.print(table, highlight=False)


def device_facts() -> dict[str, str]:
    """The devices JAX computes on, and their memory."""
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
