"""Filters on what is known about a sample before decoding: a table of rules with reasons."""

import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from glide_jax.data.config import FilterConfig
from glide_jax.data.index_file import Index
from glide_jax.data.source import BadSample
from glide_jax.data.threads import map_samples

_NO_NUMBER = (KeyError, TypeError, ValueError, OverflowError)
_LANGUAGE_FIELDS = ("lc", "LANGUAGE", "language", "lang")


class Facts(NamedTuple):
    """What a source knows about a sample: functions, so that only what a rule asks for is read.

    Each raises `BadSample` if the sample is damaged. Missing metadata are empty.
    """

    metadata: Callable[[], Mapping[str, Any]]
    captions: Callable[[], tuple[str, ...]]
    image_size: Callable[[], tuple[int, int]]

    def number(self, name: str) -> float:
        """A finite number from the metadata; raises `KeyError`, `TypeError` or `ValueError` if there is none."""
        number = float(self.metadata()[name])
        if not math.isfinite(number):
            raise ValueError(name)
        return number

    def size(self) -> tuple[float, float]:
        """Width and height of the original image, or else of the stored one."""
        try:
            width, height = self.number("original_width"), self.number("original_height")
        except (*_NO_NUMBER, BadSample):
            width = height = 0.0
        return (width, height) if width > 0 < height else self.image_size()

    def language(self) -> str:
        """The stated language in lower case; raises `KeyError` if there is none."""
        metadata = self.metadata()
        stated = [metadata[name] for name in _LANGUAGE_FIELDS if metadata.get(name)]
        if not stated:
            raise KeyError("language")
        return str(stated[0]).lower()


def _label(facts: Facts) -> str | None:
    label = facts.metadata().get("NSFW")
    return None if label is None else str(label).lower()


@cache
def _lowered(words: tuple[str, ...]) -> set[str]:
    return {word.lower() for word in words}


@cache
def _any_of(words: tuple[str, ...]) -> Callable[[str], re.Match[str] | None]:
    """A pattern that finds any of the words as a whole word."""
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", re.IGNORECASE).search


class Rule(NamedTuple):
    """A reason to leave samples out, the bounds that switch the rule on, and what it accepts."""

    reason: str
    bounds: tuple[str, ...]
    accepts: Callable[[FilterConfig, Facts], bool]


RULES = (
    Rule("nsfw", ("nsfw_labels",), lambda bounds, facts: _label(facts) not in _lowered(bounds.nsfw_labels)),
    Rule(
        "similarity",
        ("min_similarity", "max_similarity"),
        lambda bounds, facts: bounds.min_similarity <= facts.number("similarity") <= bounds.max_similarity,
    ),
    Rule("language", ("languages",), lambda bounds, facts: facts.language() in _lowered(bounds.languages)),
    Rule("too small", ("min_size",), lambda bounds, facts: min(facts.size()) >= bounds.min_size),
    Rule(
        "aspect ratio",
        ("min_aspect", "max_aspect"),
        lambda bounds, facts: bounds.min_aspect <= facts.size()[0] / facts.size()[1] <= bounds.max_aspect,
    ),
    Rule(
        "caption length",
        ("min_caption_length", "max_caption_length"),
        lambda bounds, facts: all(
            bounds.min_caption_length <= len(caption) <= bounds.max_caption_length for caption in facts.captions()
        ),
    ),
    Rule("words", ("skip_words",), lambda bounds, facts: not any(map(_any_of(bounds.skip_words), facts.captions()))),
)


class Filters:
    """The rules that a configuration switches on."""

    def __init__(self, bounds: FilterConfig) -> None:
        self._bounds = bounds
        self._rules = [rule for rule in RULES if any(name in bounds.changed for name in rule.bounds)]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def rejection(self, facts: Facts) -> str | None:
        """The reason a sample is left out, or None if it passes all rules.

        If the metadata a rule needs is absent, null or not a number, the reason is `missing metadata`; an absent `NSFW`
        label passes, see `unlabelled`.
        """
        try:
            return next((rule.reason for rule in self._rules if not rule.accepts(self._bounds, facts)), None)
        except BadSample as bad:
            return str(bad)
        except _NO_NUMBER:
            return "missing metadata"

    def unlabelled(self, facts: Facts) -> bool:
        """Whether a sample that passed has no `NSFW` label although the rules ask for one."""
        return bool(self._bounds.nsfw_labels) and _label(facts) is None

    def advice(self, counts: Collection[str]) -> str:
        """The bounds that left samples out for these reasons, as the end of an error message."""
        named = [name for rule in self._rules if rule.reason in counts for name in rule.bounds]
        changed = [name for name in named if name in self._bounds.changed]
        listed = ", ".join(f"--config.data.filters.{name} (now {getattr(self._bounds, name)})" for name in changed)
        return f"; change {listed}" if changed else ""


def index_passing(filters: Filters, facts: Callable[[int], Facts], total: int) -> Index:
    """An index of the samples below `total` that pass, given `facts` about each; many are judged at a time."""

    def judge(number: int) -> tuple[str | None, bool]:
        sample = facts(number)
        reason = filters.rejection(sample)
        return reason, reason is None and filters.unlabelled(sample)

    judged = list(map_samples("filtering samples", judge, [range(total)]))
    passing = [number for number, (reason, _) in enumerate(judged) if reason is None]
    counts = Counter(reason for reason, _ in judged if reason)
    return Index(np.array(passing, np.int64), dict(counts), unlabelled=sum(without for _, without in judged))


@cache
def report_unlabelled(path: str, unlabelled: int, total: int) -> None:
    """Prints to standard error how many samples that passed have no NSFW label, if any; once, as previews open the data
    again.
    """
    if unlabelled == total > 0:
        print("no NSFW labels in this data set: data.filters.nsfw_labels leaves nothing out", file=sys.stderr)
    elif unlabelled:
        print(f"{unlabelled} of {total} samples have no NSFW label and pass data.filters.nsfw_labels", file=sys.stderr)
