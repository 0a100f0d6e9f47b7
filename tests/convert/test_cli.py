"""`python -m convert` as a user runs it."""

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from convert.cli import main
from convert.state_dict import read_state_dict, write_tensors
from glide_jax.checkpoint import save_weights
from glide_jax.errors import GlideError
from glide_jax.models import Glide
from tests.convert.state_dicts import architecture, assert_same_state_dict, options, state_dict
from tests.programs import ROOT
from tests.tiny.models import BASE, random_weights

pytestmark = pytest.mark.usefixtures("torch")


@pytest.fixture(scope="module")
def model():
    return architecture("upsample")


@pytest.fixture
def files(tmp_path, model):
    write_tensors(tmp_path / "model.pt", state_dict(model, "float16"))
    (tmp_path / "options.json").write_text(json.dumps({"options": options(model)}))
    return tmp_path


def test_there_and_back_again(files, model, capsys):
    main(["to-flax", f"{files}/model.pt", "--output", f"{files}/flax", "--options", f"{files}/options.json"])
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("sha256 ")
    assert last == f"upsample model written to {files}/flax"
    main(["to-torch", f"{files}/flax", "--output", f"{files}/back.pt"])
    assert capsys.readouterr().out == f"upsample model (params) written to {files}/back.pt\n"
    assert_same_state_dict(read_state_dict(files / "back.pt"), state_dict(model, "float16"))


def test_errors_are_one_line_and_exit_code_2(tmp_path):
    """In a process of its own: the entry point itself."""
    failed = subprocess.run(
        [sys.executable, "-m", "convert", "to-flax", "nothing", "--output", str(tmp_path / "flax")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr.startswith("error: nothing is neither a file nor a published name")
    assert failed.stderr.count("\n") == 1


def test_inspect_tells_kind_parameters_dtypes_and_shapes(files, model, capsys):
    main(["inspect", str(files / "model.pt"), "--options", str(files / "options.json")])
    lines = capsys.readouterr().out.splitlines()
    count = sum(int(np.prod(shape)) for shape in model.torch_shapes.values())
    assert lines[0].startswith("sha256 ")
    assert "float16   32x6x3x3         input_blocks.0.0.weight" in lines
    assert len(lines) == 2 + len(model.torch_shapes)
    assert lines[-1] == f"upsample model, {count:,} parameters in {len(model.torch_shapes)} float16 tensors"


def test_what_had_to_be_assumed_is_told(tmp_path, capsys):
    model = architecture("clip/text-enc")
    write_tensors(tmp_path / "clip.pt", state_dict(model))
    (tmp_path / "options.json").write_text('{"n_head_state_text": 4}')
    arguments = [str(tmp_path / "clip.pt"), "--options", str(tmp_path / "options.json")]
    main(["inspect", *arguments])
    assert capsys.readouterr().out.endswith("tensors\n")

    model = architecture("base", num_channels=64, xf_width=0)
    write_tensors(tmp_path / "base.pt", state_dict(model))
    main(["inspect", str(tmp_path / "base.pt")])
    assert "; assumed as published: image_size 64, " in capsys.readouterr().out


def test_inspect_still_lists_what_does_not_fit(files, model, capsys):
    arrays = state_dict(model, "float16")
    del arrays["out.2.bias"]
    write_tensors(files / "broken.pt", arrays)
    with pytest.raises(GlideError, match=r"does not fit the upsample model: missing: out.2.bias"):
        main(["inspect", str(files / "broken.pt"), "--options", str(files / "options.json")])
    assert "input_blocks.0.0.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND; python -m convert --help lists the options$"),
        (["to-flax", "x.pt", "--output", "y", "--optoins", "z"], "^unknown option --optoins; did you mean --options"),
        (["to-torch", "x", "--output", "y.pt", "--options", "z"], "^unknown option --options; python -m convert to-t"),
        (["to-flax", "x.pt"], "the following arguments are required: --output"),
        (["to-torch", "x", "--output", "y.pt", "--ema", "--params"], "not allowed with argument --ema"),
        (["to-torch", "x", "--output", "y.pt", "--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_wrong_usage_is_one_line(arguments, message, capsys):
    with pytest.raises(GlideError, match=message):
        main(arguments)
    assert capsys.readouterr().err == ""


def test_inspect_says_what_our_own_checkpoints_are(tmp_path, capsys):
    main(["inspect", str(ROOT / "checkpoints" / "emoji")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["  base model of 32 px", "  predicts v, schedule squaredcos_cap_v2"]
    assert "  upsample model of 128 px" in lines
    settings = lines[lines.index(f"settings of {ROOT / 'checkpoints' / 'emoji'}, for both models:") + 1 :]
    assert {"  sampler: ddpm", "  upsampler_num_steps: 10"} <= set(settings)
    assert not any(line.endswith(": ") for line in settings)
    lora = {
        "rank": 4,
        "alpha": 0.0,
        "targets": ["unet/*"],
        "dora": True,
        "base": "models/base",
        "base_sha256": "ab" * 32,
    }
    converted = {"model": asdict(BASE), "source": {"name": "base", "keys": ["a", "b"], "dtypes": {"a": "float16"}}}
    save_weights(tmp_path / "converted", random_weights(Glide(BASE).abstract_params()), converted)
    main(["inspect", str(tmp_path / "converted")])
    assert capsys.readouterr().out.splitlines()[-3:-1] == ["  from name base", "  from 2 tensors"]
    record = {"model": asdict(BASE), "diffusion": {}, "lora": lora, "step": 7, "minutes": 2.4, "validation_mse": 0.1}
    save_weights(tmp_path / "run" / "checkpoints" / "7", {"lora": np.zeros(6, np.float32)}, record)
    main(["inspect", str(tmp_path / "run@7")])
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  adapters (DoRA) of rank 4, alpha 4, for unet/*",
        "  trained on models/base of SHA-256 abababababab",
        "  predicts noise, schedule unknown",
        "  step 7 of a run, after 2.4 minutes",
        "  validation loss 0.1000",
        "  6 parameters",
    ]
    save_weights(tmp_path / "odd", {"lora": np.zeros(6, np.float32)}, record | {"lora": "rank 4"})
    with pytest.raises(GlideError, match=r"the record of .*odd cannot be understood"):
        main(["inspect", str(tmp_path / "odd")])
