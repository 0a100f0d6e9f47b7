"""Cached indexes of a data set, valid until the data change: one per shard, or per part of another source."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self
from zipfile import BadZipFile

import numpy as np

from glide_jax.errors import GlideError
from glide_jax.files import cache_folder, written

_VERSION = 4  # raise it when the meaning of rows or counts changes


class Index(NamedTuple):
    """The usable samples of a shard or data set, and the reasons others were left out.

    Attributes:
        rows: one element per sample, in the form its source needs.
        counts: samples left out, by reason.
        damage: why the shard could not be read to the end, or "".
        unlabelled: usable samples without an NSFW label that a filter asks for.
    """

    rows: np.ndarray
    counts: dict[str, int]
    damage: str = ""
    unlabelled: int = 0


class IndexFile(NamedTuple):
    """An index in `GLIDE_JAX_CACHE` (`~/.cache/glide_jax`); if that cannot be written to, only time is lost.

    Attributes:
        path: the file.
        stamp: integers that change with the data, such as size and modification time.
    """

    path: Path
    stamp: tuple[int, ...]

    @classmethod
    def of(cls, kind: str, identity: Sequence[Any], stamp: Sequence[int]) -> Self:
        """The file in the subfolder `kind` for JSON values that say what is indexed and how samples were selected."""
        name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
        return cls(cache_folder() / kind / f"{name}.npz", tuple(stamp))

    def load(self) -> Index | None:
        """The index; None if it does not exist, is damaged, or the data have changed."""
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                if saved["stamp"].tolist() == [_VERSION, *self.stamp]:
                    return Index(saved["rows"], *json.loads(str(saved["rest"])))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            pass
        return None

    def save(self, index: Index) -> Index:
        """Writes the index and returns it."""
        try:
            with written(self.path) as temporary, temporary.open("wb") as file:
                stamp = np.array([_VERSION, *self.stamp], np.int64)
                np.savez(file, stamp=stamp, rows=index.rows, rest=np.array(json.dumps(index[1:])))
        except GlideError:
            if self.load() is None:  # otherwise another process wrote the same one at the same time
                return index._replace(counts=index.counts | {"index not cached": 1})
        return index


def stamp_of(path: Path) -> tuple[int, int]:
    """Size in bytes and modification time of a file."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
