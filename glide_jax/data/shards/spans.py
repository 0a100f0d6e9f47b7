"""Reads bytes of shards by position; shards may vanish or change in the meantime."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from glide_jax.data.source import BadSample, Unavailable, image_size

MOST_BYTES = 2**28  # of an image, caption or metadata file
_JPEG, _JPEG_HEADER = b"\xff\xd8", 2**13  # the beginning of a JPEG, and the bytes that most likely include its size


class Span(NamedTuple):
    """A range of bytes in a file."""

    offset: int
    size: int


def read_spans(path: Path, *spans: Span, stamp: Sequence[int] | None = None) -> list[bytes]:
    """Reads parts of a file.

    Raises:
        Unavailable: they cannot be read, or the file has changed since it had this `stamp` (`stamp_of`).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise Unavailable("missing shard") from error
    try:
        found = os.fstat(descriptor)
        if stamp is not None and (found.st_size, found.st_mtime_ns) != tuple(stamp):
            raise Unavailable("changed shard")  # the bytes may now belong to another sample
        parts = [os.pread(descriptor, span.size, span.offset) for span in spans]
    except OSError as error:
        raise Unavailable("unreadable shard") from error
    finally:
        os.close(descriptor)
    if any(len(part) < span.size for part, span in zip(parts, spans, strict=True)):
        raise Unavailable("truncated shard")
    return parts


def image_size_in(image: Span, read: Callable[[Span], bytes]) -> tuple[int, int]:
    """Width and height of an image in a shard, whose bytes `read` returns; the beginning suffices for most JPEGs.

    Raises:
        BadSample: it is damaged, or cannot be read now.
    """
    start = read(Span(image.offset, min(image.size, _JPEG_HEADER)))
    if start.startswith(_JPEG):  # in other formats the orientation may be at the end
        with suppress(BadSample):
            return image_size(start)
    return image_size(start + read(Span(image.offset + len(start), image.size - len(start))))
