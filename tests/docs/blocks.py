"""The commands that README and docs show, as a reader would type them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from tests.programs import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INSTALLS_UV = "python3 -m pip install --quiet uv && "
# What "python" stands for on the pages.
_PYTHON = re.compile(r"^(uv run( --extra \w+| --group \w+)* )?python ")


class Command(NamedTuple):
    """One line of a shell block, continuation lines joined."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def words(self) -> list[str]:
        """The words after the interpreter: a script or -m MODULE, then its arguments; [] for no Python program."""
        text = _PYTHON.sub("python ", self.text.removeprefix(_INSTALLS_UV))
        return shlex.split(text, comments=True)[1:] if text.startswith("python ") else []


def fenced(language: str) -> list[tuple[Path, int, str]]:
    """Page, number of the first line and content of every fenced block in one of these languages."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for block in _BLOCK.finditer(text):
            if re.fullmatch(language, block[1]):
                found.append((page, text.count("\n", 0, block.start(2)) + 1, block[2]))
    return found


def commands() -> list[Command]:
    """Every command of every shell block."""
    found = []
    for page, first, block in fenced("sh|bash|shell|console"):
        line = first
        for text in re.split(r"(?<!\\)\n", block):
            if text.strip():
                found.append(Command(page.name, line, re.sub(r"\s*\\\n\s*", " ", text.strip())))
            line += 1 + text.count("\n")
    return found


def without_blocks(page: Path) -> str:
    """The page's text outside of fenced blocks."""
    return _BLOCK.sub("", page.read_text())
