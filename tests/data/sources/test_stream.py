import gzip
import http.server
import io
import itertools
import json
import os
import shutil
import tarfile
import threading
import time
from functools import partial

import numpy as np
import pytest

from glide_jax.data.config import DataConfig, FilterConfig
from glide_jax.data.loader import fixed_examples, open_data
from glide_jax.data.shards.patterns import find_streams
from glide_jax.data.source import Share
from glide_jax.data.sources.stream import ShardStream
from glide_jax.errors import GlideError

SHAPES = {"image_size": 8, "text_ctx": 6}


@pytest.fixture
def piped(numbered_shards):
    return f"pipe:cat {numbered_shards}"


@pytest.fixture
def open_stream():
    """Opens a stream; what it opened is closed at the end."""
    opened = []

    def open_stream(path, batch_size=10, position=0, processes=(0, 1), **options):
        config = DataConfig(source="stream", path=path, **{"workers": 2, "shuffle_buffer": 20} | options)
        stream = open_data(
            config, **SHAPES, batch_size=batch_size, seed=0, position=position,
            process_index=processes[0], process_count=processes[1],
        )  # fmt: skip
        opened.append(stream)
        return stream

    yield open_stream
    for stream in opened:
        stream.close()


def numbers(stream, batches):
    found = []
    for batch in itertools.islice(stream, batches):
        here = [int(caption.removeprefix("number ")) for caption in batch.captions]
        np.testing.assert_array_equal(batch.arrays["image"][:, 3, 3], [(i, 255 - i, 7) for i in here])
        found += here
    return found


def test_commands_are_read_without_end(open_stream, piped):
    stream = open_stream(piped)
    assert set(numbers(stream, 20)) == set(range(37))
    assert (stream.position, stream.epoch, stream.examples_per_epoch) == (200, 0.0, 0)
    np.testing.assert_array_equal(next(stream).arrays["index"], 200 + np.arange(10))


def test_neighbours_are_parted_within_the_buffer(open_stream, piped):
    def mean_step(shuffle_buffer):  # by one thread: several change the order a little as well
        found = numbers(open_stream(piped, workers=1, shuffle_buffer=shuffle_buffer), 12)
        return np.abs(np.diff(found)).mean()

    assert mean_step(1) < 3
    assert mean_step(5) > 4
    assert mean_step(20) > 8


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads URLs with curl, which is not installed")
def test_shards_are_read_from_a_web_server(open_stream, numbered_shards, tmp_path):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        stream = open_stream(numbered_shards.replace(str(tmp_path), host))
        assert set(numbers(stream, 15)) == set(range(37))
        stream.close()
        gone = open_stream(f"{host}/none.tar", batch_size=1)
        with pytest.raises(GlideError, match=r"no usable sample in a pass over 1 shards \(unreadable shard: 1\)"):
            next(gone)
        server.shutdown()


def test_a_resumed_run_starts_another_pass(open_stream, numbered_shards):
    firsts = {tuple(numbers(open_stream(numbered_shards, position=position, workers=1), 1)) for position in (0, 50, 90)}
    assert len(firsts) == 3


def test_processes_read_shards_of_their_own(open_stream, piped):
    found = [set(numbers(open_stream(piped, batch_size=12, processes=(p, 3)), 10)) for p in range(3)]
    assert found == [set(range(10)), set(range(10, 25)), set(range(25, 37))]
    with pytest.raises(GlideError, match="3 shards cannot be shared by 4 processes"):
        open_stream(piped, batch_size=8, processes=(0, 4))


def test_keys_filters_and_lines_are_those_of_indexed_shards(write_shard, numbered, tmp_path):
    samples = [numbered(i, json={"similarity": i / 10}) for i in range(10)]
    path = str(write_shard("a.tar", [*samples, {"txt": "no image"}]))
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"key": f"a-{i:05d}", "caption": f"line {i}"}) + "\n" for i in range(8)))
    config = DataConfig(
        path=path, preset="datacomp-synthetic", captions_jsonl=str(lines), shuffle_buffer=1,
        filters=FilterConfig(min_similarity=0.5),
    )  # fmt: skip
    stream = ShardStream(config)
    assert [stream[0].captions for _ in range(6)] == [(f"line {i}",) for i in (5, 6, 7)] * 2
    stream.close()
    assert {"similarity", "missing caption", "missing image"} == set(stream.counts)


