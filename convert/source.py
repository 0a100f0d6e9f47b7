"""Where tensors come from: a file, or a published name that stands for one in the cache."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from convert.download import PUBLISHED, published
from glide_jax.errors import GlideError

_SUFFIXES = (".pt", ".pth", ".safetensors")


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
        source: a published name, or the path of a .pt or .safetensors file.

    Raises:
        GlideError: there is no such file, it cannot be downloaded, or a published one has changed since.
    """
    path = published(source) if source in PUBLISHED else Path(source).expanduser()
    if not path.is_file():
        raise GlideError(f"{source} is neither a file nor a published name ({', '.join(PUBLISHED)})")
    if path.suffix not in _SUFFIXES:
        raise GlideError(f"{source}: expected a file named {' or '.join(f'*{suffix}' for suffix in _SUFFIXES)}")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if source in PUBLISHED:
        _remember(path, sha256)
    return Source(source if source in PUBLISHED else path.name, path, sha256)


def _remember(path: Path, sha256: str) -> None:
    note = path.with_name(f"{path.name}.sha256")
    if not note.exists():
        note.write_text(f"{sha256}  {path.name}\n")  # as sha256sum writes it, and checks it
    elif note.read_text().split()[0] != sha256:
        raise GlideError(f"{path} has changed since it was first used ({note.name} differs): delete both and run again")
