"""The size and CRC-32 of every file of a step, so that damage is found before anything is made of it.

Files, not arrays, are what is hashed: that covers all of a step, and holds on any mesh and number of processes.
"""

import json
import os
import zlib
from pathlib import Path

FILE = "hashes.json"
_TEMPORARY = f"{FILE}.tmp"
_BLOCK = 2**22


def write_hashes(folder: Path) -> None:
    """Reads all files of a step that was written to its end, and lists them in its `hashes.json`.

    Raises:
        OSError: one cannot be read, or the list not be written.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((".", FILE))]
    hashes = {path.relative_to(folder).as_posix(): _hash(path) for path in files}
    with (folder / _TEMPORARY).open("w") as file:
        json.dump(hashes, file, indent=0, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    (folder / _TEMPORARY).replace(folder / FILE)


def check_hashes(folder: Path, below: str = "") -> None:
    """Compares the files of a step, or of its subfolder `below`, with its `hashes.json`.

    A step without one passes: it was written before there were any.

    Raises:
        ValueError: a file differs or is missing, or the list itself is damaged.
        OSError: one cannot be read.
    """
    if not (folder / FILE).exists():
        return
    expected = _read(folder / FILE)
    listed = {name: hashes for name, hashes in expected.items() if name.startswith(below)}
    if not listed:
        raise ValueError(f"{FILE} lists nothing in {below or 'it'}")
    # Sizes first: they cost nothing.
    for name, (size, _) in listed.items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if (folder / name).stat().st_size != size:
            raise ValueError(f"{name} has {(folder / name).stat().st_size} bytes, not {size}")
    for name, hashes in listed.items():
        if _hash(folder / name) != hashes:
            raise ValueError(f"{name} is not what was written")


def _read(path: Path) -> dict[str, list[int]]:
    hashes = json.loads(path.read_text(encoding="utf-8"))
    entries = list(hashes.values()) if isinstance(hashes, dict) else []
    if not entries or not all(isinstance(entry, list) and len(entry) == 2 for entry in entries):
        raise ValueError(f"{path.name} is no list of hashes")
    return dict(hashes)


def _hash(path: Path) -> list[int]:
    size, crc = 0, 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]
