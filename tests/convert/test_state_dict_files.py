"""Files of tensors: what is read, and what is refused before it can do harm."""

import argparse
import os
import pathlib
import pickle
import sys
from contextlib import suppress

import numpy as np
import pytest

from convert.state_dict import read_state_dict, write_tensors
from glide_jax.checkpoint import safetensors_file
from glide_jax.errors import GlideError
from tests.convert.state_dicts import assert_same_state_dict, random_bits

pytestmark = pytest.mark.usefixtures("torch")


def tensors():
    rng = np.random.default_rng(0)
    named = {"b": ((3, 4), "bfloat16"), "a": ((5,), "float16"), "c": ((), "float32")}
    return {key: random_bits(rng, shape, dtype) for key, (shape, dtype) in named.items()}


def as_torch(arrays):
    import torch

    halves = {key: a.view(np.int16) if a.dtype.name == "bfloat16" else a for key, a in arrays.items()}
    return {key: torch.from_numpy(a).view(getattr(torch, arrays[key].dtype.name)) for key, a in halves.items()}


def test_writing_and_reading_keeps_bytes_dtypes_and_order(tmp_path, torch):
    write_tensors(tmp_path / "new" / "model.pt", tensors())
    assert_same_state_dict(read_state_dict(tmp_path / "new" / "model.pt"), tensors())
    loaded = torch.load(tmp_path / "new" / "model.pt", weights_only=True)
    assert [tensor.dtype for tensor in loaded.values()] == [torch.bfloat16, torch.float16, torch.float32]
    assert list(tmp_path.glob("new/*")) == [tmp_path / "new" / "model.pt"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_both_formats_of_torch_save_are_read(tmp_path, zipped, torch):
    torch.save(as_torch(tensors()), tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    assert_same_state_dict(read_state_dict(tmp_path / "model.pt"), tensors())


def test_safetensors_are_read_in_the_order_of_the_file(tmp_path):
    from safetensors.torch import save_file

    save_file(as_torch(tensors()), tmp_path / "model.safetensors")
    read = read_state_dict(tmp_path / "model.safetensors")
    assert_same_state_dict({key: read[key] for key in "bac"}, tensors())
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(GlideError, match="cannot be read as a safetensors file"):
        read_state_dict(tmp_path / "cut.safetensors")


def test_views_and_parameters_are_read_by_value(tmp_path, torch):
    base = torch.arange(6.0).reshape(2, 3)
    torch.save({"transposed": base.T, "parameter": torch.nn.Parameter(base[1])}, tmp_path / "model.pt")
    read = read_state_dict(tmp_path / "model.pt")
    np.testing.assert_array_equal(read["transposed"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(read["parameter"], [3, 4, 5])


def test_names_of_compiled_modules_lose_their_prefix(tmp_path, torch):
    torch.save({"_orig_mod.a": torch.ones(1), "b._orig_mod.c": torch.ones(2)}, tmp_path / "compiled.pt")
    assert list(read_state_dict(tmp_path / "compiled.pt")) == ["a", "b.c"]
    torch.save({"_orig_mod.a": torch.ones(1), "a": torch.ones(2)}, tmp_path / "both.pt")
    with pytest.raises(GlideError, match=r"twice, with and without the prefix '_orig_mod.'"):
        read_state_dict(tmp_path / "both.pt")


class Malicious:
    """Runs a shell command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("how", ["zip", "beside", "legacy", "bare"])
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path, how, torch):
    mark, path = tmp_path / "mark", tmp_path / "model.pt"
    content = {"weight": torch.ones(2), "more": Malicious(mark)}
    if how == "beside":
        content = {"model": {"weight": torch.ones(2)}, "args": argparse.Namespace(optimizer=Malicious(mark))}
    if how == "bare":
        path.write_bytes(pickle.dumps(content["more"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")
    with pytest.raises(GlideError, match=r"was refused, and nothing in it was run: it asks to run posix.system"):
        read_state_dict(path)
    assert not mark.exists()
    if how != "legacy":  # it would have: the file is a real one
        pickle.loads(path.read_bytes()) if how == "bare" else torch.load(path, weights_only=False)
        assert mark.exists()


class Impossible:
    """Asks for an object that cannot be made."""

    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        return self.kind, (1, 2)


@pytest.mark.parametrize("kind", [argparse.Namespace, pathlib.PosixPath, np.float64(1).__reduce__()[0]])
def test_of_what_is_passed_over_nothing_is_made(tmp_path, kind, torch):
    torch.save({"model": {"a": torch.ones(1)}, "x": Impossible(kind)}, tmp_path / "model.pt")
    allowed = set(torch.serialization.get_safe_globals())
    assert list(read_state_dict(tmp_path / "model.pt")) == ["a"]
    assert set(torch.serialization.get_safe_globals()) == allowed
    with pytest.raises(TypeError):
        torch.load(tmp_path / "model.pt", weights_only=False)


def test_a_file_cut_short_is_refused_in_one_line(tmp_path, torch):
    path = tmp_path / "model.pt"
    torch.save(as_torch(tensors()), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(GlideError, match=r"cannot be read as a PyTorch file \(.*\): is it cut short") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_state_dict_is_refused(tmp_path, torch):
    path = tmp_path / "model.pt"
    for content, message in [
        (torch.ones(3), "holds Tensor, not a state_dict"),
        ({}, "holds dict, not a state_dict"),
        ({"step": 3}, "holds int under 'step': give a file of a bare state_dict"),
        ({"net": {"a": torch.ones(1)}, "step": 3}, "holds dict under 'net'"),
        ({"a": torch.ones(2).to_sparse()}, r"a is torch.float32 torch.sparse_coo, which is not supported"),
        ({"a": torch.ones(2).bfloat16().to_sparse()}, r"a is torch.bfloat16 torch.sparse_coo, which is not supported"),
    ]:
        torch.save(content, path)
        with pytest.raises(GlideError, match=message):
            read_state_dict(path)
    path.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(GlideError, match=r"model.pt is a plain pickle: save its tensors with torch.save"):
        read_state_dict(path)


@pytest.mark.parametrize("how", ["zip", "legacy"])
def test_a_damaged_file_is_refused_or_read(tmp_path, how, torch):
    path, rng = tmp_path / "model.pt", np.random.default_rng(0)
    torch.save({"model": as_torch(tensors()), "step": 3}, path, _use_new_zipfile_serialization=how == "zip")
    whole = path.read_bytes()
    for _ in range(200):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with suppress(GlideError):  # what is damaged may be a value
            read_state_dict(path)


def test_an_existing_file_is_not_overwritten(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("precious")
    with pytest.raises(GlideError, match=r"model.pt exists already"):
        write_tensors(path, tensors())
    assert path.read_text() == "precious"


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GlideError, match=r"cannot write .*model.pt"):
        write_tensors(tmp_path / "file" / "model.pt", tensors())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch, torch):
    torch.save({"a": torch.ones(1)}, tmp_path / "model.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    for use in (lambda: read_state_dict(tmp_path / "model.pt"), lambda: write_tensors(tmp_path / "new.pt", tensors())):
        with pytest.raises(GlideError, match=r"needs torch: install it by `uv sync --inexact --extra torch`"):
            use()
    safetensors_file.write(tmp_path / "model.safetensors", tensors(), {"record": {}, "names": {}})
    assert read_state_dict(tmp_path / "model.safetensors").keys() == tensors().keys()
