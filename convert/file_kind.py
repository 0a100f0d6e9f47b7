"""What a file really is, told by its content: names come from people and from servers."""

import codecs
import zipfile
from pathlib import Path

from glide_jax.errors import GlideError

TORCH = "a PyTorch file"
SAFETENSORS = "a safetensors file"

_UNPACK = "unpack it first"
_AGAIN = "download or copy it again"
# By their first bytes: what else is found under the names of checkpoints, and what to do with it.
_OTHERS = {
    b"version https://git-lfs": ("a git-lfs pointer", "fetch the file that it stands for with `git lfs pull`"),
    b"\x1f\x8b": ("a gzip archive", _UNPACK),
    b"BZh": ("a bzip2 archive", _UNPACK),
    b"\xfd7zXZ\x00": ("an xz archive", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"\x93NUMPY": ("a NumPy array", "give a file of named tensors"),
    b"\x89HDF": ("an HDF5 file", "give a file of named tensors"),
    b"GGUF": ("a GGUF file", "give a file of named tensors"),
}
_LONGEST_HEADER = 100_000_000  # of a safetensors file, as its format says


def file_kind(path: Path) -> str:
    """`TORCH` or `SAFETENSORS`, whatever the file is called.

    Raises:
        GlideError: it cannot be read, or is neither; what it is then, is named.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise GlideError(f"cannot read {path}: {error.strerror or error}") from error
    # The size of a header comes first and may look like any of the others.
    if 0 < int.from_bytes(head[:8], "little") <= _LONGEST_HEADER and head[8:9] == b"{":
        return SAFETENSORS
    if head.startswith(b"\x80"):  # a pickle, as `torch.save` wrote it before it wrote zip archives
        return TORCH
    other = _zip_of_others(path) if head.startswith(b"PK") else _other(head)
    if other is None:
        return TORCH
    what, advice = other
    raise GlideError(f"{path} is {what}, not a PyTorch or safetensors file: {advice}")


def _zip_of_others(path: Path) -> tuple[str, str] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception:  # cut short or damaged, which is told when it is read
        return None
    names = [member.filename for member in members]
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript program", "give a file of its state_dict"
    if any(name.endswith("/data.pkl") for name in names):
        # torch would unpack a pickle of any size, and take compressed tensors for their values.
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        return ("a PyTorch file compressed afterwards", "save it again with torch.save") if packed else None
    listed = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
    return f"a zip archive of {listed or 'nothing'}", _UNPACK


def _other(head: bytes) -> tuple[str, str]:
    if not head:
        return "an empty file", _AGAIN
    if head[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    for magic, other in _OTHERS.items():
        if head.startswith(magic):
            return other
    return _text_kind(head) or (f"something else (its first bytes are {head[:8].hex(' ')})", _AGAIN)


def _text_kind(head: bytes) -> tuple[str, str] | None:
    start = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")) or (start.startswith(b"<") and b"<html" in start):
        return "an HTML page", "download the file itself"
    if start.startswith(b"<?xml"):
        return "an XML document", "download the file itself"
    text = _text(head)
    if text is None:
        return None
    if text.startswith(("{", "[")):
        return "a JSON file", "give the file of the tensors"
    return f"a text file ({text.split(chr(10))[0][:60]!r})", _AGAIN


def _text(head: bytes) -> str | None:
    """The text that a file begins with, if it is one; a character cut at the end is no matter."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text.strip()
