"""Where tensors come from: a file, or a published name that stands for one in the cache."""

import hashlib
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

    That of a published file is remembered beside it when it is first seen.

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
        note.write_text(f"{sha256}  {path.name}\n")  # as sha256sum writes it, and checks it
    elif read_text(note, "the sha256 in").split()[:1] != [sha256]:
        raise GlideError(f"{path} has changed since it was first used ({note.name} differs): delete both and run again")
