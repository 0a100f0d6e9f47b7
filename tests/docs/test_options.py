"""Options that the pages name in the text exist."""

import re

import pytest

from convert.cli import _parser as convert_parser
from glide_jax.config import default_config
from glide_jax.data.__main__ import _parser as data_parser
from glide_jax.evaluate.cli import parser as evaluate_parser
from glide_jax.sample.cli import parser as sample_parser
from glide_jax.ui.cli import parser as app_parser
from tests.docs.blocks import PAGES, without_blocks

_TRAIN = {"--config", "--dry_run", "--coordinator_address", "--num_processes", "--process_id"}


def known_flags():
    """The flags of all programs."""
    subparsers = [convert_parser()._subparsers, data_parser()._subparsers]
    commands = [command for group in subparsers for command in group._group_actions[0].choices.values()]
    parsers = [sample_parser(), evaluate_parser(), app_parser(), *commands]
    return _TRAIN | {flag for parser in parsers for flag in parser._option_string_actions}


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_exist(page):
    # Of the code in the text, what is not of other programs.
    code = [
        span for span in re.findall(r"`([^`]+)`", described(page)) if not re.match(r"uv |pip |sha256sum|#SBATCH", span)
    ]
    flags = {flag for span in code for flag in re.findall(r"--[a-z][\w.-]*", span)}
    assert {flag for flag in flags - known_flags() if not flag.startswith("--config.")} == set()
