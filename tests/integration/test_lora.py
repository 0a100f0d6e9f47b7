"""Adapters as their user meets them: trained, resumed, sampled with, mixed, merged, and mistaken for others.

These are DoRA's; LoRA's go the same way in test_train_and_sample.py.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from glide_jax.checkpoint import load_weights, read_record
from glide_jax.models import Glide, LoraConfig
from glide_jax.sample import Pipeline
from tests.integration.runs import compiled_once, train
from tests.programs import call
from tests.tiny.models import save_model
from tests.tiny.training import MODEL

STEPS = "--config.train.max_steps="


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("lora") / "base", MODEL)


def given(base):
    quick = ("learning_rate=0.1", "eps=1e-8")
    flags = [f"--config.train.optimizer.{option}" for option in quick]
    return [f"--config.init_from={base}", "--config.train.lora.rank=2", "--config.train.lora.dora=True", *flags]


@pytest.fixture(scope="module")
def run(base):
    run_dir = base + "-lora"
    with compiled_once():
        assert train(run_dir, *given(base), STEPS + "4") == 0
    return run_dir


@pytest.fixture(scope="module")
def file(run):
    """The run's adapters as others exchange them."""
    path = f"{run}.safetensors"
    assert call("-m", "convert", "to-kohya", run, "--output", path) == 0
    return path


def images(checkpoint, lora=()):
    return Pipeline.from_checkpoints(checkpoint, lora=lora)("a cat", num_steps=2, seed=1).images.astype(int)


def test_a_checkpoint_has_the_adapters_alone_and_resumes_exactly(base, run, tmp_path):
    record = read_record(run)
    names = json.loads(next(Path(run).rglob("arrays/data.json")).read_text())
    weights = {name for name in names if name.split("/")[0] in ("params", "ema")}
    assert {tuple(name.split("/")[:2]) for name in weights} == {("params", "lora"), ("ema", "lora")}
    assert (record["lora"]["rank"], record["lora"]["dora"], record["lora"]["base"]) == (2, True, base)
    stopped = tmp_path / "run"
    assert train(stopped, *given(base), STEPS + "2") == 0
    assert train(stopped, *given(base), STEPS + "4") == 0
    abstract = {"lora": Glide(MODEL, lora=LoraConfig(rank=2, dora=True)).abstract_params()["lora"]}
    whole, resumed = (load_weights(folder, abstract, prefer="params") for folder in (run, stopped))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, whole, resumed)))
    assert any(np.asarray(leaf).any() for path, leaf in jax.tree.leaves_with_path(whole) if "up" in str(path[-1]))


def test_a_run_is_sampled_alone_or_added_to_its_base_by_any_share(base, run, file, tmp_path):
    plain, adapted = images(base), images(run)
    assert np.abs(plain - adapted).max() > 3
    np.testing.assert_array_equal(images(base, [run]), adapted)
    np.testing.assert_array_equal(images(base, [f"{run}:0"]), plain)
    half = images(base, [f"{run}:0.5"])
    assert (half != plain).any()
    assert (half != adapted).any()
    np.testing.assert_allclose(images(base, [f"{run}:0.5", f"{run}:0.5"]), adapted, atol=1)
    assert call("-m", "convert", "merge", base, "--lora", f"{file}:0.5", "--output", tmp_path / "merged") == 0
    np.testing.assert_allclose(images(tmp_path / "merged"), half, atol=1)
    assert call("-m", "convert", "merge", run, "--output", tmp_path / "whole") == 0
    np.testing.assert_array_equal(images(tmp_path / "whole"), adapted)


def test_sample_py_takes_several_and_notes_them_in_its_images(base, run, file, tmp_path):
    lora = ["--lora", run, "--lora", f"{file}:-0.5"]
    flags = ["--prompt", "a cat", "--num_steps", 2, "--seed", 1, "--output", tmp_path]
    assert call("sample.py", "--checkpoint", base, *lora, *flags) == 0
    image = Image.open(tmp_path / "0000.png")
    assert image.info["lora"] == f"{run} {file}:-0.5"
    np.testing.assert_allclose(np.asarray(image, int), images(base, [f"{run}:0.5"])[0], atol=1)


