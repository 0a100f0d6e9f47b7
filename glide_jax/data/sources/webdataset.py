"""WebDataset shards with random access: each tar is indexed once, so the order is global and resuming is exact."""

import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from glide_jax import progress
from glide_jax.data.config import DataConfig
from glide_jax.data.filters import report_unlabelled
from glide_jax.data.index_file import Index, IndexFile, stamp_of
from glide_jax.data.shards.captions import captions_in
from glide_jax.data.shards.index import COMPRESSED, PARQUET, Selection, index_shard, unread
from glide_jax.data.shards.patterns import find_shards
from glide_jax.data.shards.spans import Span, image_size_in, read_spans
from glide_jax.data.source import WHOLE, Part, Sample, Share, Source, Unavailable, listed
from glide_jax.errors import GlideError

_BAR_FROM = 8  # shards; with fewer, no progress bar
_GIVE_UP_AFTER = 50_000  # samples, none of which passed
_REMEDIES = {
    COMPRESSED: "decompress them (gunzip), or set data.source=stream",
    PARQUET: "shards are tar files, which img2dataset makes of such a list with output_format=webdataset",
}
_LISTED = 10  # damaged shards named


class WebDataset(Source):
    """The samples in a set of shards that have an image and a caption and pass the filters.

    Every shard is read to the end once, in parallel; the resulting index is kept in `GLIDE_JAX_CACHE`
    (`~/.cache/glide_jax`) and valid while the shard's path, size and modification time stay the same. Damaged shards
    are listed on standard error, and used up to the damage.

    Raises:
        GlideError: a shard does not exist, a pattern matches nothing, nothing is left of damaged shards, or no sample
            (or none of the first 50,000) is usable.
    """

    def __init__(self, config: DataConfig, share: Share = WHOLE) -> None:
        self._shards = find_shards(config.path)
        self._selection = Selection(config)
        files = [self._selection.index_file(shard) for shard in self._shards]
        indexes = _index_all(self._shards, files, self._selection, config)
        self._stamps = [file.stamp for file in files]
        self._lines_stamp = stamp_of(self._selection.lines_path) if self._selection.needs_lines else None
        self._rows = [index.rows for index in indexes]
        self._ends = np.cumsum([len(rows) for rows in self._rows])
        _report_damaged(dict(zip(self._shards, indexes, strict=True)))
        damages = Counter(index.damage for index in indexes if index.damage)
        self.counts: Counter[str] = sum((Counter(index.counts) for index in indexes), damages)
        if not len(self):
            raise _nothing_usable(len(self._shards), self.counts, self._selection)
        report_unlabelled(str(config.path), sum(index.unlabelled for index in indexes), len(self))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        position, (image_at, caption_at, image_size, caption_size, key) = self._row(index)
        place, shard, stamp = self._selection.captions[key], self._shards[position], self._stamps[position]
        spans = Span(image_at, image_size), Span(caption_at, caption_size)
        if place.member == "jsonl":
            (image,) = read_spans(shard, spans[0], stamp=stamp)
            (text,) = read_spans(self._selection.lines_path, spans[1], stamp=self._lines_stamp)
        else:
            image, text = read_spans(shard, *spans, stamp=stamp)
        return Sample(image, captions_in(text, place))

    def parts(self) -> list[Part]:
        """The shards."""
        shards = zip(self._shards, self._stamps, self._rows, strict=True)
        return [Part(self._selection.identity(shard), stamp, len(rows)) for shard, stamp, rows in shards]

    def named(self, index: int) -> str:
        """The shard, and the sample's number among those of it that are used."""
        position, _ = self._row(index)
        first = 0 if position == 0 else int(self._ends[position - 1])
        return f"{self._shards[position]}, sample {index - first}"

    def image_size(self, index: int) -> tuple[int, int]:
        """As the header says."""
        position, (offset, _, size, *_) = self._row(index)
        shard, stamp = self._shards[position], self._stamps[position]
        return image_size_in(Span(offset, size), lambda span: read_spans(shard, span, stamp=stamp)[0])

    def _row(self, index: int) -> tuple[int, tuple[int, ...]]:
        """The number of a sample's shard, and its row in that shard's index."""
        position = int(np.searchsorted(self._ends, index, side="right"))
        rows = self._rows[position]
        return position, rows[index - int(self._ends[position])].item()


def _index_all(
    shards: Sequence[Path], files: Sequence[IndexFile], selection: Selection, config: DataConfig
) -> list[Index]:
    """Indexes in the order of the shards: from the cache if possible, the others made in parallel."""
    indexes = [None if config.revalidate else file.load() for file in files]
    pending = [position for position, index in enumerate(indexes) if index is None]
    if not pending:
        return [index for index in indexes if index is not None]
    _ = selection.lines  # read now, before several threads need them
    with ThreadPoolExecutor(min(config.workers or 16, len(pending))) as pool:
        jobs = {pool.submit(index_shard, shards[position], selection): position for position in pending}
        seen, passed = Counter[str](), 0
        try:
            for job in progress.tracked("checking shards", as_completed(jobs), len(jobs), _BAR_FROM):
                try:
                    index = files[jobs[job]].save(job.result())
                except (OSError, Unavailable):  # nothing is kept of what may be over the next time
                    index = unread("unreadable shard")
                indexes[jobs[job]] = index
                seen, passed = seen + Counter(index.counts), passed + len(index.rows)
                if not passed and seen.total() >= _GIVE_UP_AFTER:
                    raise _nothing_usable(len(shards), seen, selection)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [index for index in indexes if index is not None]


def _report_damaged(indexes: dict[Path, Index]) -> None:
    """Prints damaged shards; raises `GlideError` if because of damage nothing is left of any shard."""
    damaged = [
        f"{shard}: {index.damage}, {len(index.rows)} samples before it"
        for shard, index in indexes.items()
        if index.damage
    ]
    if not damaged:
        return
    if len(damaged) == len(indexes) and not any(len(index.rows) for index in indexes.values()):
        kinds = {index.damage for index in indexes.values()}
        remedy = _REMEDIES.get(kinds.pop(), "") if len(kinds) == 1 else ""
        raise GlideError(f"all {len(indexes)} shards are invalid ({damaged[0]}); {remedy or 'copy them again'}")
    more = [f"and {len(damaged) - _LISTED} more"] if len(damaged) > _LISTED else []
    header = f"{len(damaged)} of {len(indexes)} shards are damaged and left out from there on:"
    print(header, *damaged[:_LISTED], *more, sep="\n  ", file=sys.stderr)


def _nothing_usable(shards: int, counts: Counter[str], selection: Selection) -> GlideError:
    advice = selection.filters.advice(counts) or "; see data.preset, data.image_key, data.caption_key and data.filters"
    return GlideError(f"no usable sample in {shards} shards ({listed(counts) or 'they are empty'}){advice}")
