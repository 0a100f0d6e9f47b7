"""What is saved under a checkpoint's name is read by its content, or refused in one line: other files, hostile ones."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from convert import file_check
from convert.cli import main
from convert.download import open_source
from convert.file_check import SAFETENSORS, TORCH, file_kind
from convert.state_dict import read_state_dict, write_tensors
from glide_jax.errors import GlideError
from tests.convert.state_dicts import architecture, assert_same_state_dict, state_dict
from tests.programs import call

pytestmark = pytest.mark.usefixtures("torch")

HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1540000000\n"


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return file.getvalue()


def tarred(name):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return file.getvalue()


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


OTHERS = {
    "empty": (b"", "an empty file"),
    "html": (HTML, "an HTML page"),
    "html after a byte-order mark": (b"\xef\xbb\xbf\r\n  " + HTML.lower(), "an HTML page"),
    "html of another encoding": (b"<!-- caf\xe9 -->\n<html lang=fr>", "an HTML page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>BlobNotFound</Code></Error>', "an XML document"),
    "git-lfs pointer": (POINTER, "a git-lfs pointer"),
    "json": (b'{"error": "Repository not found"}', "a JSON file"),
    "long json": (b'{"weight_map": {' + b'"a": "b",' * 100, "a JSON file"),
    "text": (b"Entry not found\nat all", "a text file ('Entry not found')"),
    "text cut inside a character": (b"a" * 511 + "é".encode(), f"a text file ('{'a' * 60}')"),
    "gzip": (gzip.compress(b"content"), "a gzip archive"),
    "tar": (tarred("base.pt"), "a tar archive"),
    "zip": (zipped("base.pt"), "a zip archive of 'base.pt'"),
    "zip of many": (zipped(*"abcd"), "a zip archive of 'a', 'b', 'c', ..."),
    "zip of an odd name": (zipped("a\nb"), r"a zip archive of 'a\nb'"),
    "zip of nothing": (zipped(), "a zip archive of nothing"),
    "torchscript": (zipped("m/data.pkl", "m/constants.pkl", "m/code/a.py"), "a TorchScript program"),
    "numpy": (saved(np.ones(3)), "a NumPy array"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(8), "an HDF5 file"),
    "something else": (b"\x00\x01\x02\xff" * 4, "something else (its first bytes are 00 01 02 ff 00 01 02 ff)"),
    "safetensors cut in its size": (b"\x10\0\0\0", "something else (its first bytes are 10 00 00 00)"),
}


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(("content", "what"), OTHERS.values(), ids=OTHERS)
def test_what_is_no_checkpoint_is_named(tmp_path, content, what, suffix, torch):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(content)
    with pytest.raises(GlideError) as caught:
        read_state_dict(path)
    assert str(caught.value).startswith(f"{path} is {what}, not a PyTorch or safetensors file: ")
    assert "\n" not in str(caught.value)


def test_the_error_says_what_to_do(tmp_path):
    for content, advice in ((POINTER, "git lfs pull"), (zipped("a.pt"), "unpack it"), (b"", "copy it again")):
        (tmp_path / "model.pt").write_bytes(content)
        with pytest.raises(GlideError, match=advice):
            file_kind(tmp_path / "model.pt")


@pytest.mark.parametrize("start", [b"\x80\x02", b"PK", b"\x1f\x8b", b"BZh", b"7z"])
def test_the_size_of_a_safetensors_header_may_look_like_anything(tmp_path, start):
    (tmp_path / "model.pt").write_bytes(start.ljust(8, b"\0") + b'{"a":')
    assert file_kind(tmp_path / "model.pt") == SAFETENSORS


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "model.bin", "model.pth.tar", "model"])
@pytest.mark.parametrize("kind", [TORCH, SAFETENSORS, "legacy"])
def test_checkpoints_are_read_under_any_name(tmp_path, name, kind, torch, capsys):
    path, weights = tmp_path / name, {"a": torch.arange(3.0)}
    if kind == SAFETENSORS:
        from safetensors.torch import save_file

        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == TORCH)
    arrays = read_state_dict(open_source(str(path)).path)
    np.testing.assert_array_equal(arrays["a"], [0, 1, 2])
    is_told = (name == "model.safetensors") != (kind == SAFETENSORS)
    told = f"read the file, {kind.replace('legacy', TORCH)} in spite of its name\n" if is_told else ""
    assert capsys.readouterr().out == told


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), r"no complete checkpoint in .*model.pt"),
        (lambda path: path.symlink_to("/proc/self/mem"), r"cannot read .*model.pt: "),
        (lambda path: None, r"model.pt is neither a file nor a published name"),
    ],
    ids=["folder", "unreadable", "missing"],
)
def test_what_cannot_be_opened_is_one_line(tmp_path, make, message):
    make(tmp_path / "model.pt")
    with pytest.raises(GlideError, match=message):
        main(["inspect", str(tmp_path / "model.pt")])


def test_a_folder_is_no_file_to_convert(tmp_path):
    with pytest.raises(GlideError, match="is a folder: give a PyTorch or safetensors file"):
        main(["to-flax", str(tmp_path), "--output", str(tmp_path / "new")])


@pytest.mark.parametrize("name", ["~nobody-of-this-name/model.pt", "x" * 5000, "a\0b"], ids=["user", "long", "null"])
def test_impossible_names_are_one_line(name):
    with pytest.raises(GlideError, match="is neither a file nor a published name"):
        open_source(name)
    with pytest.raises(GlideError, match="is neither a file nor a published name"):
        main(["inspect", name])


DEEP = 28  # in each other: 2^28 to look at, some seconds; 60 would be years


def write_pickle(path, content, form):
    """`content` as the first pickle of a file that torch would load."""
    if form == "plain":
        path.write_bytes(content)
    elif form == "legacy":
        start = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
        path.write_bytes(b"".join(start) + content + pickle.dumps([], protocol=2))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"model/{form}", content)
            archive.writestr("model/version", "3\n")
            if form != "data.pkl":  # torch does not heed upper and lower case
                archive.writestr("model/data.pkl", pickle.dumps({}, protocol=2))


def tuples_in_each_other():
    """A dict with a key whose hash takes 2^DEEP steps, in some hundred bytes."""
    return b"\x80\x02})q\x00" + b"h\x00h\x00\x86q\x00" * DEEP + b"Ns."


HEAVY = {
    "tuples in each other": tuples_in_each_other(),
    "wide tuples": b"\x80\x02})q\x00" + (b"(" + b"h\x00" * 1000 + b"tq\x00") * 3 + b"Ns.",
    "a key many times": b"\x80\x02}q\x01" + b"(" + b"N" * 9000 + b"tq\x00" + b"h\x00Ns" * 2000 + b".",
}


@pytest.mark.parametrize("form", ["data.pkl", "DATA.PKL", "legacy", "plain"])
@pytest.mark.parametrize("content", HEAVY.values(), ids=HEAVY)
def test_pickles_that_unfold_without_end_are_not_loaded(tmp_path, content, form):
    path = tmp_path / "model.pt"
    write_pickle(path, content, form)
    with pytest.raises(GlideError, match="unfolds into too many objects"):
        read_state_dict(path)


@pytest.mark.parametrize("form", ["data.pkl", "legacy", "plain"])
@pytest.mark.parametrize(
    ("limit", "message"),
    [("MOST_WORK", "unfolds into too many objects"), ("LONGEST_PICKLE", "its pickle is longer than 0 MiB")],
)
def test_pickles_are_bounded(tmp_path, monkeypatch, form, limit, message):
    path = tmp_path / "model.pt"
    write_pickle(path, pickle.dumps([1.5] * 20_000, protocol=2), form)
    monkeypatch.setattr(file_check, limit, 10_000)
    with pytest.raises(GlideError, match=rf"model.pt was refused and not loaded: .*{message}"):
        read_state_dict(path)


@pytest.mark.parametrize("packed", ["data.pkl", "data/0"])
def test_compressed_members_are_refused(tmp_path, packed, torch):
    """Tensors would be read as the bytes that they are packed into."""
    torch.save({"a": torch.zeros(10_000)}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        for name in whole.namelist():
            method = zipfile.ZIP_DEFLATED if name.endswith(packed) else zipfile.ZIP_STORED
            archive.writestr(name, whole.read(name), method)
    with pytest.raises(GlideError, match=r"model.pt is a PyTorch file compressed afterwards, .*: save it again with"):
        read_state_dict(tmp_path / "model.pt")


def test_checksums_may_be_left_out(tmp_path, torch):
    computed = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"a": torch.ones(3)}, tmp_path / "model.pt")
    finally:
        torch.serialization.set_crc32_options(computed)
    assert list(read_state_dict(tmp_path / "model.pt")["a"]) == [1, 1, 1]


SPREAD = {
    "one number": lambda torch: {"a": torch.ones(1).expand(10**12)},
    "one in another type": lambda torch: {"a": torch.ones(1).bfloat16().expand(2, 10**12)},
    "windows": lambda torch: {"a": torch.ones(2000).as_strided((1000, 1000), (1, 1))},
    "many of the same": lambda torch: {f"a{i}": value for value in [torch.ones(1000)] for i in range(100)},
    "never stored": lambda torch: {"a": torch.empty(10**12, device="meta")},
}


@pytest.mark.parametrize("make", SPREAD.values(), ids=SPREAD)
def test_tensors_that_are_larger_than_their_file_are_refused(tmp_path, make, torch):
    torch.save(make(torch), tmp_path / "model.pt")
    with pytest.raises(GlideError, match=r"claims \d+ bytes of tensors, but has only \d+|which is not supported"):
        read_state_dict(tmp_path / "model.pt")


def header(shape=(1,), offsets=(0, 4), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "overlapping": {"a": header(), "b": header()},
    "beyond the end": {"a": header((100,), (0, 400))},
    "before the start": {"a": header(offsets=(-4, 0))},
    "a hole": {"b": header(offsets=(4, 8))},
    "backwards": {"a": header(offsets=(4, 0))},
    "another size": {"a": header((2,))},
    "overflowing": {"a": header((2**62, 4))},
    "no number of 64 bits": {"a": header((2**63, 0), (0, 0)), "b": header()},
    "hardly any": {"a": header((2**70, 0), (0, 0)), "b": header()},
    "more than an array can have": {"a": header((0, 2**62, 2**62), (0, 0)), "b": header()},
    "100 dimensions": {"a": header([1] * 100)},
    "an unknown type": {"a": header(dtype="F99")},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 4]}},
    "no tensor": {"a": 3},
    "nothing": {},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_headers_of_safetensors_that_lie_are_one_line(tmp_path, lie):
    text = json.dumps(lie).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(GlideError, match=r"model.safetensors") as caught:
        read_state_dict(tmp_path / "model.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (2**62, 0)])
def test_empty_tensors_are_read_or_one_line(tmp_path, shape, torch):
    torch.save({"a": torch.ones(shape)}, tmp_path / "model.pt")
    if shape == (2**62, 0):
        with pytest.raises(
            GlideError, match=r"a is torch.float32 torch.strided of \(4611686018427387904, 0\), which is not supported"
        ):
            read_state_dict(tmp_path / "model.pt")
    else:
        assert read_state_dict(tmp_path / "model.pt")["a"].shape == shape


def test_paths_that_are_no_text_are_told_and_recorded(tmp_path, capsys):
    """As Linux allows them, and as copies from other systems have them."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    write_tensors(folder / os.fsdecode(b"mod\xe8le.pt"), state_dict(architecture("clip/text-enc")))
    source = str(next(folder.iterdir()))
    (tmp_path / "options.json").write_text('{"n_head_state_text": 4}')
    options = ["--options", str(tmp_path / "options.json")]
    assert call("-m", "convert", "inspect", source, *options) == 0
    assert call("-m", "convert", "to-flax", source, "--output", tmp_path / "flax", *options) == 0
    assert call("-m", "convert", "to-torch", tmp_path / "flax", "--output", folder / "back.pt") == 0
    assert r"caf\udce9/mod\udce8le.pt" in capsys.readouterr().out
    assert_same_state_dict(read_state_dict(folder / "back.pt"), read_state_dict(Path(source)))
    with pytest.raises(GlideError, match=r"caf\\udce9/flax' is not in UTF-8, as the folder of a checkpoint must be"):
        main(["to-flax", source, "--output", str(folder / "flax"), *options])
