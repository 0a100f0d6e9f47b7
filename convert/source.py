"""Where tensors come from: a file, or a published name that stands for one in the cache."""

import contextlib
import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from convert.download import PUBLISHED, published
from glide_jax.errors import GlideError
from glide_jax.files import read_text


class Source(NamedTuple):
    """A file of tensors.

    Attributes:
        name: the published name, or the file's.
        path: the file.
        sha256: of its bytes, in hexadecimal.
    """

    name: str
    path: Path
    sha256: str


def open_source(source: str) -> Source:
    """Finds, and where need be downloads, a file of tensors; computes its sha256.

    That of a published file is remembered beside it when it is first seen; one line says so, as nobody has
    published the right one.

    Args:
        source: a published name, or the path of a file, whatever its suffix.

    Raises:
        GlideError: there is no such file, it cannot be downloaded or read, or a published one has changed since.
    """
    path = published(source) if source in PUBLISHED else _local(source)
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise GlideError(f"cannot read {source}: {error.strerror or error}") from error
    if source in PUBLISHED:
        _remember(path, sha256)
    return Source(source if source in PUBLISHED else path.name, path, sha256)


def _local(source: str) -> Path:
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            raise GlideError(f"{source} is a folder: give a PyTorch or safetensors file")
        if path.is_file():
            return path
    except (OSError, RuntimeError):  # a name too long, or of no user's home
        pass
    raise GlideError(f"{source} is neither a file nor a published name ({', '.join(PUBLISHED)})")


def _remember(path: Path, sha256: str) -> None:
    note = path.with_name(f"{path.name}.sha256")
    if not note.exists():
        print(f"nothing vouches for {path}, used for the first time; {_record(note, f'{sha256}  {path.name}')}")
        return
    known = read_text(note, "the sha256 in").split()[:1]
    if not known or not re.fullmatch(r"[0-9a-fA-F]{64}", known[0]):
        raise GlideError(f"{note} holds no sha256: delete it, and that of {path.name} is recorded anew")
    if known[0].lower() != sha256:
        raise GlideError(f"{path} has changed since it was first used ({note.name} differs): delete both and run again")


def _record(note: Path, line: str) -> str:
    """Writes the note whole or not at all, as sha256sum writes and checks it; says what became of it."""
    partial = note.with_name(f"{note.name}.{os.getpid()}.partial")
    try:
        partial.write_text(f"{line}\n")
        partial.replace(note)
    except OSError as error:  # a cache that others keep may be read-only
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        return f"its sha256 could not be recorded ({error.strerror or error})"
    return f"recorded in {note.name}: {line}"
