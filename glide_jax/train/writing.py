"""Writing while a run goes on: what a full disk makes of it is one line, and no half lines."""

import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from glide_jax.errors import GlideError


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns an OSError, as of a full or failing disk, into a `GlideError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise GlideError(f"cannot write to {path}: {error.strerror or error}") from error


def append_json(file: io.FileIO, line: Mapping[str, Any]) -> None:
    """Appends a line of JSON, whole or not at all, to a file opened without a buffer.

    Raises:
        GlideError: it cannot be written.
    """
    size = os.fstat(file.fileno()).st_size
    rest = memoryview((json.dumps(line) + "\n").encode())
    with writing(str(file.name)):
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise
