"""The command lines as a user runs them, shortened: train, be interrupted, go on, sample, and make mistakes."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
FOOD = "datasets/emoji/train-food-3d.tar"
TINY = [
    "--config=configs/emoji.py",
    "--config.model.image_size=16",
    "--config.model.channel_mult=(1,1)",
    "--config.model.attention_resolutions=(8,)",
    "--config.model.text_ctx=12",
    "--config.model.xf_width=32",
    "--config.model.xf_layers=1",
    "--config.train.batch_size=4",
    "--config.train.log_every=1",
    "--config.train.sample_every=0",
    "--config.train.validate_every=0",
    "--config.train.save_every=0",
    "--config.train.preview.count=2",
    "--config.train.preview.options.num_steps=2",
    f"--config.data.path={FOOD}",
]


def run(script, *arguments, env=None):
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, env=os.environ | (env or {}),
    )  # fmt: skip


def train(run_dir, *arguments):
    return run("train.py", *TINY, f"--config.run_dir={run_dir}", *arguments)


def losses(run_dir):
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    validation = ["--config.data.validation_path=datasets/emoji/val-food-3d.tar", "--config.train.validate_every=6"]
    result = train(run_dir, "--config.train.max_steps=6", *validation)
    assert result.returncode == 0, result.stderr
    return run_dir


def test_a_run_leaves_log_grid_and_checkpoint(whole_run):
    assert sorted(losses(whole_run)) == [1, 2, 3, 4, 5, 6]
    assert any("validation_mse" in line for line in (whole_run / "log.jsonl").read_text().splitlines())
    assert (whole_run / "samples" / "grid_00000006.png").stat().st_size > 0
    assert list((whole_run / "tensorboard").iterdir())
    assert [p.name for p in (whole_run / "checkpoints").iterdir()] == ["6"]


@pytest.mark.slow
def test_the_published_page_trains_on_the_embedded_shards_with_tiny_widths(tmp_path):
    path = "datasets/emoji/train-{animals,food,travel,objects,activities}-{3d,flat,drawing}.tar"
    given = ["--config=configs/base64.py:tiny", f"--config.data.path={path}", f"--config.run_dir={tmp_path / 'run'}"]
    shorter = ["--config.train.max_steps=1", "--config.train.batch_size=2"]  # bfloat16 is slow on CPUs
    preview = ["--config.train.preview.count=1", "--config.train.preview.options.num_steps=2"]
    result = run("train.py", *given, *shorter, *preview)
    assert result.returncode == 0, result.stderr
    (loss, norm), *more = losses(tmp_path / "run").values()
    assert 0.5 < loss < 2
    assert 0 < norm < 100
    assert not more
    # Only the 784 pictures of the 3-D style are 256 px wide, as the page asks.
    assert '"data/usable": 784' in (tmp_path / "run" / "log.jsonl").read_text()


def test_ctrl_c_saves_and_the_same_command_goes_on_exactly(whole_run, tmp_path):
    run_dir = tmp_path / "split"
    command = [sys.executable, "train.py", *TINY, f"--config.run_dir={run_dir}", "--config.train.max_steps=6"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while (time.monotonic() < deadline and not (run_dir / "log.jsonl").exists()) or not losses(run_dir):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode in (0, 130), err
    if process.returncode == 130:
        assert "run the same command to go on" in out
    result = train(run_dir, "--config.train.max_steps=6")
    assert result.returncode == 0, result.stderr
    assert losses(run_dir) == losses(whole_run)


def test_training_may_start_from_another_checkpoint(whole_run, tmp_path):
    result = train(tmp_path / "fresh", "--config.train.max_steps=1")
    assert result.returncode == 0, result.stderr
    result = train(tmp_path / "tuned", "--config.train.max_steps=1", f"--config.init_from={whole_run}")
    assert result.returncode == 0, result.stderr
    fresh, tuned = (losses(tmp_path / name)[1][0] for name in ("fresh", "tuned"))
    assert losses(whole_run)[1][0] == fresh
    assert tuned != fresh
    result = train(tmp_path / "wide", f"--config.init_from={whole_run}", "--config.model.num_channels=32")
    assert result.returncode == 2
    assert "num_channels: 64 there, 32 here" in result.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "wide").exists()


def test_fine_tuning_shows_what_it_began_with_and_what_came_of_it(whole_run, tmp_path):
    def validation(run_dir):
        lines = map(json.loads, (run_dir / "log.jsonl").read_text().splitlines())
        return {line["step"]: line["validation_mse"] for line in lines if "validation_mse" in line}

    validated = ["--config.data.validation_path=datasets/emoji/val-food-3d.tar", "--config.train.validate_every=2"]
    given = [*validated, f"--config.init_from={whole_run}", "--config.train.optimizer.ema_decay=0.5"]
    assert train(tmp_path, *given, "--config.train.max_steps=2").returncode == 0
    # It goes on to the end, and still knows the beginning.
    result = train(tmp_path, *given, "--config.train.max_steps=4")
    assert result.returncode == 0, result.stderr
    found = validation(tmp_path)
    assert sorted(found) == [0, 2, 4]
    assert found[0] == pytest.approx(validation(whole_run)[6], rel=1e-5)
    assert f"validation loss {found[0]:.4f} before, {found[4]:.4f} after" in result.stdout
    assert "done: 4 updates; before_after.png and the grids are in" in result.stdout
    names = ("data_00000000", "grid_00000000", "grid_00000004")
    sheets = [Image.open(tmp_path / "samples" / f"{name}.png") for name in names]
    both = np.asarray(Image.open(tmp_path / "samples" / "before_after.png"))
    width = sheets[0].width
    for number, sheet in enumerate(sheets):
        left = 4 + number * (width + 4)
        assert (both[4 : 4 + sheet.height, left : left + width] == np.asarray(sheet)).all()


def sample(checkpoint, output, *arguments):
    return run("sample.py", "--checkpoint", checkpoint, "--output", output, "--num_steps", 3, *arguments)


def test_sampling_is_the_same_in_any_batch(whole_run, tmp_path):
    prompts = ["--prompt", "a 3d render of a banana", "--prompt", "a 3d render of a cherry"]
    for name, size in (("one", 1), ("three", 3)):
        result = sample(whole_run, tmp_path / name, *prompts, "--num_samples", 2, "--seed", 5, "--batch_size", size)
        assert result.returncode == 0, result.stderr
    for i in range(4):
        one, three = (np.asarray(Image.open(tmp_path / name / f"{i:04d}.png"), np.int16) for name in ("one", "three"))
        assert one.shape == (16, 16, 3)
        close = np.abs(one - three) <= 1
        assert close.mean() > 0.999
    picture = Image.open(tmp_path / "one" / "0002.png")
    assert picture.text["prompt"] == "a 3d render of a cherry"
    assert picture.text["seed"] == "5"
    assert (tmp_path / "one" / "grid.png").exists()


def test_samplers_are_compared_in_one_labelled_grid(whole_run, tmp_path):
    result = sample(whole_run, tmp_path, "--prompt", "a 3d render of a banana", "--compare", "ddim,dpm++", "--steps",
                    "2,4,5")  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if " steps " in line]
    assert [line.rsplit(maxsplit=2)[0] for line in lines] == [
        f"{sampler} {steps} steps" for sampler in ("ddim", "dpm++") for steps in (2, 4, 5)
    ]
    height, width, _ = np.asarray(Image.open(tmp_path / "comparison.png")).shape
    assert width > 3 * 128
    assert height > 2 * 128


def test_image_to_image_from_the_command_line(whole_run, tmp_path):
    Image.new("RGB", (50, 30), (255, 0, 0)).save(tmp_path / "red.png")
    arguments = ["--prompt", "a 3d render of a banana", "--init_image", tmp_path / "red.png", "--num_steps", 10,
                 "--sampler", "dpmpp_2m", "--guidance_scale", 2]  # fmt: skip
    for strength in (0, 0.5):
        result = sample(whole_run, tmp_path / str(strength), *arguments, "--strength", strength)
        assert result.returncode == 0, result.stderr
    same, changed = (Image.open(tmp_path / name / "0000.png") for name in ("0", "0.5"))
    assert (np.asarray(same) == [255, 0, 0]).all()
    assert (np.asarray(changed) != [255, 0, 0]).any()
    written = changed.text
    expected = {"sampler": "dpmpp_2m", "num_steps": "10", "schedule": "karras", "guidance_scale": "2.0",
                "strength": "0.5", "seed": "0"}  # fmt: skip
    assert {name: written[name] for name in expected} == expected
    assert written["checkpoint"] == str(whole_run)


def broken_shard(path, kind):
    """A copy of a real shard with one fault in it."""
    with tarfile.open(ROOT / FOOD) as source, tarfile.open(path, "w") as target:
        for i, member in enumerate(source.getmembers()[:60]):
            data = source.extractfile(member).read()
            if kind == "corrupt" and i < 3 and not member.name.endswith((".txt", ".json")):
                data = data[: len(data) // 3]
            if kind == "empty" and i < 6 and member.name.endswith(".txt"):
                data = b""
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


@pytest.mark.parametrize("kind", ["corrupt", "truncated", "empty"])
def test_faulty_shards_are_counted_and_do_not_end_training(kind, tmp_path):
    broken_shard(tmp_path / "shard.tar", kind)
    result = train(tmp_path / "run", "--config.train.max_steps=6", f"--config.data.path={tmp_path / 'shard.tar'}",
                   "--config.data.bad_share=0.5")  # fmt: skip
    assert result.returncode == 0, result.stderr
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert set(last) - {"step", "time", "data/usable", "data/read"}, f"the fault is not in the counters {last}"
    assert "samples left out: " in result.stdout


MISTAKES = {
    "missing shard": (["--config.data.path=/nowhere/a.tar"], "/nowhere/a.tar does not exist"),
    "no data": (["--config.data.path="], "--config.data.path"),
    "wrong key": (["--config.train.batchsize=8"], "batch_size"),
    "wrong type": (["--config.train.batch_size=many"], "batch_size"),
    "impossible value": (["--config.train.batch_size=0"], "train.batch_size must be at least 1"),
    "unwritable folder": (["--config.run_dir=/dev/null/x"], "cannot write to /dev/null/x"),
    "half precision": (["--config.train.dtype=float16"], "bfloat16"),
    "positional argument": (["foo"], "unexpected argument"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_clear_line(mistake, tmp_path):
    arguments, expected = MISTAKES[mistake]
    result = train(tmp_path / "run", *arguments)
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert expected in lines[-1]
    assert "Traceback" not in result.stderr


def test_a_checkpoint_of_another_size_is_refused(whole_run):
    before = sorted(p.name for p in whole_run.rglob("*"))
    result = train(whole_run, "--config.model.num_channels=32")
    assert result.returncode == 2
    assert "num_channels: 64 there, 32 here" in result.stderr.strip().splitlines()[-1]
    assert sorted(p.name for p in whole_run.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--prompt", "x", "--sampler", "ddmi"], "did you mean"),
        (["--prompt", "x", "--timestep_respacing", "ddim49"], "exactly 49"),
        ([], "nothing to draw"),
        (["--prompt_file", "/nowhere.txt"], "/nowhere.txt"),
        (["--prompt", "x", "--eta", "0.5", "--sampler", "dpmpp_2m"], "has no eta"),
        (["--prompt", "x", "--compare", "ddim", "--steps", "ten"], "--steps"),
        (["--prompt", "x", "--image", "/nowhere.png", "--mask", "/nowhere.png"], "cannot inpaint"),
    ],
)
def test_sampling_mistakes_get_one_clear_line(whole_run, tmp_path, arguments, expected):
    result = sample(whole_run, tmp_path, *arguments)
    assert result.returncode == 2
    assert expected in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_missing_checkpoint_gets_one_clear_line(tmp_path):
    result = sample(tmp_path / "none", tmp_path, "--prompt", "x")
    assert result.returncode == 2
    assert "no checkpoint at" in result.stderr.strip().splitlines()[-1]
