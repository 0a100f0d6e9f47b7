"""Where the usable samples of one shard are: which members belong together, which have a caption, which pass."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from glide_jax.data.captions import CaptionLines, Span, captions_in, choose_caption, read_spans
from glide_jax.data.config import DataConfig
from glide_jax.data.filters import Facts, Filters, parse_metadata
from glide_jax.data.index_cache import Index, IndexFile, stamp_of
from glide_jax.data.presets import PRESETS, CaptionKey, caption_keys, endings
from glide_jax.data.source import BadSample
from glide_jax.data.tar import SPARSE, Member, scan_tar
from glide_jax.errors import GlideError

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # key and ending, as the webdataset package splits them

MOST_BYTES = 2**28  # of one image, caption or metadata file
# Positions and sizes in bytes, and which of the caption keys it was; packed, as there may be 10^9 of them.
ROW = np.dtype([("image", "<i8"), ("caption", "<i8"), ("image_size", "<u4"), ("caption_size", "<u4"), ("key", "u1")])


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
    def lines(self) -> CaptionLines:
        """The captions beside the shards, read when first needed."""
        return CaptionLines(self.lines_path)

    def index_file(self, shard: Path) -> IndexFile:
        """Where the index of a shard under this selection is kept."""
        lines = (str(self.lines_path.resolve()), *stamp_of(self.lines_path)) if self.needs_lines else ()
        selection = [self.images, self.captions, asdict(self._bounds), lines]
        return IndexFile("webdataset", [str(shard.resolve()), selection], stamp_of(shard))


def index_shard(shard: Path, selection: Selection) -> Index:
    """Reads the headers of one shard to its end, and the members that captions and filters need.

    Of a shard that cannot be read to its end the samples before the damage are taken, and its reason is kept.
    """
    counts, rows, unlabelled = Counter[str](), [], 0
    try:
        with shard.open("rb", buffering=0) as file:
            if file.read(2) == b"\x1f\x8b":
                return Index(np.empty(0, ROW), {}, "compressed shard")
            members, damage = scan_tar(shard)
            for key, sample in grouped(members).items():
                try:
                    row, without_label = make_row(partial(_content, file.fileno()), key, sample, selection)
                    rows.append(row)
                    unlabelled += without_label
                except BadSample as bad:
                    counts[str(bad)] += 1
    except OSError:
        return Index(np.empty(0, ROW), {}, "unreadable shard")
    return Index(np.array(rows, ROW), dict(counts), damage or "", unlabelled)


def make_row(
    shard_file: Callable[[Span], bytes], key: str, sample: Mapping[str, Member], selection: Selection
) -> tuple[tuple[int, int, int, int, int], bool]:
    """The row of a sample, whose members are given by ending, and whether a label is missing that a filter asks for.

    Raises:
        BadSample: it has no picture or caption, or does not pass the filters.
    """
    image = next((sample[ending] for ending in selection.images if ending in sample), None)
    if image is None:
        raise BadSample("missing image")
    place_of_image = _span(image)
    if not place_of_image.size:
        raise BadSample("empty picture")

    def find(place: CaptionKey) -> Span | None:
        return selection.lines.find(key) if place.member == "jsonl" else _span_of(sample.get(place.member))

    def read(place: CaptionKey, span: Span) -> bytes:
        return read_spans(selection.lines.path, span)[0] if place.member == "jsonl" else shard_file(span)

    def metadata() -> dict[str, Any]:
        span = _span_of(sample.get("json"))
        # A sample described by a line needs no JSON member.
        own = {} if span is None and choice.record else parse_metadata(span and shard_file(span))
        return own | choice.record

    choice = choose_caption(selection.captions, find, read)
    place = selection.captions[choice.key]
    facts = Facts(
        metadata=metadata,
        captions=lambda: captions_in(read(place, choice.span), place),
        image=lambda: shard_file(place_of_image),
    )
    if reason := selection.filters.rejection(facts):
        raise BadSample(reason)
    row = image.offset, choice.span.offset, image.size, choice.span.size, choice.key
    return row, selection.filters.unlabelled(facts)


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


def _span_of(member: Member | None) -> Span | None:
    return None if member is None else _span(member)


def _span(member: Member) -> Span:
    if member.size == SPARSE:
        raise BadSample("sparse member")
    if member.size > MOST_BYTES:
        raise BadSample("file too large")
    return Span(member.offset, member.size)


def _content(descriptor: int, span: Span) -> bytes:
    return os.pread(descriptor, span.size, span.offset)
