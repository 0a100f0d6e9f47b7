import io
import os
import shutil
import subprocess
import tarfile

import pytest

from glide_jax.data.config import DataConfig
from glide_jax.data.tar import SPARSE, scan_tar
from glide_jax.data.webdataset import WebDataset

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
