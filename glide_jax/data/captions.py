"""Captions of WebDataset samples: plain members, fields of JSON members, and lines of one JSONL file."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from glide_jax.data.filters import parse_metadata
from glide_jax.data.presets import CaptionKey
from glide_jax.data.source import BadSample, usable_captions
from glide_jax.errors import GlideError


class Span(NamedTuple):
    """Bytes of a file."""

    offset: int
    size: int


def read_spans(path: Path, *spans: Span, stamp: Sequence[int] | None = None) -> list[bytes]:
    """Parts of a file that may have vanished or changed, with `stamp` since `stamp_of` it; raises `BadSample`."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise BadSample("missing shard") from error
    try:
        found = os.fstat(descriptor)
        if stamp is not None and (found.st_size, found.st_mtime_ns) != tuple(stamp):
            raise BadSample("changed shard")  # the bytes at these places may be another sample's
        parts = [os.pread(descriptor, span.size, span.offset) for span in spans]
    except OSError as error:
        raise BadSample("unreadable shard") from error
    finally:
        os.close(descriptor)
    if any(len(part) < span.size for part, span in zip(parts, spans, strict=True)):
        raise BadSample("truncated shard")
    return parts


class Choice(NamedTuple):
    """The caption of a sample: which of the keys it came by, where it is, and the other fields of its record."""

    key: int
    span: Span
    record: dict[str, Any]


class CaptionLines:
    """The lines of a JSONL file by the `key` in them; the first of equal keys counts, unreadable lines do not.

    Raises:
        GlideError: the file cannot be read, or no line has a key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
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

    def __len__(self) -> int:
        return len(self._spans)

    def find(self, key: str) -> Span | None:
        """The line of a sample by its key, with or without the folders in it."""
        return self._spans.get(key) or self._spans.get(key.rsplit("/", 1)[-1])


def choose_caption(
    keys: Sequence[CaptionKey],
    find: Callable[[CaptionKey], Span | None],
    read: Callable[[CaptionKey, Span], bytes],
) -> Choice:
    """The first caption there is, or where keys state scores the one of the highest.

    Raises:
        BadSample: there is none; text members may still turn out blank when they are read.
    """
    best, best_score, problem = None, float("-inf"), "missing caption"
    for number, key in enumerate(keys):
        span = find(key)
        if span is None:
            continue
        if not span.size:
            problem = "empty caption"
            continue
        if not key.field:
            return Choice(number, span, {})
        record = parse_metadata(read(key, span))
        try:
            usable_captions(record.get(key.field))
        except BadSample as bad:
            problem = str(bad)
            continue
        if not key.score:
            return Choice(number, span, record)
        if (score := _score(record, key)) > best_score:
            best, best_score = Choice(number, span, record | {"similarity": score}), score
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
    """The captions in a member or line, of which a list in a JSON field has several; raises `BadSample` without any."""
    return usable_captions(parse_metadata(data).get(key.field) if key.field else data)
