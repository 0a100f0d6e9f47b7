import io
import os
import resource
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from glide_jax.data.config import DataConfig
from glide_jax.data.shards.tar import SPARSE, scan_tar
from glide_jax.data.sources.webdataset import WebDataset

LONG = "folder/" * 20 + "name.txt"
CONTENTS = {
    "000.jpg": b"x" * 1000,
    "000.txt": b"",
    "ünïcode.txt": b"a caption",
    "p" * 90 + "/" + "q" * 90 + ".json": b"{}",
    LONG: b"y" * 512,
    "last.png": b"z",
}


def write(path, tar_format, contents=CONTENTS):
    with tarfile.open(path, "w", format=tar_format) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1234.5 if tar_format == tarfile.PAX_FORMAT else 1234
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname, link.size = tarfile.LNKTYPE, "000.txt", 5000  # a size, but no data
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("after.txt"))
    return path


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(tmp_path, tar_format):
    contents = dict(CONTENTS)
    if tar_format == tarfile.USTAR_FORMAT:
        contents.pop(LONG)
        contents["folder/" * 15 + "name.txt"] = b"prefix and name"
    path = write(tmp_path / "a.tar", tar_format, contents)
    members, damage = scan_tar(path)
    assert damage is None
    with tarfile.open(path) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar.getmembers() if info.isreg()]
    assert [tuple(member) for member in members] == expected
    data = path.read_bytes()
    assert {name: data[at : at + size] for name, at, size in members} == contents | {"after.txt": b""}


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_sizes_beyond_the_octal_field_are_read(tmp_path, tar_format):
    path = tmp_path / "huge.tar"
    info = tarfile.TarInfo("huge.bin")
    info.size = 9 * 2**30
    header = info.tobuf(tar_format)
    path.write_bytes(header)
    os.truncate(path, len(header) + info.size + 1024)
    assert scan_tar(path) == ([("huge.bin", len(header), info.size)], None)


def test_every_cut_keeps_the_members_before_it(tmp_path):
    whole = write(tmp_path / "whole.tar", tarfile.PAX_FORMAT)
    members, _ = scan_tar(whole)
    data = whole.read_bytes()
    cut = tmp_path / "cut.tar"
    for length in range(0, members[-1].offset + 512, 100):
        cut.write_bytes(data[:length])
        kept, damage = scan_tar(cut)
        assert damage == "truncated shard"
        assert kept == [member for member in members if member.offset + member.size <= length]


def test_a_damaged_header_ends_the_shard(tmp_path):
    path = write(tmp_path / "a.tar", tarfile.GNU_FORMAT)
    members, _ = scan_tar(path)
    data = bytearray(path.read_bytes())
    data[members[2].offset - 512] ^= 1
    path.write_bytes(data)
    assert scan_tar(path) == (members[:2], "unreadable shard")


