"""Filters on what is known of a sample before it is decoded: one table of rules with reasons."""

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from glide_jax.data.source import BadSample
from glide_jax.data.transforms import picture_size
from glide_jax.errors import GlideError


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """Bounds on a sample's metadata, caption and picture size; the defaults accept everything and read nothing.

    Sizes are those of `original_width` and `original_height`, as img2dataset writes them, or else the picture's own.

    Attributes:
        min_size: least shorter side in pixels.
        min_aspect, max_aspect: inclusive bounds of width / height.
        min_similarity, max_similarity: inclusive window of the picture-caption cosine (`similarity`).
        nsfw_labels: values of `NSFW` to leave out, in any case; LAION's are UNLIKELY, UNSURE and NSFW.
        languages: the only languages to keep, in any case, as `lc`, `LANGUAGE`, `language` or `lang` states them.
        skip_words: captions with one of these words or phrases are left out, in any case.
        min_caption_length, max_caption_length: inclusive bounds of a caption's length in characters.
    """

    min_size: int = 0
    min_aspect: float = 0.0
    max_aspect: float = math.inf
    min_similarity: float = -1.0
    max_similarity: float = 1.0
    nsfw_labels: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    skip_words: tuple[str, ...] = ()
    min_caption_length: int = 0
    max_caption_length: float = math.inf

    def __post_init__(self) -> None:
        if self.min_size < 0:
            raise GlideError(f"data.filters.min_size must not be negative, got {self.min_size}")
        for name in ("aspect", "similarity", "caption_length"):
            lower, upper = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if not lower < upper:
                raise GlideError(f"data.filters.min_{name} {lower} must be below max_{name} {upper}")
        for name in ("nsfw_labels", "languages", "skip_words"):
            if not all(word.strip() for word in getattr(self, name)):
                raise GlideError(f"data.filters.{name} holds an empty word; remove it")

    def over(self, base: "FilterConfig") -> "FilterConfig":
        """These bounds where they differ from the defaults, elsewhere those of `base`."""
        names = [field.name for field in fields(self)]
        changed = [name for name in names if getattr(self, name) != getattr(_ANYTHING, name)]
        return FilterConfig(**{name: getattr(self if name in changed else base, name) for name in names})


_ANYTHING = FilterConfig()
_NO_NUMBER = (KeyError, TypeError, ValueError, OverflowError)
_LANGUAGE_FIELDS = ("lc", "LANGUAGE", "language", "lang")


class Facts(NamedTuple):
    """What a source can tell of a sample, each read only when a rule asks; they raise `BadSample` if they cannot."""

    metadata: Callable[[], Mapping[str, Any]]
    captions: Callable[[], tuple[str, ...]]
    image: Callable[[], bytes]

    def number(self, name: str) -> float:
        """A finite number of the metadata; raises `KeyError`, `TypeError` or `ValueError` if there is none."""
        number = float(self.metadata()[name])
        if not math.isfinite(number):
            raise ValueError(name)
        return number

    def size(self) -> tuple[float, float]:
        """Width and height of the original, or else of the picture."""
        try:
            width, height = self.number("original_width"), self.number("original_height")
        except (*_NO_NUMBER, BadSample):
            width = height = 0.0
        return (width, height) if width > 0 < height else picture_size(self.image())

    def language(self) -> str:
        """The stated language in lower case; raises `KeyError` if there is none."""
        metadata = self.metadata()
        stated = [metadata[name] for name in _LANGUAGE_FIELDS if metadata.get(name)]
        if not stated:
            raise KeyError("language")
        return str(stated[0]).lower()


class MissingMetadata(BadSample):
    """A sample without a JSON member."""

    def __init__(self) -> None:
        super().__init__("missing metadata")


class Rule(NamedTuple):
    """One way to be left out: the reason to report, the bounds that switch it on, and what it accepts."""

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
        self._rules = [
            rule for rule in RULES if any(getattr(bounds, name) != getattr(_ANYTHING, name) for name in rule.bounds)
        ]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def rejection(self, facts: Facts) -> str | None:
        """Why a sample is left out, or `None` if it passes all rules.

        A rule whose metadata is absent, null or not a number rejects with `missing metadata`; an absent `NSFW`
        label passes, see `unlabelled`.
        """
        try:
            return next((rule.reason for rule in self._rules if not rule.accepts(self._bounds, facts)), None)
        except BadSample as bad:
            return str(bad)
        except _NO_NUMBER:
            return "missing metadata"

    def unlabelled(self, facts: Facts) -> bool:
        """Whether a sample that passed has no `NSFW` label, although the rules ask for it."""
        return bool(self._bounds.nsfw_labels) and _label(facts) is None


def report_unlabelled(unlabelled: int, total: int) -> None:
    """Says on standard error how many of the samples that passed have no NSFW label, if any."""
    if unlabelled == total > 0:
        print("no NSFW labels in this data set: data.filters.nsfw_labels leaves nothing out", file=sys.stderr)
    elif unlabelled:
        print(f"{unlabelled} of {total} samples have no NSFW label and pass data.filters.nsfw_labels", file=sys.stderr)


def parse_metadata(data: bytes | None) -> dict[str, Any]:
    """The fields of a `.json` member or line, where `None` is for there being none; raises `BadSample`."""
    if data is None:
        raise MissingMetadata
    try:
        metadata = json.loads(data)
    except (ValueError, RecursionError) as error:  # a million brackets
        raise BadSample("unreadable metadata") from error
    if not isinstance(metadata, dict):
        raise BadSample("unreadable metadata")
    return metadata


def _label(facts: Facts) -> str | None:
    try:
        label = facts.metadata().get("NSFW")
    except MissingMetadata:
        return None
    return None if label is None else str(label).lower()


def _lowered(words: tuple[str, ...]) -> set[str]:
    return {word.lower() for word in words}


def _any_of(words: tuple[str, ...]) -> Callable[[str], re.Match[str] | None]:
    """A search for any of the words as a whole word."""
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", re.IGNORECASE).search
