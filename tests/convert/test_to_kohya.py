"""Adapters as kohya's files: by PyTorch's names and shapes, back again, and everything that is wrong with one."""

import json
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from convert.architecture import glide_architecture
from convert.to_kohya import to_kohya
from convert.to_torch import convert_params, to_torch
from glide_jax.checkpoint import read_record
from glide_jax.checkpoint.safetensors_file import HEADER
from glide_jax.errors import GlideError
from glide_jax.models.lora import fingerprint
from glide_jax.sample import recorded_sampling
from glide_jax.sample.lora import Adapters, base_of, merged
from tests.convert.state_dicts import COSINE
from tests.tiny.models import BASE, random_model, save_lora

KINDS = ("lora", "dora")


@pytest.fixture(scope="module")
def params():
    return random_model().params


@pytest.fixture(scope="module")
def architecture():
    return glide_architecture(BASE, COSINE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, architecture):
    """Adapters of every layer, as a run leaves them; each has its file beside it."""
    folder, options = tmp_path_factory.mktemp("kohya"), {"rank": 2, "alpha": 3.0, "targets": ("*",)}
    found = {kind: Path(save_lora(folder / kind, "/home/me/base", dora=kind == "dora", **options)) for kind in KINDS}
    for run in found.values():
        count = to_kohya(run, run.with_suffix(".safetensors"))
        assert count == sum(entry.path[-1] == "kernel" for entry in architecture.keymap)
    return found


@pytest.fixture(params=KINDS)
def run(request, runs):
    return runs[request.param]


@pytest.fixture
def file(run):
    return run.with_suffix(".safetensors")


@pytest.fixture
def damaged(runs):
    """What is to be."""
    return runs["dora"].with_suffix(".safetensors")


def header_of(path):
    with safe_open(path, framework="np") as file:
        return file.metadata()


def test_what_is_added_to_pytorchs_weights_by_its_names_is_what_merging_adds(run, file, params, architecture):
    adapters, before = load_file(file), convert_params(jax.device_get(params), architecture)
    after = convert_params(jax.device_get(merged(params, [Adapters.load(run)])), architecture)
    assert before.keys() == after.keys()
    for key, weight in before.items():
        part = "te" if key.startswith("transformer") else "unet"
        name = f"lora_{part}_{key.removesuffix('.weight').replace('.', '_')}"
        if f"{name}.lora_up.weight" not in adapters:
            np.testing.assert_array_equal(after[key], weight)
            continue
        down, up = (adapters.pop(f"{name}.lora_{which}.weight") for which in ("down", "up"))
        ones = tuple(1 for _ in weight.shape[2:])
        assert (down.shape, up.shape) == ((2, *weight.shape[1:]), (len(weight), 2, *ones))
        share = adapters.pop(f"{name}.alpha") / len(down)
        whole = weight + share * np.einsum("or,ri...->oi...", up.reshape(len(up), -1), down)
        if (scale := adapters.pop(f"{name}.dora_scale", None)) is not None:
            assert scale.shape == (len(weight), 1, *ones)
            whole *= scale / np.sqrt(np.square(whole).sum(tuple(range(1, whole.ndim)), keepdims=True))
        np.testing.assert_allclose(after[key], whole, rtol=1e-4, atol=1e-5, err_msg=key)
        assert np.abs(whole - weight).max() > 1e-3
    assert not adapters


def test_a_file_is_read_wherever_the_run_is(run, file, params):
    theirs, ours = Adapters.load(f"{file}:0.5"), Adapters.load(run)
    assert jax.tree.structure(theirs.params) == jax.tree.structure(ours.params)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), theirs.params, ours.params))
    assert (theirs.config, theirs.base, theirs.scale) == (ours.config, "", 0.5)
    assert theirs.base_sha256 == ours.base_sha256 == fingerprint(params)
    before, after = (read_record(path) for path in (run, file))
    assert after == before | {"lora": before["lora"] | {"base": ""}}
    with pytest.raises(
        GlideError, match=r"has adapters of weights that it does not name: give --checkpoint BASE --lora \S+$"
    ):
        base_of(file)
    with pytest.raises(GlideError, match="has adapters, not whole weights: merge them first"):
        to_torch(file, file.with_suffix(".pt"))


def test_the_header_is_kohyas_too_and_tells_no_path(file):
    header = header_of(file)
    dora = json.loads(header[HEADER])["record"]["lora"]["dora"]
    assert header["ss_network_module"] == ("lycoris.kohya" if dora else "networks.lora")
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("2", "3.0")
    assert (header["ss_base_model_version"], header["ss_sd_model_name"]) == ("glide_base", "")
    assert header["modelspec.architecture"] == "glide-base/lora"
    assert json.loads(header["ss_network_args"]).get("dora_wd", "False") == str(dora)
    assert "/home/me" not in str(header)


def changed(file, path, *, without=(), record=None, **tensors):
    """The file with other tensors, or another record."""
    header, arrays = header_of(file), load_file(file) | tensors
    ours = json.loads(header[HEADER])
    for entry, values in (record or {}).items():
        ours["record"][entry] |= values
    save_file({key: arrays[key] for key in arrays if key not in without}, path, header | {HEADER: json.dumps(ours)})
    return path