def test_compressed_shards_can_be_streamed(open_stream, tmp_path, numbered_shards):
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "set-000.tar").read_bytes()))
    assert set(numbers(open_stream(str(packed)), 3)) == set(range(10))


def test_faulty_shards_and_samples_are_counted_and_passed_over(open_stream, tmp_path, write_shard, numbered, piped):
    write_shard("bad.tar", [numbered(40) | {"png": b"damaged"}, numbered(41) | {"txt": b"\xff"}])
    os.truncate(tmp_path / "set-001.tar", 9000)
    stream = open_stream(f"{piped}::pipe:exit 3::{tmp_path}/bad.tar", bad_share=0.9)
    found = set(numbers(stream, 20))
    assert {*range(10), *range(25, 37)} < found <= set(range(37))
    report = stream.report()
    for reason in ("unreadable shard", "truncated shard", "corrupt image", "caption is not UTF-8"):
        assert report[reason] >= 2


def test_nothing_readable_ends_with_the_counts(open_stream):
    with pytest.raises(GlideError, match=r"no usable sample in a pass over 2 shards \(unreadable shard: 3\)"):
        next(open_stream("pipe:exit 1::pipe:exit 2"))


def test_one_shard_with_samples_among_empty_ones_is_found_from_any_start(write_shard, numbered, tmp_path):
    for name in ("empty-0.tar", "empty-1.tar"):
        write_shard(name, [])
    write_shard("full.tar", [numbered(0)])
    config = DataConfig(source="stream", path=str(tmp_path), shuffle_buffer=1)
    for position in range(20):
        stream = ShardStream(config, Share(position=position))
        assert stream[0].captions == ("number 0",)
        stream.close()


def test_a_command_that_hangs_raises_within_the_stated_time(open_stream):
    begun = time.monotonic()
    with pytest.raises(GlideError, match=r"no batch for 0\.3 s"):
        next(open_stream("pipe:exec sleep 5", stall_seconds=0.3))
    assert time.monotonic() - begun < 4


def test_closing_ends_the_reader(open_stream, piped):
    before = set(threading.enumerate())
    stream = open_stream(piped)
    next(stream)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 3
    stream.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def test_fixed_examples_are_the_first_that_come(piped):
    batch = fixed_examples(DataConfig(source="stream", path=piped, workers=1, crop="random", uncond_p=1.0), 5, **SHAPES)
    first = int(batch.captions[0].removeprefix("number "))
    assert first in (0, 10, 25)  # of a shard
    assert batch.captions == [f"number {first + i}" for i in range(5)]
    assert batch.arrays["mask"].any(axis=1).all()


def test_lists_mix_commands_and_files(tmp_path):
    (tmp_path / "a.tar").touch()
    (tmp_path / "list.txt").write_text("pipe:cat {0..1}.tar\na.tar\nhttps://host/{a,b}.tar\n")
    expected = ["pipe:cat 0.tar", "pipe:cat 1.tar", f"{tmp_path}/a.tar", "https://host/a.tar", "https://host/b.tar"]
    assert find_streams(str(tmp_path / "list.txt")) == expected


def test_members_of_neighbouring_samples_may_be_mixed(open_stream, tmp_path, numbered):
    path = tmp_path / "mixed.tar"
    with tarfile.open(path, "w") as tar:
        for ending in ("png", "txt"):
            for i in range(20):
                content = numbered(i)[ending]
                content = content.encode() if isinstance(content, str) else content
                info = tarfile.TarInfo(f"{i}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    assert set(numbers(open_stream(str(path)), 8)) == set(range(20))
