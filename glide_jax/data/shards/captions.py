"""Captions of WebDataset samples: plain members, fields of JSON members, and lines of a JSONL file."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from glide_jax.data.shards.presets import CaptionKey
from glide_jax.data.shards.spans import MOST_BYTES, Span, read_spans
from glide_jax.data.shards.tar import SPARSE, Member
from glide_jax.data.source import BadSample, usable_captions
from glide_jax.errors import GlideError


def parse_metadata(data: bytes) -> dict[str, Any]:
    """The fields of a `.json` member or line; raises `BadSample`."""
    try:
        metadata = json.loads(data)
    except (ValueError, RecursionError) as error:  # as for a million brackets
        raise BadSample("unreadable metadata") from error
    if not isinstance(metadata, dict):
        raise BadSample("unreadable metadata")
    return metadata


class CaptionLines:
    """The lines of a JSONL file by their `key`; the first of equal keys counts, and unreadable lines are skipped.

    Raises:
        GlideError: the file cannot be read, or no line has a key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spans: dict[str, Span] = {}
        offset = 0
        try:
            with path.open("rb") as file:
                for line in file:
                    self._add(line, Span(offset, len(line)))
                    offset += len(line)
        except OSError as error:
            raise GlideError(f"cannot read data.captions_jsonl {path}: {error.strerror or error}") from error
        if not self._spans:
            raise GlideError(f"no line of data.captions_jsonl {path} is a JSON object with a 'key'")

    def _add(self, line: bytes, span: Span) -> None:
        try:
            key = parse_metadata(line)["key"]
        except (BadSample, KeyError):
            return
        self._spans.setdefault(str(key), span)

    def find(self, key: str) -> Span | None:
        """The line for a sample's key, with or without its folders."""
        return self._spans.get(key) or self._spans.get(key.rsplit("/", 1)[-1])

    def read(self, span: Span) -> bytes:
        """The content of a line; raises `BadSample`."""
        return read_spans(self._path, span)[0]


class SampleFiles:
    """A sample's members in a shard by ending, and its line as `jsonl`; JSON is parsed once.

    Args:
        key: of the sample.
        members: by ending.
        read: returns bytes of the shard.
        lines: captions stored outside the shards, if any.
    """

    def __init__(
        self, key: str, members: Mapping[str, Member], read: Callable[[Span], bytes], lines: CaptionLines | None
    ) -> None:
        self._key, self._members, self._read, self._lines = key, members, read, lines
        self._records: dict[str, dict[str, Any]] = {}

    def find(self, ending: str) -> Span | None:
        """The position of a member, or None; raises `BadSample` if it is sparse or too large."""
        if ending == "jsonl":
            return self._lines.find(self._key) if self._lines else None
        member = self._members.get(ending)
        if member is None:
            return None
        if member.size == SPARSE:
            raise BadSample("sparse member")
        if member.size > MOST_BYTES:
            raise BadSample("file too large")
        return Span(member.offset, member.size)

    def content(self, ending: str) -> bytes:
        """The bytes of a member; raises `BadSample`."""
        span = self.find(ending)
        if span is None:
            raise BadSample("missing member")
        return self._lines.read(span) if ending == "jsonl" and self._lines else self._read(span)

    def record(self, ending: str) -> dict[str, Any]:
        """The fields of a JSON member, empty if there is no such member; raises `BadSample` if it is unreadable."""
        if ending not in self._records:
            self._records[ending] = {} if self.find(ending) is None else parse_metadata(self.content(ending))
        return self._records[ending]

    def captions(self, key: CaptionKey) -> tuple[str, ...]:
        """The captions at a key, several if its JSON field is a list; raises `BadSample` if there are none."""
        return usable_captions(self.record(key.member).get(key.field) if key.field else self.content(key.member))


class Choice(NamedTuple):
    """A sample's caption: the key it was found with, its position, and the other fields of its record."""

    key: int
    span: Span
    record: dict[str, Any]
    captions: Callable[[], tuple[str, ...]]


def choose_caption(keys: Sequence[CaptionKey], files: SampleFiles) -> Choice:
    """The first caption that exists or, if keys have scores, the one with the highest.

    Raises:
        BadSample: there is none; a text member may still turn out to be blank when read.
    """
    best, best_score, problem = None, float("-inf"), "missing caption"
    for number, key in enumerate(keys):
        span = files.find(key.member)
        if span is None:
            continue
        if not span.size:
            problem = "empty caption"
            continue
        choice = Choice(number, span, {}, partial(files.captions, key))
        if not key.field:
            return choice
        record = files.record(key.member)
        try:
            choice.captions()
        except BadSample as bad:
            problem = str(bad)
            continue
        if not key.score:
            return choice._replace(record=record)
        if (score := _score(record, key)) > best_score:
            best, best_score = choice._replace(record=record | {"similarity": score}), score
    if best is None:
        raise BadSample(problem)
    return best


def _score(record: Mapping[str, Any], key: CaptionKey) -> float:
    try:
        score = float(record[key.score])
    except (KeyError, TypeError, ValueError, OverflowError):
        return float("-inf")
    return score if math.isfinite(score) else float("-inf")


def captions_in(data: bytes, key: CaptionKey) -> tuple[str, ...]:
    """The captions in the bytes of a member or line; raises `BadSample` if there are none."""
    return usable_captions(parse_metadata(data).get(key.field) if key.field else data)
