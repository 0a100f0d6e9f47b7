"""Options that the pages name in the text exist."""

import re

import pytest

from glide_jax.config import default_config
from tests.docs.blocks import PAGES, without_blocks
from tests.programs import call

_PROGRAMS = [["train.py"], ["sample.py"], ["evaluate.py"], ["app.py"], ["-m", "glide_jax.data", "check"]]
_PROGRAMS += [["-m", "glide_jax.export"]]
_PROGRAMS += [["-m", "convert", command] for command in ("to-flax", "to-torch", "shrink", "bundle", "inspect")]


def described(page):
    """Its text; of the tables of old names only what follows the first column."""
    text = without_blocks(page)
    if page.name == "migration.md":
        text = re.sub(r"^\|(?:\\\||[^|])*\|", "|", text, flags=re.MULTILINE)
    return text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configuration_keys_exist(page):
    keys = set(re.findall(r"--config\.([\w.]*\w)", page.read_text()))
    page_config = default_config()
    assert [key for key in sorted(keys) if not key.endswith("NAME") and not _has(page_config, key)] == []


def _has(config, key):
    first, _, rest = key.partition(".")
    return first in config and (not rest or _has(config[first], rest))


def test_flags_exist(capsys):
    for program in _PROGRAMS:
        call(*program, "--help")
    # In a list of options each begins a line.
    shown = re.findall(r"^ +(?:-\w, )?--([a-z][\w.-]*)", capsys.readouterr().out, re.MULTILINE)
    known = {f"--{name}" for name in shown}
    unknown = {}
    for page in PAGES:
        # Of the code in the text, what is not of other programs.
        spans = re.findall(r"`([^`]+)`", described(page))
        code = [span for span in spans if not re.match(r"uv |pip |pipx |sha256sum|#SBATCH|--inexact$|--no-dev$", span)]
        flags = {flag for span in code for flag in re.findall(r"--[a-z][\w.-]*", span)}
        if missing := {flag for flag in flags - known if not flag.startswith("--config.")}:
            unknown[page.name] = missing
    assert unknown == {}
