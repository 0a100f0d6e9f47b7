import bz2
import gzip
import lzma
import os
import tarfile
import threading
from dataclasses import asdict

import pytest

from glide_jax.data.config import DataConfig, FilterConfig
from glide_jax.data.shards import index as shard_index
from glide_jax.data.shards.index import Selection, index_shard
from glide_jax.data.source import BadSample, Unavailable
from glide_jax.data.sources import webdataset as ours
from glide_jax.data.sources.webdataset import WebDataset
from glide_jax.errors import GlideError


def test_samples_are_read_in_any_order(numbered_shards, numbered):
    source = WebDataset(DataConfig(path=numbered_shards))
    assert len(source) == 37
    for i in (36, 0, 9, 10, 24, 25):
        assert source[i] == (numbered(i)["png"], (f"number {i}",))
    assert not source.counts


def test_keys_choose_the_members(write_shard):
    both = {"JPG": b"jpg", "png": b"png", "txt": "text", "caption.txt": "other"}
    path = str(write_shard("a.tar", [both, {"png": b"png", "txt": "text"}]))
    assert [sample.image for sample in WebDataset(DataConfig(path=path))] == [b"jpg", b"png"]
    preferred = WebDataset(DataConfig(path=path, image_key="png;jpg", caption_key="caption.txt;txt"))
    assert list(preferred) == [(b"png", ("other",)), (b"png", ("text",))]


def test_incomplete_samples_are_left_out_and_counted(write_shard):
    path = write_shard(
        "a.tar",
        [
            {"png": b"0", "txt": "good"},
            {"png": b"1"},
            {"txt": "no image"},
            {"png": b"3", "txt": b""},
            {"png": b"", "txt": "four"},
        ],
    )
    source = WebDataset(DataConfig(path=str(path)))
    assert [sample.captions for sample in source] == [("good",)]
    assert source.counts == {"missing caption": 1, "missing image": 1, "empty caption": 1, "empty image": 1}


@pytest.mark.parametrize(("caption", "reason"), [(b" \n\t ", "empty caption"), (b"\xff\xfe", "caption is not UTF-8")])
def test_unusable_captions_are_bad_samples_when_read(write_shard, caption, reason):
    source = WebDataset(DataConfig(path=str(write_shard("a.tar", [{"png": b"0", "txt": caption}]))))
    with pytest.raises(BadSample, match=f"^{reason}$"):
        source[0]


def test_filters_read_the_metadata(write_shard):
    sizes = [(512, 512), (100, 512), (512, 512), (2000, 500)]
    samples = [
        {"png": b"0", "txt": f"{i}", "json": {"original_width": width, "original_height": height}}
        for i, (width, height) in enumerate(sizes)
    ]
    del samples[2]["json"]
    filters = FilterConfig(min_size=256, max_aspect=2.0)
    source = WebDataset(DataConfig(path=str(write_shard("a.tar", samples)), filters=filters))
    assert [sample.captions for sample in source] == [("0",)]
    # Without metadata the image itself is measured.
    assert source.counts == {"too small": 1, "corrupt image": 1, "aspect ratio": 1}


def test_nothing_passing_stops_with_the_counts(write_shard):
    samples = [{"png": b"0", "txt": "a", "json": {"similarity": s}} for s in (0.1, 0.2, None)]
    config = DataConfig(
        path=str(write_shard("a.tar", samples)), filters=FilterConfig(min_similarity=0.5, max_similarity=0.9)
    )
    bounds = [rf"--config\.data\.filters\.{bound} \(now {value}\)" for bound, value in asdict(config.filters).items()
              if bound in config.filters.changed]  # fmt: skip
    said = rf"no usable sample in 1 shards \(similarity: 2, missing metadata: 1\); change {', '.join(bounds)}$"
    with pytest.raises(GlideError, match=said):
        WebDataset(config)


def spoil(shard, how, whole_samples=0):
    if how == "truncated shard":
        with tarfile.open(shard) as tar:
            os.truncate(shard, tar.getmembers()[2 * whole_samples].offset_data + 1)
    elif how == "Parquet file":
        shard.write_bytes(b"PAR1" * 200)
    elif how == "unreadable shard":
        shard.write_bytes(b"<html>503</html>" * 100)
    else:
        shard.write_bytes(gzip.compress(shard.read_bytes()))


