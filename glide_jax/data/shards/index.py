"""The index of a shard's usable samples: members that belong together, with a caption, and passing the filters."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glide_jax.data.config import DataConfig
from glide_jax.data.filters import Facts, Filters
from glide_jax.data.index_file import Index, IndexFile, stamp_of
from glide_jax.data.shards.captions import CaptionLines, Choice, SampleFiles, choose_caption
from glide_jax.data.shards.presets import PRESETS, caption_keys, endings
from glide_jax.data.shards.spans import Span, image_size_in
from glide_jax.data.shards.tar import Member, scan_tar
from glide_jax.data.source import BadSample, Unavailable
from glide_jax.errors import GlideError

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # key and ending, split as in the webdataset package
COMPRESSED, PARQUET = "compressed shard", "Parquet file"
_OTHERS = {b"\x1f\x8b": COMPRESSED, b"BZh": COMPRESSED, b"\xfd7zXZ": COMPRESSED, b"\x28\xb5\x2f\xfd": COMPRESSED,
           b"PAR1": PARQUET}  # fmt: skip

# Positions and sizes in bytes, and the number of the caption key; packed, as there may be 10^9 rows.
ROW = np.dtype([("image", "<i8"), ("caption", "<i8"), ("image_size", "<u4"), ("caption_size", "<u4"), ("key", "u1")])


class Selection:
    """How members form samples, and which samples to take: a configuration with its preset filled in."""

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
        """The captions outside the shards, read when first needed; None if there are none."""
        return CaptionLines(self.lines_path) if self.needs_lines else None

    def index_file(self, shard: Path) -> IndexFile:
        """The cached index of a shard for this selection."""
        return IndexFile.of("webdataset", self.identity(shard), stamp_of(shard))

    def identity(self, shard: Path) -> list[Any]:
        """Everything besides its content that decides a shard's samples."""
        lines = (str(self.lines_path.resolve()), *stamp_of(self.lines_path)) if self.needs_lines else ()
        return [str(shard.resolve()), [self.images, self.captions, asdict(self._bounds), lines]]


def index_shard(shard: Path, selection: Selection) -> Index:
    """Reads a shard's headers to the end, and the members needed for captions and filters.

    From a damaged shard, the samples before the damage are taken, and the reason is recorded.

    Raises:
        OSError, Unavailable: the shard, or captions outside it, cannot be read now.
    """
    counts, rows, unlabelled = Counter[str](), [], 0
    with shard.open("rb", buffering=0) as file:
        begin = file.read(6)
        for magic, kind in _OTHERS.items():
            if begin.startswith(magic):
                return unread(kind)
        members, damage = scan_tar(shard)
        for key, sample in grouped(members).items():
            try:
                found = select(key, sample, partial(_content, file.fileno()), selection)
            except Unavailable:
                raise
            except BadSample as bad:
                counts[str(bad)] += 1
                continue
            image, caption = found.image, found.caption
            rows.append((image.offset, caption.span.offset, image.size, caption.span.size, caption.key))
            unlabelled += found.unlabelled
    return Index(np.array(rows, ROW), dict(counts), damage or "", unlabelled)


def unread(why: str) -> Index:
    """The index of a shard that could not be read at all."""
    return Index(np.empty(0, ROW), {}, why)


class Found(NamedTuple):
    """The image and caption of a sample, and whether it lacks an NSFW label that a filter asks for."""

    image: Span
    caption: Choice
    unlabelled: bool


def select(key: str, members: Mapping[str, Member], read: Callable[[Span], bytes], selection: Selection) -> Found:
    """Selects a sample's image and caption, given its key and its members by ending; `read` returns bytes of its shard.

    Raises:
        BadSample: it has no image or caption, or fails the filters.
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
        image_size=lambda: image_size_in(image, read),
    )
    if reason := selection.filters.rejection(facts):
        raise BadSample(reason)
    return Found(image, caption, selection.filters.unlabelled(facts))


def grouped(members: Iterable[Member]) -> dict[str, dict[str, Member]]:
    """Members by key and ending, in order of appearance; the first of two equal names counts."""
    groups: dict[str, dict[str, Member]] = {}
    for member in members:
        if parts := key_and_ending(member.name):
            groups.setdefault(parts[0], {}).setdefault(parts[1], member)
    return groups


def key_and_ending(name: str) -> tuple[str, str] | None:
    """The key and ending of a member's name, as in the webdataset package."""
    match = _NAME.match(name)
    return (match[1], match[2].lower()) if match else None


def _content(descriptor: int, span: Span) -> bytes:
    return os.pread(descriptor, span.size, span.offset)
