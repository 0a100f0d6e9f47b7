"""Where the usable samples of one shard are: which members belong together, which have a caption, which pass."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from glide_jax.data.config import DataConfig
from glide_jax.data.filters import Facts, Filters
from glide_jax.data.shards.captions import CaptionLines, Choice, SampleFiles, Span, choose_caption
from glide_jax.data.shards.presets import PRESETS, caption_keys, endings
from glide_jax.data.shards.tar import Member, scan_tar
from glide_jax.data.source import BadSample
from glide_jax.errors import GlideError
from glide_jax.files import cache_folder, written

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # key and ending, as the webdataset package splits them
COMPRESSED = "compressed shard"
_VERSION = 4  # of the cache; raise it when the meaning of rows or counts changes

# Positions and sizes in bytes, and which of the caption keys it was; packed, as there may be 10^9 of them.
ROW = np.dtype([("image", "<i8"), ("caption", "<i8"), ("image_size", "<u4"), ("caption_size", "<u4"), ("key", "u1")])


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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IndexFile) and (self._path, self.stamp) == (other._path, other.stamp)

    def __hash__(self) -> int:
        return hash(self._path)

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
        """Writes the index and returns it."""
        try:
            with written(self._path) as temporary, temporary.open("wb") as file:
                np.savez(file, stamp=self._stamp, rows=index.rows, rest=np.array(json.dumps(index[1:])))
        except GlideError:
            if self.load() is None:  # else another process wrote the same one at the same time
                return index._replace(counts=index.counts | {"index not cached": 1})
        return index


def stamp_of(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change of a file."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


class Selection:
    """Which members make a sample, and which samples to take: a configuration with its preset filled in."""

    def __init__(self, config: DataConfig) -> None:
        preset = PRESETS[config.preset]
        self.images = endings(config.image_key or preset.image_key)
        self.captions = caption_keys(config.caption_key or preset.caption_key)
        self._bounds = config.filters.over(preset.filters)
        self.filters = Filters(self._bounds)
        self.needs_lines = any(key.member == "jsonl" for key in self.captions)
        self.lines_path = Path(config.captions_jsonl).expanduser()
        if self.needs_lines and not self.lines_path.is_file():
            raise GlideError(
                f"captions come from a JSONL file, but {config.captions_jsonl or 'none'} is given; "
                "set --config.data.captions_jsonl=FILE"
            )

    @cached_property
    def lines(self) -> CaptionLines | None:
        """The captions beside the shards, read when first needed; None if they are not."""
        return CaptionLines(self.lines_path) if self.needs_lines else None

    def index_file(self, shard: Path) -> IndexFile:
        """Where the index of a shard under this selection is kept."""
        return IndexFile("webdataset", self.identity(shard), stamp_of(shard))

    def identity(self, shard: Path) -> list[Any]:
        """What decides which samples a shard has, beside its content."""
        lines = (str(self.lines_path.resolve()), *stamp_of(self.lines_path)) if self.needs_lines else ()
        return [str(shard.resolve()), [self.images, self.captions, asdict(self._bounds), lines]]


def index_shard(shard: Path, selection: Selection) -> Index:
    """Reads the headers of one shard to its end, and the members that captions and filters need.

    Of a shard that cannot be read to its end the samples before the damage are taken, and its reason is kept.
    """
    counts, rows, unlabelled = Counter[str](), [], 0
    try:
        with shard.open("rb", buffering=0) as file:
            if file.read(2) == b"\x1f\x8b":
                return Index(np.empty(0, ROW), {}, COMPRESSED)
            members, damage = scan_tar(shard)
            for key, sample in grouped(members).items():
                try:
                    found = select(key, sample, partial(_content, file.fileno()), selection)
                except BadSample as bad:
                    counts[str(bad)] += 1
                    continue
                image, caption = found.image, found.caption
                rows.append((image.offset, caption.span.offset, image.size, caption.span.size, caption.key))
                unlabelled += found.unlabelled
    except OSError:
        return Index(np.empty(0, ROW), {}, "unreadable shard")
    return Index(np.array(rows, ROW), dict(counts), damage or "", unlabelled)


class Found(NamedTuple):
    """The image and caption of a sample, and whether it lacks the NSFW label that a filter asks for."""

    image: Span
    caption: Choice
    unlabelled: bool


def select(key: str, members: Mapping[str, Member], read: Callable[[Span], bytes], selection: Selection) -> Found:
    """What is taken of a sample with some key, whose members are given by ending; `read` gives bytes of its shard.

    Raises:
        BadSample: it has no image or caption, or does not pass the filters.
    """
    files = SampleFiles(key, members, read, selection.lines)
    ending = next((ending for ending in selection.images if ending in members), None)
    image = files.find(ending) if ending else None
    if image is None:
        raise BadSample("missing image")
    if not image.size:
        raise BadSample("empty image")
    caption = choose_caption(selection.captions, files)
    facts = Facts(
        metadata=lambda: files.record("json") | caption.record,
        captions=caption.captions,
        image=lambda: read(image),
    )
    if reason := selection.filters.rejection(facts):
        raise BadSample(reason)
    return Found(image, caption, selection.filters.unlabelled(facts))


def grouped(members: Iterable[Member]) -> dict[str, dict[str, Member]]:
    """Members by ending, by key, in order of appearance; the first of two equal names counts."""
    groups: dict[str, dict[str, Member]] = {}
    for member in members:
        if parts := key_and_ending(member.name):
            groups.setdefault(parts[0], {}).setdefault(parts[1], member)
    return groups


def key_and_ending(name: str) -> tuple[str, str] | None:
    """The sample a member belongs to and what it is there, as the webdataset package has it."""
    match = _NAME.match(name)
    return (match[1], match[2].lower()) if match else None


def _content(descriptor: int, span: Span) -> bytes:
    return os.pread(descriptor, span.size, span.offset)