def test_evaluate_py_takes_them_and_a_resumed_run_keeps_them(base, run, file, tmp_path):
    flags = ["--prompts", "a cat", "--num_steps", 2, "--seed", 1, "--output_dir", tmp_path, "--output_format", "png"]
    assert call("evaluate.py", "--checkpoint", base, "--lora", f"{run}:1.5", f"{file}:-1", *flags) == 0
    (path,) = tmp_path.glob("00000/prompt_*/image_*.png")
    image = Image.open(path)
    assert image.info["lora"] == f"{run}/checkpoints/4:1.5 {file}:-1.0"
    np.testing.assert_allclose(np.asarray(image, int), images(base, [f"{run}:0.5"])[0], atol=1)
    # An image that is missing is generated again with the same adapters, from the settings alone.
    again, before = tmp_path / "00000", path.read_bytes()
    shutil.rmtree(path.parent)
    assert call("evaluate.py", "--resume", again) == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("program", ["sample.py", "merge", "to-torch", "resume", "start"])
def test_adapters_of_other_weights_and_adapters_alone_are_refused_in_one_line(program, base, run, tmp_path, capsys):
    other = save_model(tmp_path / "other", MODEL, seed=2)
    output = ["--output", tmp_path / "out.pt"]
    code = {
        "sample.py": lambda: call("sample.py", "--checkpoint", other, "--lora", run, "--prompt", "a cat"),
        "merge": lambda: call("-m", "convert", "merge", other, "--lora", run, *output),
        "to-torch": lambda: call("-m", "convert", "to-torch", run, *output),
        "resume": lambda: train(run, *given(other), STEPS + "9"),
        "start": lambda: train(tmp_path / "new", *given(run), STEPS + "1"),
    }[program]()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2
    assert "belong to weights of SHA-256" in error or "has adapters" in error
    assert not (tmp_path / "out.pt").exists()


def test_a_run_whose_base_is_gone_names_it(base, run, tmp_path, capsys):
    moved = tmp_path / "elsewhere"
    shutil.copytree(run, moved)
    record = next(moved.rglob("record/data.json"))
    record.write_text(record.read_text().replace(base, str(tmp_path / "gone")))
    for path in moved.rglob("hashes.json"):
        path.unlink()
    assert call("sample.py", "--checkpoint", moved, "--prompt", "a cat") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.endswith(f"which is not there: give --checkpoint BASE --lora {moved}")
    flags = ["--prompt", "a cat", "--num_steps", 2, "--output", tmp_path / "out"]
    assert call("sample.py", "--checkpoint", base, "--lora", moved, *flags) == 0


def test_what_is_left_out_or_no_number_is_one_line(base, run, capsys):
    options = ("--config.train.lora.rank=2", "--config.train.lora.dora=True")
    assert train(run, *options, STEPS + "9") == 2
    assert f"has only adapters: give the weights too, --config.init_from={base}" in capsys.readouterr().err
    assert call("sample.py", "--checkpoint", base, "--lora", f"{run}:nan", "--prompt", "a cat") == 2
    assert "the scale must be a finite number" in capsys.readouterr().err
    for twice in ([run, "--lora", f"{run}:0.5"], [f"{run}@4", "--lora", run]):
        assert call("sample.py", "--checkpoint", *twice, "--prompt", "a cat") == 2
        assert "is already part of" in capsys.readouterr().err
    assert call("-m", "convert", "merge", run, "--lora", run, "--output", run + "-twice") == 2
    assert "is already part of" in capsys.readouterr().err
    assert call("sample.py", "--checkpoint", run, "--lora", base, "--prompt", "a cat") == 2
    assert "has no adapters: it is a whole model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--config.train.lora.rank=3",), "--config.train.lora.rank is 2 there, 3 here"),
        (("--config.train.lora.alpha=7",), "--config.train.lora.alpha is 0.0 there, 7.0 here"),
        (
            ("--config.train.lora.rank=0", "--config.train.lora.dora=False"),
            "--config.train.lora.rank is 2 there, 0 here",
        ),
    ],
)
def test_a_resumed_run_with_other_adapters_names_the_options_that_differ(base, run, options, told, capsys):
    assert train(run, *given(base), *options, STEPS + "9") == 2
    assert f"({told}); give the same or choose another folder" in capsys.readouterr().err


def test_a_dry_run_lists_adapters_by_target(base, tmp_path, capsys):
    assert train(tmp_path / "run", *given(base), "--dry_run") == 0
    out = capsys.readouterr().out
    assert "lora: unet/*/attn/*" in out
    assert "lora: unet/*/*conv" in out
