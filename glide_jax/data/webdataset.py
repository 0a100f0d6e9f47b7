"""WebDataset shards with random access: each tar is indexed once, so order is global and resuming exact."""

import hashlib
import json
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, TypeVar
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Int64

from glide_jax import progress
from glide_jax.cache import cache_folder
from glide_jax.data.config import DataConfig, endings
from glide_jax.data.filters import Filters
from glide_jax.data.shards import find_shards
from glide_jax.data.source import BadSample, Sample
from glide_jax.data.tar import Member, scan_tar
from glide_jax.errors import GlideError

_VERSION = 1  # of the cached index: raise it when the meaning of its rows or counts changes
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # key and ending, as the webdataset package splits them
_BAR_FROM = 8  # shards to read for a progress bar to be worth showing

_T = TypeVar("_T")
Rows = Int64[np.ndarray, "samples 4"]


class ShardIndex(NamedTuple):
    """The usable samples of one shard and the reasons why others are not.

    Attributes:
        rows: image offset, image size, caption offset and caption size of each sample, in bytes.
        counts: samples left out, and damage found, by reason.
    """

    rows: Rows
    counts: dict[str, int]


class WebDataset:
    """The samples of a set of shards that have a picture and a caption and pass the filters.

    The index of a shard is kept in `GLIDE_JAX_CACHE` (`~/.cache/glide_jax`) and used while the shard's size
    and time of change are the same.

    Raises:
        GlideError: a shard does not exist, a pattern matches nothing, or no sample is usable.
    """

    def __init__(self, config: DataConfig) -> None:
        self.shards = find_shards(config.path)
        indexes = _index_all(self.shards, config)
        self._ends = np.cumsum([len(index.rows) for index in indexes])
        self._rows: Rows = np.concatenate([index.rows for index in indexes])
        self.counts: Counter[str] = sum((Counter(index.counts) for index in indexes), Counter())
        if not len(self):
            reasons = ", ".join(f"{reason}: {count}" for reason, count in self.counts.most_common())
            raise GlideError(
                f"no usable sample in {len(self.shards)} shards ({reasons or 'they are empty'}); "
                "see data.image_key, data.caption_key and data.filters"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        shard = self.shards[np.searchsorted(self._ends, index, side="right")]
        image_at, image_size, caption_at, caption_size = self._rows[index].tolist()
        try:
            descriptor = os.open(shard, os.O_RDONLY)
        except OSError as error:
            raise BadSample("missing shard") from error
        try:
            image = os.pread(descriptor, image_size, image_at)
            caption = os.pread(descriptor, caption_size, caption_at)
        except OSError as error:
            raise BadSample("unreadable shard") from error
        finally:
            os.close(descriptor)
        if len(image) < image_size or len(caption) < caption_size:
            raise BadSample("truncated shard")
        return Sample(image, _caption(caption))


def _caption(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadSample("caption is not UTF-8") from error
    if not text:
        raise BadSample("empty caption")
    return text


def _index_all(shards: Sequence[Path], config: DataConfig) -> list[ShardIndex]:
    """Indexes in the order of the shards: from the cache where possible, the rest read in parallel."""
    cached = [_Cache(shard, config) for shard in shards]
    indexes = [entry.load() for entry in cached]
    pending = [position for position, index in enumerate(indexes) if index is None]
    threads = min(config.workers or 16, len(pending))
    if not pending:
        return [index for index in indexes if index is not None]
    with ThreadPoolExecutor(threads) as pool:
        jobs = {pool.submit(index_shard, shards[position], config): position for position in pending}
        try:
            for job in _with_bar(as_completed(jobs), len(jobs)):
                position = jobs[job]
                indexes[position] = cached[position].save(job.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [index for index in indexes if index is not None]


def _with_bar(items: Iterable[_T], total: int) -> Iterable[_T]:
    if total < _BAR_FROM:
        yield from items
        return
    with progress.bar("indexing shards", total) as bar:
        for item in items:
            yield item
            bar.update()


def index_shard(shard: Path, config: DataConfig) -> ShardIndex:
    """Reads the headers of one shard, and its `.json` members if there are filters.

    Raises:
        GlideError: the shard cannot be read at all, or is compressed.
    """
    filters, counts = Filters(config.filters), Counter[str]()
    try:
        with shard.open("rb", buffering=0) as file:
            if file.read(2) == b"\x1f\x8b":
                raise GlideError(
                    f"shard {shard} is compressed: unpack it with gunzip, as samples are read in any order"
                )
            members, damage = scan_tar(shard)
            if damage:
                counts[damage] += 1
            rows = []
            for sample in _grouped(members):
                chosen = _choose(sample, config)
                if isinstance(chosen, str):
                    counts[chosen] += 1
                elif filters and (reason := filters.rejection(_metadata(file.fileno(), sample))):
                    counts[reason] += 1
                else:
                    rows.append(chosen)
    except OSError as error:
        raise GlideError(f"cannot read shard {shard}: {error.strerror or error}") from error
    return ShardIndex(np.array(rows, np.int64).reshape(-1, 4), dict(counts))


def _grouped(members: Iterable[Member]) -> Iterable[dict[str, Member]]:
    """Members by ending, a group a key, in order of appearance; the first of two equal names counts."""
    groups: dict[str, dict[str, Member]] = {}
    for member in members:
        if match := _NAME.match(member.name):
            groups.setdefault(match[1], {}).setdefault(match[2].lower(), member)
    return groups.values()


def _choose(sample: dict[str, Member], config: DataConfig) -> tuple[int, int, int, int] | str:
    """The row of a sample, or the reason why it has none."""
    image = next((sample[ending] for ending in endings(config.image_key) if ending in sample), None)
    caption = next((sample[ending] for ending in endings(config.caption_key) if ending in sample), None)
    if image is None:
        return "missing image"
    if caption is None:
        return "missing caption"
    if not caption.size:
        return "empty caption"
    return image.offset, image.size, caption.offset, caption.size


def _metadata(descriptor: int, sample: dict[str, Member]) -> bytes | None:
    member = sample.get("json")
    return None if member is None else os.pread(descriptor, member.size, member.offset)


class _Cache:
    """One shard's index on disk; a folder that cannot be written to only costs the next start its time."""

    def __init__(self, shard: Path, config: DataConfig) -> None:
        stat = shard.stat()
        selection = [config.image_key, config.caption_key, asdict(config.filters)]
        name = hashlib.sha256(json.dumps([str(shard.resolve()), selection]).encode()).hexdigest()[:32]
        self._path = cache_folder() / "webdataset" / f"{name}.npz"
        self._stamp = np.array([_VERSION, stat.st_size, stat.st_mtime_ns], np.int64)

    def load(self) -> ShardIndex | None:
        """The index, or None if there is none, it is damaged, or the shard has changed since."""
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                if np.array_equal(saved["stamp"], self._stamp):
                    return ShardIndex(saved["rows"], json.loads(str(saved["counts"])))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            pass
        return None

    def save(self, index: ShardIndex) -> ShardIndex:
        """Writes the index under a temporary name, renames it, and returns it."""
        temporary = self._path.with_name(f".{uuid.uuid4().hex}.npz")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(temporary, stamp=self._stamp, rows=index.rows, counts=np.array(json.dumps(index.counts)))
            temporary.replace(self._path)
        except OSError:
            return ShardIndex(index.rows, index.counts | {"index not cached": 1})
        return index
