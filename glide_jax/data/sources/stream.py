"""Shards that can only be read from front to end: `pipe:COMMAND`, URLs, and files too slow to index.

The guarantees are weaker than for an indexed set. Which sample becomes which example depends on timing, and a resumed
run starts another shuffled pass over the shards, so that in that pass some samples come twice and others not at all.
Each process reads its own shards. Crops, flips and dropped captions are still keyed by the example.
"""

import queue
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from typing import IO

from glide_jax.data.config import DataConfig
from glide_jax.data.order import Order, generator
from glide_jax.data.shards.index import Selection, key_and_ending, select
from glide_jax.data.shards.patterns import find_streams
from glide_jax.data.shards.spans import MOST_BYTES, Span
from glide_jax.data.shards.tar import Member
from glide_jax.data.source import WHOLE, BadSample, Part, Sample, Share, Source, listed
from glide_jax.errors import GlideError

_AHEAD = 64  # samples buffered between the reader and the decoding threads
_OPEN = 32  # samples whose members may be interleaved


class ShardStream(Source):
    """The samples of this process's shards, shuffled by shard and in a buffer, endlessly.

    Args:
        config: shards, members, filters and `shuffle_buffer`.
        share: seed and position key the order of the shards and the choices from the buffer; every `process_count`-th
            shard belongs to this process.

    Raises:
        GlideError: there are fewer shards than processes; later, from `[...]`, a whole pass gave no sample.
    """

    resumable = False
    indexed = "webdataset"

    def __init__(self, config: DataConfig, share: Share = WHOLE) -> None:
        shards, processes = find_streams(config.path), share.process_count
        if len(shards) < processes:
            raise GlideError(f"{len(shards)} shards cannot be shared by {processes} processes; give more shards")
        self.counts: Counter[str] = Counter()
        self._shards, self._selection = shards[share.process_index :: processes], Selection(config)
        self._samples: queue.Queue[Sample | GlideError] = queue.Queue(_AHEAD)
        self._told = False
        self._closed = threading.Event()
        read = partial(self._read, config.shuffle_buffer, share.seed, share.position)
        threading.Thread(target=read, name="data-stream", daemon=True).start()

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Sample:
        sample = self._samples.get()
        if isinstance(sample, GlideError):
            self._samples.put(sample)  # for the other threads
            raise sample
        return sample

    def parts(self) -> list[Part]:
        """None: the samples have no numbers."""
        return []

    def close(self) -> None:
        """Ends the reader, and all waits for a sample."""
        self._closed.set()
        with suppress(queue.Empty):
            while True:
                self._samples.get_nowait()
        self._samples.put(GlideError("the stream is closed"))

    def _read(self, buffer_size: int, seed: int, position: int) -> None:
        """The reader's thread."""
        rng, buffer = generator(seed, "buffer", position), list[Sample]()
        try:
            for sample in self._endless(seed, position):
                buffer.append(sample)
                if len(buffer) >= buffer_size:
                    at = int(rng.integers(len(buffer)))
                    buffer[at], buffer[-1] = buffer[-1], buffer[at]
                    if not self._put(buffer.pop()):
                        return
        except GlideError as error:
            self._put(error)

    def _endless(self, seed: int, position: int) -> Iterator[Sample]:
        order = Order(len(self._shards), seed)
        start = int(generator(seed, "stream", position).integers(2**40))
        barren = 0  # shards in a row that gave no sample
        for number in count(start):
            shard = self._shards[order[number]]
            barren += 1
            try:
                for sample in self._samples_of(shard):
                    barren = 0
                    yield sample
            except Exception as error:  # servers, commands and damaged tars raise nearly anything
                self.counts["truncated shard" if isinstance(error, tarfile.TarError) else "unreadable shard"] += 1
            if barren >= 2 * len(self._shards) - 1:  # so many hold a whole epoch, wherever they begin
                raise GlideError(f"no usable sample in a pass over {len(self._shards)} shards ({listed(self.counts)})")

    def _samples_of(self, shard: str) -> Iterator[Sample]:
        from webdataset.gopen import gopen  # noqa: PLC0415 (imports torch where there is one, which takes seconds)

        with gopen(shard) as file:
            for key, members, data in _grouped(file):
                try:
                    yield self._sample(key, members, data)
                except BadSample as bad:
                    self.counts[str(bad)] += 1
            while file.read(2**20):  # past the end mark, so that a command ends by itself and its exit code is known
                pass

    def _sample(self, key: str, members: dict[str, Member], data: bytes) -> Sample:
        def content(span: Span) -> bytes:
            return data[span.offset : span.offset + span.size]

        found = select(key, members, content, self._selection)
        if found.unlabelled and not self._told:
            self._told = True
            print("samples without an NSFW label pass data.filters.nsfw_labels", file=sys.stderr)
        return Sample(content(found.image), found.caption.captions())

    def _put(self, item: Sample | GlideError) -> bool:
        while not self._closed.is_set():
            with suppress(queue.Full):
                self._samples.put(item, timeout=0.1)
                return True
        return False


def _grouped(file: IO[bytes]) -> Iterator[tuple[str, dict[str, Member], bytes]]:
    """Members with the same key, by ending, with positions in their joined bytes.

    They need not be adjacent: a sample is complete when `_OPEN` others have had a member since its last one. The sample
    before damage in a tar may lack members, so it is dropped before the error is raised.
    """
    samples: dict[str, tuple[dict[str, Member], bytearray]] = {}  # in order of their last members
    damage = None
    try:
        for key, ending, content in _members(file):
            members, data = samples[key] = samples.pop(key, ({}, bytearray()))
            members.setdefault(ending, Member(f"{key}.{ending}", len(data), len(content)))
            data += content
            if len(samples) > _OPEN:
                oldest = next(iter(samples))
                members, data = samples.pop(oldest)
                yield oldest, members, bytes(data)
    except Exception as error:
        damage = error
        if samples:
            samples.popitem()
    for key, (members, data) in samples.items():
        yield key, members, bytes(data)
    if damage is not None:
        raise damage


def _members(file: IO[bytes]) -> Iterator[tuple[str, str, bytes]]:
    """Key, ending and content of the members of a tar."""
    with tarfile.open(fileobj=file, mode="r|*") as tar:
        for info in tar:
            parts = key_and_ending(info.name) if info.isreg() else None
            if parts is not None and (content := tar.extractfile(info)) is not None:
                # A compressed tar may claim and contain any number of bytes; one byte above the limit shows that it
                # did.
                yield *parts, content.read(MOST_BYTES + 1) if info.size > MOST_BYTES else content.read()
            tar.members = []  # type: ignore[attr-defined]  # it would pile them up
