"""Filters on a sample's metadata, as LAION and img2dataset write it: one table of rules with reasons."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from glide_jax.errors import GlideError


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """Bounds on a sample's `.json` metadata; the defaults accept everything and read no metadata.

    Attributes:
        min_size: least shorter side of the original (`original_width`, `original_height`) in pixels.
        min_aspect, max_aspect: inclusive bounds of original width / height.
        min_similarity, max_similarity: inclusive window of the picture-caption cosine (`similarity`).
        nsfw_labels: values of `NSFW` to leave out, in any case; LAION's are UNLIKELY, UNSURE and NSFW.
    """

    min_size: int = 0
    min_aspect: float = 0.0
    max_aspect: float = math.inf
    min_similarity: float = -1.0
    max_similarity: float = 1.0
    nsfw_labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.min_size < 0:
            raise GlideError(f"data.filters.min_size must not be negative, got {self.min_size}")
        for name in ("aspect", "similarity"):
            lower, upper = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if not lower < upper:
                raise GlideError(f"data.filters.min_{name} {lower} must be below max_{name} {upper}")


class Rule(NamedTuple):
    """One way to be left out: the reason to report, the fields it needs, when it applies, what it accepts."""

    reason: str
    fields: tuple[str, ...]
    applies: Callable[[FilterConfig], bool]
    accepts: Callable[..., bool]


_SIDES = ("original_width", "original_height")
_ANY_ASPECT, _ANY_SIMILARITY = (0.0, math.inf), (-1.0, 1.0)  # the defaults of `FilterConfig`

RULES = (
    Rule(
        "too small",
        _SIDES,
        lambda bounds: bounds.min_size > 0,
        lambda bounds, width, height: min(float(width), float(height)) >= bounds.min_size,
    ),
    Rule(
        "aspect ratio",
        _SIDES,
        lambda bounds: (bounds.min_aspect, bounds.max_aspect) != _ANY_ASPECT,
        lambda bounds, width, height: bounds.min_aspect <= float(width) / float(height) <= bounds.max_aspect,
    ),
    Rule(
        "similarity",
        ("similarity",),
        lambda bounds: (bounds.min_similarity, bounds.max_similarity) != _ANY_SIMILARITY,
        lambda bounds, similarity: bounds.min_similarity <= float(similarity) <= bounds.max_similarity,
    ),
    Rule(
        "nsfw",
        ("NSFW",),
        lambda bounds: bool(bounds.nsfw_labels),
        lambda bounds, label: str(label).upper() not in {name.upper() for name in bounds.nsfw_labels},
    ),
)


class Filters:
    """The rules that a configuration switches on."""

    def __init__(self, bounds: FilterConfig) -> None:
        self._bounds = bounds
        self._rules = [rule for rule in RULES if rule.applies(bounds)]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def rejection(self, metadata: bytes | None) -> str | None:
        """Why a sample with this `.json` member (`None`: it has none) is left out, or `None` if it passes.

        A rule whose fields are absent, null or not numbers rejects with `missing metadata`; an absent `NSFW`
        label passes.
        """
        if not self._rules:
            return None
        if metadata is None:
            return "missing metadata"
        try:
            fields = json.loads(metadata)
        except ValueError:
            return "unreadable metadata"
        if not isinstance(fields, dict):
            return "unreadable metadata"
        return next(filter(None, (self._apply(rule, fields) for rule in self._rules)), None)

    def _apply(self, rule: Rule, fields: Mapping[str, Any]) -> str | None:
        values = [fields.get(name, "UNLIKELY" if name == "NSFW" else None) for name in rule.fields]
        try:
            return None if rule.accepts(self._bounds, *values) else rule.reason
        except (TypeError, ValueError, ZeroDivisionError):
            return "missing metadata"
