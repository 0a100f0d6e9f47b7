"""A pickle is looked through before it is loaded: few bytes can unfold into work without end."""

import io
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

from glide_jax.errors import GlideError

LONGEST_PICKLE = 1 << 26  # bytes; that of a published model would have 96,000
MOST_WORK = 8_000_000  # some seconds of it; a training state with EMA and Adam's moments takes 440,000
_MOST_IN_A_ROW = 5  # pickles that begin a file of the older format

_TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "NEWOBJ": 2, "BINPERSID": 1,
          "APPEND": 1, "SETITEM": 2, "BUILD": 1}  # fmt: skip
_TAKES_TO_MARK = ("TUPLE", "APPENDS", "SETITEMS")
_FILLS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")  # what lies below; they leave nothing of their own
_PUTS = ("BINPUT", "LONG_BINPUT")
_GETS = ("BINGET", "LONG_BINGET")


def check_zipped(path: Path) -> None:
    """Looks through the pickle in a zip archive of `torch.save`.

    Raises:
        GlideError: it is too long, or loading it would take too much work.
        Exception: of any kind, where it is damaged.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        # torch does not heed upper and lower case.
        for member in [each for each in archive.infolist() if each.filename.lower().endswith("data.pkl")]:
            _check_length(path, member.file_size)
            # Read past the checksum, which torch.save may be told to leave out.
            file.seek(member.header_offset + 26)
            file.seek(sum(struct.unpack("<HH", file.read(4))), io.SEEK_CUR)
            _check_work(path, io.BytesIO(file.read(member.file_size)))


def check_plain(path: Path) -> None:
    """As `check_zipped`, for a file that begins with pickles."""
    with path.open("rb") as file:
        content = file.read(LONGEST_PICKLE + 1)
    pickles = io.BytesIO(content)
    for _ in range(_MOST_IN_A_ROW):
        try:
            _check_work(path, pickles)
        except (ValueError, IndexError, KeyError):
            _check_length(path, pickles.tell())  # it may be cut short by the limit alone
            return  # else torch finds it damaged at the same place


def _check_length(path: Path, length: int) -> None:
    if length > LONGEST_PICKLE:
        raise GlideError(f"{path} is refused, it was not loaded: its pickle is longer than {LONGEST_PICKLE >> 20} MiB")


def _check_work(path: Path, pickle: io.BytesIO) -> None:
    """Counts operations, and what a tuple holds each time that it is used: hashing one looks at all of it."""
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
            raise GlideError(f"{path} is refused, it was not loaded: its pickle unfolds into too many objects")
