"""Checks before a file of weights is loaded: its real format, and whether its pickle is harmless.

Names come from users and servers, so the content decides. A pickle of few bytes can unfold into endless work.
"""

import codecs
import io
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

from glide_jax.errors import GlideError

TORCH = "a PyTorch file"
SAFETENSORS = "a safetensors file"

_UNPACK = "unpack it first"
_AGAIN = "download or copy it again"
_NAMED = "give a file of named tensors"
# By their first bytes: other things found under the names of checkpoints, and what to do about them.
_OTHERS = {
    b"version https://git-lfs": ("a git-lfs pointer", "fetch the file that it stands for with `git lfs pull`"),
    b"\x1f\x8b": ("a gzip archive", _UNPACK),
    b"BZh": ("a bzip2 archive", _UNPACK),
    b"\xfd7zXZ\x00": ("an xz archive", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"\x93NUMPY": ("a NumPy array", _NAMED),
    b"\x89HDF": ("an HDF5 file", _NAMED),
    b"GGUF": ("a GGUF file", _NAMED),
}
_LONGEST_HEADER = 100_000_000  # of a safetensors file, from its specification

LONGEST_PICKLE = 1 << 26  # bytes; that of a published model would have 96,000
MOST_WORK = 8_000_000  # some seconds of work; a training state with EMA and Adam's moments needs 440,000
_MOST_IN_A_ROW = 5  # pickles that begin a file of the older format

_TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "NEWOBJ": 2, "BINPERSID": 1,
          "APPEND": 1, "SETITEM": 2, "BUILD": 1}  # fmt: skip
_TAKES_TO_MARK = ("TUPLE", "APPENDS", "SETITEMS")
_FILLS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")  # the stack below; they leave nothing of their own
_PUTS = ("BINPUT", "LONG_BINPUT")
_GETS = ("BINGET", "LONG_BINGET")


def file_kind(path: Path) -> str:
    """`TORCH` or `SAFETENSORS`, whatever the file's name.

    Raises:
        GlideError: it cannot be read, or is neither; the message says what it is.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise GlideError(f"cannot read {path}: {error.strerror or error}") from error
    # The size of a header comes first, and may look like any of the others.
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
    except Exception:  # truncated or damaged, which is reported when it is read
        return None
    names = [member.filename for member in members]
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript program", "give a file of its state_dict"
    if any(name.endswith("/data.pkl") for name in names):
        # torch would unpack a pickle of any size, and take compressed tensors for values.
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
    try:  # incrementally, so that a character cut off at the end does not matter
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head).strip()
    except UnicodeDecodeError:
        return None
    if "\0" in text:
        return None
    if text.startswith(("{", "[")):
        return "a JSON file", "give the file of the tensors"
    return f"a text file ({text.split(chr(10))[0][:60]!r})", _AGAIN


def check_zipped(path: Path) -> None:
    """Checks the pickle in a zip archive of `torch.save`.

    Raises:
        GlideError: it is too long, or would take too much work to load.
        Exception: of any kind, if it is damaged.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        # torch ignores case here.
        for member in [each for each in archive.infolist() if each.filename.lower().endswith("data.pkl")]:
            _check_length(path, member.file_size)
            # Without the checksum, which torch.save may be told to omit.
            file.seek(member.header_offset + 26)
            file.seek(sum(struct.unpack("<HH", file.read(4))), io.SEEK_CUR)
            _check_work(path, io.BytesIO(file.read(member.file_size)))


def check_plain(path: Path) -> None:
    """Like `check_zipped`, for a file that begins with pickles."""
    with path.open("rb") as file:
        content = file.read(LONGEST_PICKLE + 1)
    pickles = io.BytesIO(content)
    for _ in range(_MOST_IN_A_ROW):
        try:
            _check_work(path, pickles)
        except (ValueError, IndexError, KeyError):
            _check_length(path, pickles.tell())  # it may be truncated only by the limit
            return  # otherwise torch finds the same damage


def _check_length(path: Path, length: int) -> None:
    if length > LONGEST_PICKLE:
        raise GlideError(f"{path} was refused and not loaded: its pickle is longer than {LONGEST_PICKLE >> 20} MiB")


def _check_work(path: Path, pickle: io.BytesIO) -> None:
    """Counts operations, and the content of a tuple at each use, because hashing it visits all of it."""
    work = 0
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[Any, int] = {}
    for operation, argument, _ in pickletools.genops(pickle):
        name = operation.name
        work += 1
        if name == "MARK":
            marks.append(len(stack))
        elif name in _PUTS:
            memo[argument] = stack[-1]
        elif name in _GETS:
            stack.append(memo[argument])
        elif name in _TAKES or name in _TAKES_TO_MARK:
            start = marks.pop() if name in _TAKES_TO_MARK else len(stack) - _TAKES[name]
            held = 1 + sum(stack[start:])
            del stack[start:]
            work += held
            if name not in _FILLS:
                stack.append(held)
        elif name == "STOP":
            return
        elif operation.stack_before:
            return  # none that torch loads
        elif operation.stack_after:
            stack.append(1)
        if work > MOST_WORK:
            raise GlideError(f"{path} was refused and not loaded: its pickle unfolds into too many objects")
