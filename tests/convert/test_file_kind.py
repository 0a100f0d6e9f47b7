"""What is saved under a checkpoint's name is read by its content, or named in one line."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest

from convert.cli import main
from convert.file_kind import SAFETENSORS, TORCH, file_kind
from convert.source import open_source
from convert.tensor_file import read_state_dict, read_tensors
from glide_jax.errors import GlideError

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
        read_tensors(path)
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
def test_checkpoints_are_read_under_any_name(tmp_path, name, kind, torch):
    path, weights = tmp_path / name, {"a": torch.arange(3.0)}
    if kind == SAFETENSORS:
        reason = "safetensors is not installed"
        pytest.importorskip("safetensors.torch", reason=reason).save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == TORCH)
    arrays, told = read_state_dict(open_source(str(path)).path)
    np.testing.assert_array_equal(arrays["a"], [0, 1, 2])
    is_told = (name == "model.safetensors") != (kind == SAFETENSORS)
    assert told == (f"read the file, {kind.replace('legacy', TORCH)} in spite of its name" if is_told else "")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), r"model.pt is a folder: give a PyTorch or safetensors file"),
        (lambda path: path.symlink_to("/proc/self/mem"), r"cannot read .*model.pt: "),
        (lambda path: None, r"model.pt is neither a file nor a published name"),
    ],
    ids=["folder", "unreadable", "missing"],
)
def test_what_cannot_be_opened_is_one_line(tmp_path, make, message):
    make(tmp_path / "model.pt")
    with pytest.raises(GlideError, match=message):
        main(["inspect", str(tmp_path / "model.pt")])


@pytest.mark.parametrize("name", ["~nobody-of-this-name/model.pt", "x" * 5000, "a\0b"], ids=["user", "long", "null"])
def test_impossible_names_are_one_line(name):
    with pytest.raises(GlideError, match="is neither a file nor a published name"):
        open_source(name)
