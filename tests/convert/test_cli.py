"""`python -m convert` as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert.cli import main
from convert.tensor_file import read_tensors, write_tensors
from glide_jax.errors import GlideError
from tests.convert.state_dicts import architecture, assert_same_state_dict, options, state_dict

pytest.importorskip("torch", reason="torch is not installed: pip install 'glide-jax[torch]'")

ROOT = Path(__file__).parents[2]
MODEL = architecture("upsample", xf_width=0)


def convert(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "convert", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture
def files(tmp_path):
    write_tensors(tmp_path / "model.pt", state_dict(MODEL, "float16"))
    (tmp_path / "options.json").write_text(json.dumps({"options": options(MODEL)}))
    return tmp_path


def test_there_and_back_again(files):
    there = convert("to-flax", files / "model.pt", "--output", files / "flax", "--options", files / "options.json")
    assert there.returncode == 0, there.stderr
    assert "sha256 " in there.stdout
    assert there.stdout.splitlines()[-1] == f"upsample model written to {files}/flax"
    back = convert("to-torch", files / "flax", "--output", files / "back.pt")
    assert back.returncode == 0, back.stderr
    assert back.stdout == f"upsample model (params) written to {files}/back.pt\n"
    assert_same_state_dict(read_tensors(files / "back.pt"), state_dict(MODEL, "float16"))


def test_errors_are_one_line_and_exit_code_2(tmp_path):
    failed = convert("to-flax", "nothing", "--output", tmp_path / "flax")
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr.startswith("error: nothing is neither a file nor a published name")
    assert failed.stderr.count("\n") == 1


def test_inspect_tells_kind_parameters_dtypes_and_shapes(files, capsys):
    main(["inspect", str(files / "model.pt"), "--options", str(files / "options.json")])
    lines = capsys.readouterr().out.splitlines()
    count = sum(int(np.prod(shape)) for shape in MODEL.torch_shapes.values())
    assert lines[0].startswith("sha256 ")
    assert "float16   32x6x3x3         input_blocks.0.0.weight" in lines
    assert len(lines) == 2 + len(MODEL.torch_shapes)
    assert lines[-1] == f"upsample model, {count:,} parameters in {len(MODEL.torch_shapes)} float16 tensors"


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


def test_inspect_still_lists_what_does_not_fit(files, capsys):
    arrays = state_dict(MODEL, "float16")
    del arrays["out.2.bias"]
    write_tensors(files / "broken.pt", arrays)
    with pytest.raises(GlideError, match=r"does not fit the upsample model: missing: out.2.bias"):
        main(["inspect", str(files / "broken.pt"), "--options", str(files / "options.json")])
    assert "input_blocks.0.0.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["to-flax", "x.pt"], "the following arguments are required: --output"),
        (["to-torch", "x", "--output", "y.pt", "--ema", "--params"], "not allowed with argument --ema"),
        (["to-torch", "x", "--output", "y.pt", "--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_wrong_usage_is_explained(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