def test_a_file_that_is_no_tar_is_unreadable(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"<html>not found</html>" * 100)
    assert scan_tar(path) == ([], "unreadable shard")


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("form", ["gnu", "posix"])
@pytest.mark.parametrize("holes", [1, 40])  # more than four need blocks of their own in GNU's form
def test_sparse_members_are_named_and_read_past(tmp_path, form, holes):
    with (tmp_path / "1.png").open("wb") as file:
        for number in range(holes):
            file.seek(2**16 * (number + 1))
            file.write(b"data")
        file.truncate(2**16 * (holes + 2))
    for name, content in {"0.png": b"zero", "0.txt": b"0", "1.txt": b"1", "2.png": b"two", "2.txt": b"2"}.items():
        (tmp_path / name).write_bytes(content)
    names = ["0.png", "0.txt", "1.png", "1.txt", "2.png", "2.txt"]
    packing = ["tar", "-S", f"--format={form}", "-cf", "a.tar", *names]
    done = subprocess.run(packing, cwd=tmp_path, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this tar does not write sparse members")
    members, damage = scan_tar(tmp_path / "a.tar")
    assert damage is None
    assert [(member.name, member.size == SPARSE) for member in members] == [(name, name == "1.png") for name in names]
    source = WebDataset(DataConfig(path=str(tmp_path / "a.tar")))
    assert [(sample.image, sample.captions) for sample in source] == [(b"zero", ("0",)), (b"two", ("2",))]
    assert source.counts == {"sparse member": 1}


def header(name, size=b"0" * 11 + b"\0", kind=b"0"):
    """A header with a valid checksum, whatever it says."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(records):
    return header("pax", b"%011o\0" % len(records), b"x") + records.ljust(-(-len(records) // 512) * 512, b"\0")


def plain(name, content):
    return header(name, b"%011o\0" % len(content)) + content.ljust(512, b"\0")


GOOD = plain("0.png", b"good") + plain("0.txt", b"0")


@pytest.mark.parametrize(
    "damaged",
    [
        header("a.png", b"-1000".ljust(12, b"\0")), header("a.png", b"\xff" * 12), header("a.png", b"12345678x\0\0\0"),
        pax(b"17 size=-10000\n") + header("a.png"), pax(b"12 size=abc\n") + header("a.png"),
        pax(b"5011 size=" + b"9" * 5000 + b"\n") + header("a.png"), pax(b"12") + header("a.png"),
        pax(b"-5 a=b\n") + header("a.png"), pax(b"999 a=b\n") + header("a.png"), pax(b"x y=z\n") + header("a.png"),
        header("long", b"%011o\0" % (2**30), b"L"),
    ],
    ids=["negative", "negative binary", "no number", "negative PAX", "PAX letters", "PAX digits", "PAX without blank",
         "PAX backwards", "PAX beyond", "PAX no length", "a long name"],
)  # fmt: skip
def test_sizes_that_make_no_sense_end_the_shard(tmp_path, damaged):
    path = tmp_path / "a.tar"
    path.write_bytes(GOOD + damaged + bytes(1024))
    os.truncate(path, 2**31)  # so that nothing is beyond the end; it takes no room on the disk
    members, damage = scan_tar(path)
    assert [member.name for member in members] == ["0.png", "0.txt"]
    assert damage in ("unreadable shard", "truncated shard")
    source = WebDataset(DataConfig(path=str(path)))
    assert source[0].captions == ("0",)


def test_a_member_of_five_gigabytes_is_one_sample_lost(tmp_path):
    path, size = tmp_path / "a.tar", 5 * 2**30
    with path.open("wb") as file:
        file.write(GOOD + header("1.png", b"\x80" + size.to_bytes(11, "big")))
        file.seek(size, os.SEEK_CUR)
        file.write(plain("1.txt", b"1") + plain("2.png", b"more") + plain("2.txt", b"2") + bytes(1024))
    assert ("1.png", size) in [(member.name, member.size) for member in scan_tar(path)[0]]
    source = WebDataset(DataConfig(path=str(path)))
    assert [sample.captions for sample in source] == [("0",), ("2",)]
    assert source.counts == {"file too large": 1}


@pytest.fixture
def little_memory():
    """A gigabyte more than is in use."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_mutated_shards_of_valid_checksums_are_members_or_damage(tmp_path, little_memory):
    """500 of them, in seconds and little memory."""
    original = write(tmp_path / "whole.tar", tarfile.PAX_FORMAT).read_bytes()
    whole, _ = scan_tar(tmp_path / "whole.tar")
    headers = [at for at in range(0, len(original), 512) if original[at + 257 : at + 262] == b"ustar"]
    random, path, begun = np.random.default_rng(0), tmp_path / "a.tar", time.monotonic()
    verdicts = set()
    for _ in range(500):
        data, at = bytearray(original), int(random.choice(headers))
        for byte in random.choice([*range(100), *range(124, 136), 156, *range(345, 500)], size=random.integers(1, 6)):
            data[at + int(byte)] = random.choice([0, 45, 48, 49, 55, 57, 76, 120, 103, 83, 128, 255])
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        path.write_bytes(data)
        members, damage = scan_tar(path)
        verdicts.add(damage)
        assert len(members) <= len(whole) + 2
        for member in members:
            assert member.size == SPARSE or 0 <= member.offset <= member.offset + member.size <= len(data)
    assert verdicts == {None, "truncated shard", "unreadable shard"}
    assert time.monotonic() - begun < 20
