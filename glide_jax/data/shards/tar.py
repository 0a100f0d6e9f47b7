"""The members of a tar file by position: five times as fast as `tarfile`, and tolerant of truncated files."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_BLOCK = 512
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders and pipes
_SPARSE = b"S"
SPARSE = -1  # size of a member stored without its runs of zeros (`tar -S`, and by default on macOS)
_MOST_RECORDS = 2**20  # bytes, of a long name or a PAX header
_ADLER = 65521  # Adler-32's low half is 1 + the sum of all bytes, modulo this: much faster than `sum`


class Member(NamedTuple):
    """A regular file in a tar file: its path, and the position of its bytes; those of a `SPARSE` one cannot be read."""

    name: str
    offset: int
    size: int


class Damage(Exception):
    """A tar file cannot be read further; the message is the reason to report."""


def scan_tar(path: Path) -> tuple[list[Member], str | None]:
    """The whole members of an uncompressed tar file (v7, ustar, GNU and PAX), in order.

    Returns:
        The members, and why reading stopped before the end mark, if it did: `truncated shard` or `unreadable
            shard`.

    Raises:
        OSError: the file cannot be opened or read.
    """
    members: list[Member] = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for member in _members(descriptor, os.fstat(descriptor).st_size):
            members.append(member)
    except Damage as damage:
        return members, str(damage)
    finally:
        os.close(descriptor)
    return members, None


def _members(descriptor: int, file_size: int) -> Iterator[Member]:
    position, long_name, long_size, sparse = 0, None, None, False
    while True:
        header = os.pread(descriptor, _BLOCK, position)
        if len(header) < _BLOCK:
            raise Damage("truncated shard")
        if not header.rstrip(b"\0"):
            return
        name, size, kind = _parse(header)
        if long_size is not None and kind in _REGULAR:
            size = long_size
        # A negative size would loop forever, and a long name of gigabytes would be read.
        if size < 0 or (kind in (b"L", b"x") and size > _MOST_RECORDS):
            raise Damage("unreadable shard")
        offset = position + _BLOCK
        if offset + size > file_size:
            raise Damage("truncated shard")
        position = offset + -(-size // _BLOCK) * _BLOCK
        if kind == _SPARSE:
            position += _sparse_headers(descriptor, header, offset)
        if kind == b"L":
            long_name = _text(os.pread(descriptor, size, offset).rstrip(b"\0"))
        elif kind == b"x":
            long_name, long_size, sparse = _pax(os.pread(descriptor, size, offset))
        elif kind != b"g":
            if kind in (*_REGULAR, _SPARSE):
                yield Member(long_name or name, offset, SPARSE if sparse or kind == _SPARSE else size)
            long_name = long_size = None
            sparse = False


def _parse(header: bytes) -> tuple[str, int, bytes]:
    """Name, size in bytes and kind of a member, from its 512-byte header."""
    try:
        stated = int(header[148:156].strip(b" \0"), 8)
        size = _number(header[124:136])
    except ValueError as error:
        raise Damage("unreadable shard") from error
    if (stated + 1) % _ADLER != zlib.adler32(header[:148] + 8 * b" " + header[156:]) & 0xFFFF:
        raise Damage("unreadable shard")
    name, kind = _text(header[:100].split(b"\0", 1)[0]), header[156:157]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (f"{_text(prefix)}/{name}" if prefix else name), (0 if kind in _WITHOUT_DATA else size), kind


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU's binary form, for members of 8 GiB and more
        return int.from_bytes(field[1:])
    return int(field.strip(b" \0") or b"0", 8)


def _sparse_headers(descriptor: int, header: bytes, offset: int) -> int:
    """Bytes of the blocks between a GNU sparse header and its data; each block says whether another follows."""
    more, size = header[482:483], 0
    while more == b"\1":
        block = os.pread(descriptor, _BLOCK, offset + size)
        if len(block) < _BLOCK:
            raise Damage("truncated shard")
        more, size = block[504:505], size + _BLOCK
    return size


def _pax(records: bytes) -> tuple[str | None, int | None, bool]:
    """Path, size and whether sparse, from a PAX header of records `LENGTH KEY=VALUE` and a line feed."""
    values: dict[bytes, bytes] = {}
    try:
        while records:
            length, _, rest = records.partition(b" ")
            if not 0 < int(length) <= len(records):
                raise ValueError(length)
            key, _, value = rest[: int(length) - len(records) + len(rest)].removesuffix(b"\n").partition(b"=")
            values[key] = value
            records = records[int(length) :]
        size = int(values[b"size"]) if values.get(b"size") else None
    except ValueError as error:
        raise Damage("unreadable shard") from error
    path = values.get(b"GNU.sparse.name", values.get(b"path"))
    sparse = any(key.startswith(b"GNU.sparse.") for key in values)
    return (None if path is None else _text(path)), size, sparse


def _text(name: bytes) -> str:
    return name.decode("utf-8", errors="surrogateescape")