FAULTS = ["truncated shard", "unreadable shard", "compressed shard", "Parquet file"]


@pytest.mark.parametrize("how", FAULTS)
def test_a_damaged_shard_is_named_and_left_out(numbered_shards, tmp_path, capfd, how):
    spoil(tmp_path / "set-001.tar", how, whole_samples=7)
    for _ in range(2):  # checked, then from the cache
        source = WebDataset(DataConfig(path=numbered_shards))
        kept = 7 if how == "truncated shard" else 0  # before the cut
        numbers = [*range(10), *range(10, 10 + kept), *range(25, 37)]
        assert [source[i].captions for i in range(len(source))] == [(f"number {i}",) for i in numbers]
        assert source.counts[how] == 1
        line = f"1 of 3 shards are damaged and left out from there on:\n  {tmp_path}/set-001.tar: {how}, {kept} samples"
        assert line in capfd.readouterr().err


@pytest.mark.parametrize("how", FAULTS)
def test_only_invalid_shards_are_an_error(write_shard, numbered, tmp_path, how):
    spoil(write_shard("a.tar", [numbered(i) for i in range(9)]), how)
    remedy = {"compressed shard": "decompress them", "Parquet file": "shards are tar files"}.get(how, "copy them again")
    with pytest.raises(GlideError, match=rf"all 1 shards are invalid \(.*a\.tar: {how}, 0 samples .*; {remedy}"):
        WebDataset(DataConfig(path=str(tmp_path / "a.tar")))


@pytest.mark.parametrize("packed", [gzip, bz2, lzma])
def test_compressed_shards_are_told_from_damaged_ones(write_shard, numbered, packed):
    path = write_shard("a.tar", [numbered(0)])
    path.write_bytes(packed.compress(path.read_bytes()))
    assert index_shard(path, Selection(DataConfig())).damage == "compressed shard"


@pytest.mark.parametrize("error", [OSError("Input/output error"), Unavailable("missing shard")])
def test_a_shard_that_cannot_be_read_now_is_read_the_next_time(numbered_shards, monkeypatch, capfd, error):
    scan = shard_index.scan_tar

    def away(path):
        if path.name == "set-001.tar":
            raise error
        return scan(path)

    with monkeypatch.context() as patch:
        patch.setattr(shard_index, "scan_tar", away)
        assert len(WebDataset(DataConfig(path=numbered_shards))) == 22
    assert "set-001.tar: unreadable shard, 0 samples before it" in capfd.readouterr().err
    assert len(WebDataset(DataConfig(path=numbered_shards))) == 37


def test_a_repaired_shard_is_back(numbered_shards, tmp_path):
    shard = tmp_path / "set-001.tar"
    whole = shard.read_bytes()
    spoil(shard, "truncated shard")
    assert len(WebDataset(DataConfig(path=numbered_shards))) == 22
    shard.write_bytes(whole)
    assert len(WebDataset(DataConfig(path=numbered_shards))) == 37


def test_a_search_in_which_nothing_passes_ends_early(write_shard, tmp_path, monkeypatch):
    scans, given_up = [], threading.Event()

    def scan(path, selection):  # two shards at once, the third only when the search is given up
        scans.append(path)
        assert len(scans) <= 2 or given_up.wait(timeout=60)
        return index_shard(path, selection)

    def nothing_usable(*arguments):
        given_up.set()
        return error(*arguments)

    error = ours._nothing_usable
    monkeypatch.setattr(ours, "_GIVE_UP_AFTER", 6)
    monkeypatch.setattr(ours, "index_shard", scan)
    monkeypatch.setattr(ours, "_nothing_usable", nothing_usable)
    for shard in range(50):
        write_shard(f"{shard}.tar", [{"png": b"0", "txt": "a", "json": {"similarity": 0.1}}] * 3)
    config = DataConfig(path=str(tmp_path), workers=1, filters=FilterConfig(min_similarity=0.5))
    with pytest.raises(GlideError, match=r"no usable sample in 50 shards \(similarity: 6\)"):
        WebDataset(config)
    assert len(scans) < 50


def test_a_missing_shard_is_named(numbered_shards, tmp_path):
    (tmp_path / "set-001.tar").unlink()
    with pytest.raises(GlideError, match=r"shard .*set-001\.tar does not exist"):
        WebDataset(DataConfig(path=numbered_shards))


