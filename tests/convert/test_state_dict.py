"""Checkpoints as training programs leave them: wrapped, nested, with averages and other things beside."""

import argparse
import datetime
import json
import pathlib
import random

import numpy as np
import pytest

from convert.architecture import parse_options
from convert.cli import main
from convert.download import open_source
from convert.state_dict import find_state_dict, read_state_dict, write_tensors
from convert.to_flax import to_flax
from convert.to_torch import to_torch
from glide_jax.checkpoint import load_weights, read_record
from glide_jax.errors import GlideError
from tests.convert.state_dicts import architecture, assert_same_state_dict, options, state_dict

RAW, EMA = {"a.w": 1.0, "b": 2.0}, {"a.w": 3.0, "b": 4.0}
BESIDE = {"step": 7, "optimizer": {"state": {0: {"exp_avg": 5.0}}, "param_groups": [{"lr": 0}]}, "loss": 6.0}


def find(content, *, ema=False):
    """Floats stand for tensors."""
    return find_state_dict(content, lambda value: isinstance(value, float), "my.pt", ema=ema)


def prefixed(prefix, tensors=RAW):
    return {f"{prefix}{key}": value for key, value in tensors.items()}


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module.", "model."]


@pytest.mark.parametrize("prefix", [*PREFIXES, "model._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(prefix):
    found = find(prefixed(prefix))
    assert list(found.tensors.items()) == list(RAW.items())
    assert found.notes == [f'without the prefix "{prefix}"']


@pytest.mark.parametrize(
    ("content", "keys", "told"),
    [
        ({"module.a": 1.0, "b": 2.0}, ["module.a", "b"], []),
        ({"module.module.a": 1.0, "module.b": 2.0}, ["module.a", "b"], ['without the prefix "module."']),
        (
            {"module._orig_mod.a": 1.0, "module.b": 2.0},
            ["a", "b"],
            ['without the prefix "module."', 'without "_orig_mod." inside names'],
        ),
        ({"n_averaged": 3.0, "module.a": 1.0}, ["a"], ['without the prefix "module."', 'without "n_averaged"']),
        ({"a": 1.0, "module_of.b": 2.0}, ["a", "module_of.b"], []),
    ],
)
def test_only_what_all_names_share_is_taken_off(content, keys, told):
    found = find(content)
    assert list(found.tensors) == keys
    assert found.notes == told


NESTED = {
    name: {name: RAW, **BESIDE} for name in ("state_dict", "model", "model_state_dict", "module")
} | {
    "model/state_dict": {"model": {"state_dict": RAW, "config": {"width": 3}}, **BESIDE},
    "state_dict/module": {"state_dict": {"module": RAW}, "model": {"width": 3}},
}  # fmt: skip


@pytest.mark.parametrize("entry", NESTED)
def test_weights_are_found_beside_other_things(entry):
    found = find(NESTED[entry])
    assert (found.tensors, found.entry, found.notes) == (RAW, entry, [])
    with pytest.raises(GlideError, match=r"^my.pt holds no EMA weights by name: leave out --ema$"):
        find(NESTED[entry], ema=True)


BOTH = {
    "ema": {"model": RAW, "ema": EMA, **BESIDE},
    "ema_state_dict": {"state_dict": RAW, "ema_state_dict": EMA},
    "state_dict_ema": {"state_dict": RAW, "state_dict_ema": EMA},
    "model_ema": {"module": prefixed("module."), "model_ema": prefixed("module.", EMA)},
    "state_dict/ema": {"state_dict": {"model": RAW, "ema": EMA}},
    "ema/module": {"model": RAW, "ema": {"module": EMA, "decay": 0}},
    "ema_model": prefixed("online_model.") | prefixed("ema_model.", EMA) | {"step": 3.0, "initted": 1.0},
    "ema/ema_model": {"model": RAW, "ema": prefixed("online_model.") | prefixed("ema_model.", EMA)},
    "state_dict/model_ema": {"state_dict": prefixed("model.") | prefixed("model_ema.", EMA)},
}


@pytest.mark.parametrize("entry", BOTH)
def test_raw_weights_are_the_default_and_ema_weights_are_asked_for(entry):
    raw = find(BOTH[entry])
    assert raw.tensors == RAW
    assert raw.notes[-1].startswith('--ema reads "')
    averaged = find(BOTH[entry], ema=True)
    assert (averaged.tensors, averaged.entry) == (EMA, entry)


@pytest.mark.parametrize("name", ["ema", "ema_state_dict"])
def test_a_file_of_ema_weights_alone_is_read_without_asking(name):
    for ema in (False, True):
        found = find({name: EMA, **BESIDE}, ema=ema)
        assert (found.tensors, found.entry, found.notes) == (EMA, name, [])


HOLDS_ITSELF: dict = {"step": 1.0}
HOLDS_ITSELF["model"] = HOLDS_ITSELF


@pytest.mark.parametrize(
    ("content", "ema", "message"),
    [
        (RAW, True, "holds no EMA weights by name: leave out --ema"),
        ({"model": RAW, "ema": {"shadow_params": [1.0], "decay": 0}}, True, "holds no EMA weights by name"),
        ({"model": RAW, "state_dict": EMA}, False, 'holds weights as "state_dict" and "model": give a file of one'),
        ({"model": RAW, "ema": EMA, "ema_model": EMA}, True, 'holds weights as "ema" and "ema_model"'),
        ({"generator": RAW, "step": 3}, False, "holds dict under 'generator': give a file of a bare state_dict, or"),
        ({"model": RAW | {"step": 3}}, False, "\"model\" of my.pt holds int under 'step'"),
        ({"model": 3, "ema": None}, False, "holds int under 'model'"),
        (HOLDS_ITSELF, False, "holds dict under 'model'"),
        ([RAW], False, "my.pt holds list, not a state_dict of named tensors"),
    ],
)
def test_what_cannot_be_decided_is_refused(content, ema, message):
    with pytest.raises(GlideError) as caught:
        find(content, ema=ema)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def things_beside(torch):
    return {
        "optimizer": {"state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]},
        "args": argparse.Namespace(lr=1e-4, folder=pathlib.Path("runs")),
        "best": np.float64(0.3),
        "counts": np.arange(3),
        "numpy": np.random.RandomState(0).get_state(),
        "random": random.getstate(),
        "torch": torch.get_rng_state(),
        "started": datetime.datetime(2024, 2, 3),
        "took": datetime.timedelta(3),
        "step": 7,
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_training_programs_keep_beside_weights_is_passed_over(tmp_path, zipped, torch, capsys):
    content = {"model": {"a": torch.ones(2)}, **things_beside(torch)}
    torch.save(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=zipped)
    arrays = read_state_dict(tmp_path / "last.ckpt")
    np.testing.assert_array_equal(arrays["a"], [1, 1])
    assert capsys.readouterr().out == 'read "model" of the file\n'


@pytest.mark.parametrize("prefix", ["", *PREFIXES[:3]])
@pytest.mark.parametrize("flags", [[], ["--ema"]], ids=["raw", "ema"])
def test_a_training_checkpoint_goes_there_and_back(tmp_path, capsys, prefix, flags, torch):
    """Bit for bit, on the command line."""
    model, path = architecture("base"), tmp_path / "last.ckpt"
    weights = {"model_state_dict": state_dict(model, seed=1), "ema_state_dict": state_dict(model, seed=2)}
    tensors = {
        name: {prefix + key: torch.from_numpy(array) for key, array in arrays.items()}
        for name, arrays in weights.items()
    }
    torch.save({"step": 7, **things_beside(torch), **tensors}, path)
    settings = tmp_path / "options.json"
    settings.write_text(json.dumps(options(model)))
    main(["to-flax", str(path), "--output", f"{tmp_path}/flax", "--options", str(settings), *flags])
    entry = "ema_state_dict" if flags else "model_state_dict"
    told = f'read "{entry}" of the file' + (f', without the prefix "{prefix}"' if prefix else "")
    told += "" if flags else ', --ema reads "ema_state_dict" instead'
    assert capsys.readouterr().out.splitlines()[1] == told
    main(["to-torch", f"{tmp_path}/flax", "--output", f"{tmp_path}/back.pt"])
    assert_same_state_dict(read_state_dict(tmp_path / "back.pt"), weights[entry])

    main(["inspect", str(path), "--options", str(settings), *flags])
    assert told in capsys.readouterr().out.splitlines()


@pytest.fixture
def wide(tmp_path, torch):
    """A file of float64 tensors, whose values float32 holds exactly, and its arrays."""
    arrays = {key: array.astype(np.float64) for key, array in state_dict(architecture("base")).items()}
    write_tensors(tmp_path / "wide.pt", arrays)
    return tmp_path / "wide.pt", arrays


def converted(path):
    options_ = parse_options(options(architecture("base")))
    return to_flax(open_source(str(path)), path.parent / "flax", options_)


def test_float64_that_float32_holds_goes_there_and_back_bit_for_bit(wide, capsys):
    path, arrays = wide
    converted(path)
    assert capsys.readouterr().out == "read the file, float64 as float32 without loss\n"
    to_torch(path.parent / "flax", path.parent / "back.pt")
    assert_same_state_dict(read_state_dict(path.parent / "back.pt"), arrays)


def test_float64_that_must_be_rounded_is_told(wide, capsys):
    path, arrays = wide
    arrays["out.2.bias"] = arrays["out.2.bias"] * 0 + 0.1
    path.unlink()
    write_tensors(path, arrays)
    converted(path)
    told = f"read the file, float64 rounded to float32 in 1 of {len(arrays)} tensors\n"
    assert capsys.readouterr().out == told
    params = load_weights(path.parent / "flax", architecture("base").params)
    np.testing.assert_array_equal(params["unet"]["out_conv"]["bias"], np.float32(0.1))
    dtypes = read_record(path.parent / "flax")["source"]["dtypes"]
    assert {key for key, dtype in dtypes.items() if dtype == "float32"} == {"out.2.bias"}
    to_torch(path.parent / "flax", path.parent / "back.pt")
    assert_same_state_dict(
        read_state_dict(path.parent / "back.pt"), arrays | {"out.2.bias": arrays["out.2.bias"].astype(np.float32)}
    )


def test_float64_beyond_float32_is_refused(wide):
    path, arrays = wide
    arrays["out.2.bias"][0] = 1e39
    path.unlink()
    write_tensors(path, arrays)
    with pytest.raises(GlideError, match=r"not finite in float32: out.2.bias$"):
        converted(path)
    assert not (path.parent / "flax").exists()


NO_NAMES = ["a\nb", "\x1b[2J", "\ud800", "a" * 501, "module." * 10_000 + "a", ("a", "b"), None, b"a", 1.5]


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda name: ascii(name)[:12])
def test_what_cannot_be_a_name_is_one_short_line(name):
    with pytest.raises(GlideError, match=r"my.pt holds a tensor under .*, which is not a parameter's name") as caught:
        find({"a": 1.0, name: 2.0})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_more_tensors_than_any_model_has_are_refused():
    with pytest.raises(GlideError, match=r"my.pt holds 20000 entries, more than any such model has"):
        find({f"a{i}": 1.0 for i in range(20_000)})


def test_dicts_that_stand_in_many_places_are_looked_through_once():
    looked_at, shared = [], dict.fromkeys(range(100))
    content = {"model": {i: dict.fromkeys(range(100), shared) for i in range(100)}}
    with pytest.raises(GlideError, match="holds dict under 'model'"):
        find_state_dict(content, looked_at.append, "my.pt", ema=False)
    assert len(looked_at) < 20_000
