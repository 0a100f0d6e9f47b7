"""Indexes that are slow to make, kept on disk until what they were made from changes."""

import hashlib
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from glide_jax.cache import cache_folder

_VERSION = 3  # raise it when the meaning of rows or counts changes


class Index(NamedTuple):
    """The usable samples of a shard or set, and the reasons why others are not.

    Attributes:
        rows: one element a sample, as its source needs it.
        counts: samples left out, by reason.
        damage: why the shard could not be read to its end; empty if it could.
        unlabelled: usable samples without the NSFW label that a filter asks for.
    """

    rows: np.ndarray
    counts: dict[str, int]
    damage: str = ""
    unlabelled: int = 0


class IndexFile:
    """One index in `GLIDE_JAX_CACHE` (`~/.cache/glide_jax`); a folder that cannot be written to only costs time.

    Attributes:
        stamp: as given.

    Args:
        kind: subfolder.
        identity: what the index is of and how samples were chosen, as JSON values.
        stamp: integers that change when the data do, such as size and time of change.
    """

    def __init__(self, kind: str, identity: Sequence[Any], stamp: Sequence[int]) -> None:
        name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
        self._path = cache_folder() / kind / f"{name}.npz"
        self.stamp = tuple(stamp)
        self._stamp = np.array([_VERSION, *stamp], np.int64)

    def load(self) -> Index | None:
        """The index, or None if there is none, it is damaged, or the data have changed since."""
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                if np.array_equal(saved["stamp"], self._stamp):
                    return Index(saved["rows"], *json.loads(str(saved["rest"])))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            pass
        return None

    def save(self, index: Index) -> Index:
        """Writes the index under a temporary name, renames it, and returns it."""
        temporary = self._path.with_name(f".{uuid.uuid4().hex}.npz")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            rest = np.array(json.dumps(index[1:]))
            np.savez(temporary, stamp=self._stamp, rows=index.rows, rest=rest)
            temporary.replace(self._path)
        except OSError:
            return index._replace(counts=index.counts | {"index not cached": 1})
        return index


def stamp_of(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change of a file."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