def test_a_shard_that_vanishes_or_shrinks_makes_bad_samples(numbered_shards, tmp_path):
    source = WebDataset(DataConfig(path=numbered_shards))
    (tmp_path / "set-000.tar").unlink()
    os.truncate(tmp_path / "set-001.tar", 600)
    for index, reason in ((0, "missing shard"), (12, "changed shard")):
        with pytest.raises(BadSample, match=f"^{reason}$"):
            source[index]
    assert source[30].captions == ("number 30",)


@pytest.fixture
def scans(monkeypatch):
    """The shards that are really scanned, not taken from the cache."""
    scanned = []
    scan = shard_index.scan_tar
    monkeypatch.setattr(shard_index, "scan_tar", lambda path: scanned.append(path.name) or scan(path))
    return scanned


def test_the_index_is_cached_until_a_shard_changes(numbered_shards, tmp_path, write_shard, numbered, scans):
    config = DataConfig(path=numbered_shards)
    first = WebDataset(config)
    assert sorted(scans) == ["set-000.tar", "set-001.tar", "set-002.tar"]
    scans.clear()
    again = WebDataset(config)
    assert not scans
    assert [again[i] for i in (0, 36)] == [first[i] for i in (0, 36)]

    write_shard("set-001.tar", [numbered(99)])
    assert len(WebDataset(config)) == 10 + 1 + 12
    assert scans == ["set-001.tar"]
    scans.clear()
    stat = (tmp_path / "set-000.tar").stat()
    os.utime(tmp_path / "set-000.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    WebDataset(config)
    assert scans == ["set-000.tar"]


def test_revalidation_trusts_no_cache(numbered_shards, scans):
    WebDataset(DataConfig(path=numbered_shards))
    scans.clear()
    WebDataset(DataConfig(path=numbered_shards, revalidate=True))
    assert len(scans) == 3


def test_another_selection_has_its_own_index(numbered_shards, scans):
    WebDataset(DataConfig(path=numbered_shards))
    scans.clear()
    with pytest.raises(GlideError, match="missing caption: 37"):
        WebDataset(DataConfig(path=numbered_shards, caption_key="caption"))
    with pytest.raises(GlideError, match="too small: 37"):
        WebDataset(DataConfig(path=numbered_shards, filters=FilterConfig(min_size=17)))
    assert len(scans) == 6


def test_counts_come_back_from_the_cache(write_shard):
    config = DataConfig(path=str(write_shard("a.tar", [{"png": b"0", "txt": "good"}, {"png": b"1"}])))
    assert WebDataset(config).counts == WebDataset(config).counts == {"missing caption": 1}


def test_a_damaged_cache_file_is_replaced(numbered_shards, cache_folder, scans):
    config = DataConfig(path=numbered_shards)
    WebDataset(config)
    for i, file in enumerate(sorted(cache_folder.rglob("*.npz"))):
        file.write_bytes((b"", b"PK\x03\x04 cut", file.read_bytes()[:200])[i])
    scans.clear()
    assert len(WebDataset(config)) == 37
    assert len(scans) == 3
    WebDataset(config)
    assert len(scans) == 3


def test_a_cache_that_cannot_be_written_is_reported_not_fatal(numbered_shards, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GLIDE_JAX_CACHE", str(tmp_path / "file"))
    source = WebDataset(DataConfig(path=numbered_shards))
    assert len(source) == 37
    assert source.counts == {"index not cached": 3}


def test_many_shards_are_indexed_in_parallel_and_kept_in_order(write_shard, tmp_path, capfd):
    for shard in range(12):
        write_shard(f"{shard:02d}.tar", [{"png": b"0", "txt": f"{shard}"}])
    source = WebDataset(DataConfig(path=str(tmp_path)))
    assert [sample.captions for sample in source] == [(str(shard),) for shard in range(12)]
    assert "checking shards 12/12" in capfd.readouterr().err


def test_a_shard_rewritten_in_another_order_gives_no_wrong_pair(write_shard, numbered):
    path = write_shard("a.tar", [numbered(i) for i in range(9)])
    source = WebDataset(DataConfig(path=str(path)))
    assert source[3].captions == ("number 3",)
    write_shard("a.tar", [numbered(i) for i in reversed(range(9))])
    for index in range(9):
        with pytest.raises(BadSample, match="changed shard"):
            source[index]