OUT = "lora_unet_out_2"
DAMAGED = f"the entry {HEADER} of its header is damaged$"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"without": [f"{OUT}.lora_up.weight"]}, "of another shape are 'lora/unet/out_conv/up'$"),
        ({"without": [f"{OUT}.alpha"]}, "'lora/unet/out_conv/alpha'$"),
        ({f"{OUT}.lora_down.weight": np.zeros((2, 33, 3, 3), np.float32)}, "'lora/unet/out_conv/down'$"),
        ({f"{OUT}.lora_mid.weight": np.zeros((2, 2), np.float32)}, "'lora_unet_out_2.lora_mid.weight'$"),
        ({f"{OUT}\n.alpha": np.asarray(3.0, np.float32)}, r"'lora_unet_out_2\\n.alpha'$"),
        ({f"{OUT}.alpha": np.asarray(4.0, np.float32)}, "is not 3.0, as in the header: set a scale with PATH:SCALE$"),
        ({f"{OUT}.lora_up.weight": np.full((6, 2, 1, 1), np.nan, np.float32)}, "must have finite values"),
        ({f"{OUT}.lora_up.weight": np.zeros((6, 2, 1, 1), np.int32)}, "of type float32, float16, bfloat16$"),
        ({"record": {"lora": {"rank": 10**400}}}, "lora.rank is too large$"),
        ({"record": {"lora": {"alpha": 1e308}}}, "is not 1e.308, as in the header"),
        ({"record": {"lora": {"alpha": "much"}}}, "lora.alpha cannot be 'much': it takes float$"),
        ({"record": {"lora": {"rank": 0, "dora": False}}}, "lora.rank must be at least 1$"),
        ({"record": {"lora": {"rank": 0.5}}}, "lora.rank cannot be 0.5"),
        (
            {"record": {"lora": {"targets": ["text/nothing"]}}},
            "cannot be used: train.lora.targets: no layer",
        ),
        ({"record": {"lora": {"rnk": 3}}}, "lora.rnk is unknown; did you mean rank"),
        ({"record": {"lora": {"targets": ["*"] * 1000}}}, "targets: give at most 38, one a layer, of at most 200 char"),
        ({"record": {"lora": {"targets": ["*" * 1000]}}}, "targets: give at most 38, one a layer, of at most 200 char"),
        ({"record": {"model": {"num_res_blocks": 40}}}, "it has 2 of unet/up, not 41$"),
        ({"record": {"model": {"xf_layers": 10**9}}}, "it has 1 of text/blocks, not 1000000000$"),
        ({"record": {"model": {"channel_mult": [1] * 20_000}}}, "channel_mult must have at most 13 levels, not 20000$"),
        ({"record": {"model": {"image_size": 2**30}}}, r"image_size must be in \[1, 4096\], not 1073741824$"),
        (
            {"record": {"model": {"num_channels": 32 * 10**12}}},
            "of another shape are .lora/text/proj/magnitude., .* and 91 more$",
        ),
    ],
)
def test_a_file_that_was_changed_is_one_line(change, message, damaged, tmp_path):
    with pytest.raises(GlideError, match=message) as caught:
        Adapters.load(changed(damaged, tmp_path / "changed.safetensors", **change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("base", ["x" * 5000, "itself"])
def test_a_base_that_is_none_is_one_line(base, damaged, tmp_path):
    path = tmp_path / "changed.safetensors"
    changed(damaged, path, record={"lora": {"base": str(path) if base == "itself" else base}})
    with pytest.raises(GlideError, match="has adapters of "):
        base_of(path)
    assert recorded_sampling(path) == {}


def with_entry(file, text):
    """The file with something else, as long, at the beginning of our entry."""
    content = file.read_bytes()
    begin = content.index(b'{\\"record')
    return content[:begin] + text + content[begin + len(text) :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda file: file.read_bytes()[:-100], r"cannot be read as a safetensors file \(.*\): is it cut short\?$"),
        (lambda file: struct.pack("<Q", 2**62) + file.read_bytes()[8:], "cannot be read as a safetensors file"),
        (lambda file: b"", "cannot be read as a safetensors file"),
        (lambda file: b"<!DOCTYPE html><html></html>", "cannot be read as a safetensors file"),
        (lambda file: struct.pack("<Q", 2) + b"{}", "does not say which model it is"),
        (lambda file: file.read_bytes().replace(HEADER.encode(), HEADER[::-1].encode()), "does not say which model"),
        (lambda file: with_entry(file, b"["), DAMAGED),
    ],
    ids=["cut", "size", "empty", "page", "nothing", "elsewhere", "not JSON"],
)
def test_what_is_no_such_file_is_one_line(content, message, damaged, tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(content(damaged))
    with pytest.raises(GlideError, match=message) as caught:
        Adapters.load(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_is_already(runs, damaged, tmp_path):
    with pytest.raises(GlideError, match=r"no checkpoint at nowhere.safetensors: no such file$"):
        Adapters.load("nowhere.safetensors")
    with pytest.raises(GlideError, match=r"dora.safetensors exists already"):
        to_kohya(runs["dora"], damaged)
    with pytest.raises(GlideError, match=r"run.pt must end in .safetensors"):
        to_kohya(runs["dora"], tmp_path / "run.pt")
