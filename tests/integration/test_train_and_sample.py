"""The command lines as a user runs them, shortened: train, be interrupted, go on, sample, and make mistakes."""

import io
import json
import signal
import tarfile
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from glide_jax.checkpoint import complete_steps, read_record
from glide_jax.images import save_png
from glide_jax.sample import Pipeline, choose, cli, parse_with_settings
from glide_jax.train import loop, program
from glide_jax.train.config import DistillConfig
from glide_jax.train.distill import student_settings
from tests.integration.runs import FOOD, log, losses, sent_after, train
from tests.programs import ROOT, call, run
from tests.tiny.models import UPSAMPLER, save_model
from tests.tiny.training import MODEL, SIDE, compiled_step, timed_config


def test_a_run_leaves_log_grid_and_checkpoint(whole_run):
    assert sorted(log(whole_run, "validation_mse")) == [6]
    assert (whole_run / "samples" / "grid_00000006.png").stat().st_size > 0
    assert list((whole_run / "tensorboard").iterdir())
    assert [p.name for p in (whole_run / "checkpoints").iterdir()] == ["6"]


def test_fine_tuning_outlives_ctrl_c_and_shows_what_it_began_with_and_what_came_of_it(whole_run, tmp_path, capsys):
    given = [f"--config.init_from={whole_run}", "--config.train.validate_every=1000000"]
    with sent_after(signal.SIGINT, lambda: (tmp_path / "log.jsonl").exists() and losses(tmp_path)):
        assert train(tmp_path, *given, "--config.train.max_steps=300") == 128 + signal.SIGINT
    stopped = max(losses(tmp_path))
    assert stopped < 300
    assert f"stopped by SIGINT after {stopped} steps; run the same command to resume" in capsys.readouterr().out
    assert losses(tmp_path)[1] != losses(whole_run)[1]
    # It goes on to the end, and still knows the beginning.
    last = stopped + 2
    assert train(tmp_path, *given, f"--config.train.max_steps={last}") == 0
    assert sorted(losses(tmp_path)) == list(range(1, last + 1))
    found, out = log(tmp_path, "validation_mse"), capsys.readouterr().out
    assert sorted(found) == [0, last]
    assert found[0] == pytest.approx(log(whole_run, "validation_mse")[6], rel=1e-5)
    assert f"validation loss {found[0]:.4f} before, {found[last]:.4f} after" in out
    assert f"done: {last} steps; before_after.png and the sample grids are in" in out
    assert out.endswith(f"\ngenerate with it: python sample.py --checkpoint {tmp_path} --prompt TEXT\n")
    names = ("data_00000000", "grid_00000000", f"grid_{last:08}")
    sheets = [Image.open(tmp_path / "samples" / f"{name}.png") for name in names]
    both = np.asarray(Image.open(tmp_path / "samples" / "before_after.png"))
    width = sheets[0].width
    for number, sheet in enumerate(sheets):
        left = 4 + number * (width + 4)
        assert (both[4 : 4 + sheet.height, left : left + width] == np.asarray(sheet)).all()


@pytest.mark.usefixtures("whole_run")
def test_a_run_ends_by_time_with_its_cosine_and_goes_on_when_given_more(tmp_path, capsys):
    given = [
        "--config.train.max_steps=1000000", "--config.train.optimizer.lr_schedule=cosine",
        "--config.train.log_every=1", "--config.train.max_minutes",
    ]  # fmt: skip
    compiled_step(timed_config())  # its time would count, as that of what `whole_run` compiles
    assert train(tmp_path, *given, 0.1) == 0
    rates, used = (log(tmp_path, name) for name in ("learning_rate", "time_used"))
    steps = sorted(used)
    assert f"done: {steps[-1]} steps" in capsys.readouterr().out
    assert steps == list(range(1, steps[-1] + 1))
    assert 0 < used[1] < 1
    for step in steps:
        assert rates[step] == pytest.approx((1 + np.cos(np.pi * min(used[step], 1))) / 2, abs=1e-4)
    assert [used[step] for step in steps] == sorted(used.values())
    # Whether to stop is seen a step late, while the next one is under way.
    assert used[steps[-1]] >= 1
    assert sum(share >= 1 for share in used.values()) <= 2
    assert (tmp_path / "samples" / f"grid_{steps[-1]:08}.png").exists()
    record = read_record(tmp_path)
    assert (record["step"], record["minutes"] >= 0.1) == (steps[-1], True)

    assert train(tmp_path, *given, 0.1) == 0
    assert "raise --config.train.max_minutes to train on" in capsys.readouterr().out
    assert train(tmp_path, *given, 2, f"--config.train.max_steps={steps[-1] + 1}") == 0
    assert log(tmp_path, "time_used")[steps[-1] + 1] == pytest.approx(record["minutes"] / 2, abs=0.1)
    assert read_record(tmp_path)["minutes"] > record["minutes"]


def test_few_images_are_trained_on_beside_what_the_model_knows(whole_run, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    Image.new("RGB", (SIDE, SIDE), (200, 0, 0)).save(mine / "a.png")
    (mine / "a.txt").write_text("a zwx")
    given = ["--config.data.source=folder", f"--config.data.path={mine}", "--config.data.validation_path="]
    given += [f"--config.init_from={whole_run}", "--config.train.prior.prompts=('a cat', 'a dog')"]
    given += ["--config.train.prior.count=3", "--config.train.preview.options.num_steps=2"]
    assert train(tmp_path / "run", *given, "--config.train.max_steps=1") == 0
    assert len(list((tmp_path / "run" / "prior").iterdir())) == 6
    assert train(tmp_path / "run", *given, "--config.train.max_steps=2") == 0
    assert sorted(losses(tmp_path / "run")) == [1, 2]
    record = read_record(tmp_path / "run")
    assert record["config"]["data"]["path"] == str(mine)
    assert "done: 2 steps" in capsys.readouterr().out


def test_what_learnt_to_do_with_few_steps_is_sampled_so(tmp_path, capsys):
    base = save_model(tmp_path / "base", MODEL, prediction_type="v_prediction")
    run_dir, merged, file = tmp_path / "run", tmp_path / "merged", tmp_path / "adapters.safetensors"
    given = [f"--config.init_from={base}", "--config.diffusion.prediction_type=v_prediction"]
    given += ["--config.train.lora.rank=2", "--config.train.validate_every=0"]
    given += [f"--config.train.distill.{name}=2" for name in ("num_steps", "teacher_steps")]
    assert train(run_dir, *given, "--config.train.max_steps=2") == 0
    assert sorted(losses(run_dir)) == [1, 2]
    few = student_settings(DistillConfig(num_steps=2))
    assert call("-m", "convert", "merge", run_dir, "--output", merged) == 0
    assert call("-m", "convert", "to-kohya", run_dir, "--output", file) == 0
    adapted = (["--checkpoint", base, "--lora", adapters] for adapters in (run_dir, file))
    for models in (["--checkpoint", run_dir], ["--checkpoint", merged], *adapted):
        assert parse_with_settings(cli.parser(), [*map(str, models), "--prompt", "a"]).settings == few
    assert Pipeline.from_checkpoints(run_dir).settings == few
    assert call("-m", "convert", "shrink", merged, "--output", tmp_path / "small") == 0
    assert choose(str(tmp_path / "small"), None).settings == few
    Pipeline.from_checkpoints(base).save_pretrained(tmp_path / "whole")
    assert Pipeline.from_pretrained(tmp_path / "whole", lora=[run_dir]).settings == few
    assert choose(None, str(merged)).settings == {f"upsampler_{name}": value for name, value in few.items()}
    assert call("sample.py", "--checkpoint", merged, "--prompt", "a cat", "--output", tmp_path / "out") == 0
    entries, main = Image.open(tmp_path / "out" / "0000.png").text, few.keys() - {"guidance"}
    assert {name: entries[name] for name in main} == {name: str(few[name]) for name in main}
    capsys.readouterr()
    assert train(run_dir, *given, "--config.train.max_steps=3", "--config.train.distill.num_steps=3") == 2
    assert "--config.train.distill.num_steps is 2 there, 3 here" in capsys.readouterr().err


def test_a_line_of_the_log_comes_in_time_whatever_its_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_LOG_SECONDS", 0.0)
    assert train(tmp_path, "--config.train.max_steps=3", "--config.train.log_every=1000") == 0
    assert sorted(losses(tmp_path)) == [1, 2, 3]


def too_large(state, batch):
    table = jnp.outer(*2 * [jnp.repeat(batch["index"], 2**20)])
    return state, {"loss": jnp.sort(table, axis=0).sum(dtype=jnp.float32)}


dies_of_it = pytest.mark.skipif(version("jaxlib") >= "0.11", reason="this jaxlib dies of the program on a CPU")


@dies_of_it
def test_a_batch_too_large_for_the_memory_gets_one_clear_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "make_train_step", lambda *_: too_large)
    given = ["--config.train.gradient_accumulation_steps=2", "--config.train.max_steps=3"]
    helping = "try --config.train.gradient_accumulation_steps=4 (the same result, 2 images at a time)"
    shown = assert_one_clear_line(train(tmp_path, *given), f"{helping}, --config.train.remat=dots", capsys)
    assert "GB on each device are needed; RESOURCE_EXHAUSTED: Out of memory" in shown
    assert not complete_steps(tmp_path / "checkpoints")


@dies_of_it
def test_a_validation_too_large_for_the_memory_keeps_the_steps(tmp_path, monkeypatch, capsys):
    make_ready = loop.Trainer._make_ready

    def made_ready(trainer):
        make_ready(trainer)
        trainer.program.validation_step = jax.jit(too_large)

    monkeypatch.setattr(loop.Trainer, "_make_ready", made_ready)
    result = train(tmp_path, "--config.train.max_steps=3", "--config.train.validate_every=2")
    shown = assert_one_clear_line(result, "try --config.train.gradient_accumulation_steps", capsys)
    assert "validating does not fit in the memory of cpu (RESOURCE_EXHAUSTED: Out of memory" in shown
    assert shown.endswith("; the state after step 2 is saved")
    assert complete_steps(tmp_path / "checkpoints") == [2]


def test_a_run_is_sampled_from_a_picture_and_enlarged(whole_run, tmp_path):
    Image.new("RGB", (50, 30), (255, 0, 0)).save(tmp_path / "red.png")
    upsampler = save_model(tmp_path / "upsampler", UPSAMPLER)
    result = run(
        "sample.py", "--checkpoint", whole_run, "--output", tmp_path / "out", "--upsampler", upsampler,
        "--prompt", "a 3d render of a banana", "--prompt", "a 3d render of a cherry", "--num_samples", 2, "--seed", 5,
        "--init_image", tmp_path / "red.png", "--strength", 0.5, "--sampler", "dpmpp_2m", "--num_steps", 4,
        "--guidance_scale", 2, "--upsampler_num_steps", 2, "--animate", tmp_path / "forming.webp",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    pictures = [Image.open(tmp_path / "out" / f"{number:04d}.png") for number in range(4)]
    assert {picture.size for picture in pictures} == {(UPSAMPLER.image_size, UPSAMPLER.image_size)}
    assert len({np.asarray(picture).tobytes() for picture in pictures}) == 4
    expected = {"prompt": "a 3d render of a cherry", "seed": "5", "sampler": "dpmpp_2m", "num_steps": "4",
                "schedule": "karras", "guidance_scale": "2.0", "strength": "0.5", "checkpoint": str(whole_run),
                "upsampler": upsampler, "upsampler_num_steps": "2"}  # fmt: skip
    written = pictures[2].text
    assert {name: written[name] for name in expected} == expected
    with Image.open(tmp_path / "forming.webp") as animation, Image.open(tmp_path / "out" / "grid.png") as last:
        assert animation.n_frames > 1  # equal ones become one
        assert animation.size == last.size
        animation.seek(animation.n_frames - 1)
        assert np.abs(np.asarray(animation.convert("RGB"), int) - np.asarray(last, int)).mean() < 10


def sample(checkpoint, output, *arguments):
    return call("sample.py", "--checkpoint", checkpoint, "--output", output, *arguments)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--animate", "a.avi"], "its name must end with .gif"),
        (["--animate", "a.gif", "--xy", "num_steps=2,3"], "--animate does not go with --xy"),
        (["--animate", "a.gif", "--num_samples", 3, "--batch_size", 2], "raise --batch_size to 3"),
        (["--interpolate", 3], "needs two prompts or more"),
        (["--prompt", "b", "--interpolate", 3, "--num_samples", 2], "leave out --num_samples"),
        (["--prompt_weights", "--attention", "a"], "leave out --prompt_weights, --interpolate and --image"),
        (["--attention", "cat"], "no attention map of 'cat'"),
        (["--prompt_weights", "--prompt", "a (cat:x)"], "brackets must be as (red:1.5)"),
    ],
)
def test_what_cannot_be_shown_is_one_line(given, said, whole_run, tmp_path, capsys):
    assert_one_clear_line(sample(whole_run, tmp_path, "--prompt", "a", *given), said, capsys)


def test_one_prompt_becomes_another(whole_run, tmp_path, capsys):
    for name in ("0002", "0003", "0017", "mine"):
        save_png(tmp_path / f"{name}.png", np.zeros((1, 1, 3), np.uint8))
    way = ["--prompt", "a (3d render:1.5) of a cat", "--prompt", "a dog", "--prompt_weights", "--interpolate", 3]
    assert sample(whole_run, tmp_path, *way, "--num_steps", 2, "--animate", tmp_path / "way.gif") == 0
    said = f"3 images and grid.png are in {tmp_path}\n2 older images are also in {tmp_path}\n"
    assert said in capsys.readouterr().out
    written = []
    for number in range(3):
        with Image.open(tmp_path / f"000{number}.png") as image:
            written.append(image.text)
    first, middle, _ = written
    assert first["prompt"] == "a (3d render:1.5) of a cat"
    assert middle["prompt"] == "50% a (3d render:1.5) of a cat\n50% a dog"
    assert {text["index"] for text in written} == {"0"}, "the same noise"
    assert first["prompt_weights"] == "True"
    with Image.open(tmp_path / "way.gif") as animation:
        assert animation.n_frames == 3


def test_attention_to_words_is_shown_beside_the_images(whole_run, tmp_path):
    given = ["--prompt", "a red cat", "--num_steps", 2, "--attention", "red", "--attention", "Cat"]
    assert sample(whole_run, tmp_path, *given) == 0
    with Image.open(tmp_path / "attention.png") as shown:
        assert 3 * 128 < shown.width < 4 * 128


def test_at_strength_0_the_picture_stays(whole_run, tmp_path):
    Image.new("RGB", (50, 30), (255, 0, 0)).save(tmp_path / "red.png")
    assert sample(whole_run, tmp_path, "--prompt", "a", "--init_image", tmp_path / "red.png", "--strength", 0) == 0
    assert (np.asarray(Image.open(tmp_path / "0000.png")) == [255, 0, 0]).all()


def test_a_random_seed_and_the_settings_are_told(whole_run, tmp_path, capsys):
    start = ["--init_image", tmp_path / "red.png", "--strength", 0]
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    seeds = set()
    for _ in range(2):
        assert sample(whole_run, tmp_path, "--prompt", "a", *start, "--seed", -1, "--guidance_scale", 2) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("settings: "))
        with Image.open(tmp_path / "0000.png") as image:
            seeds.add(image.text["seed"])
            assert line.startswith(f"settings: seed={image.text['seed']} sampler=ddim ")
        assert "guidance_scale=2.0" in line
    assert len(seeds) == 2


def test_samplers_are_compared_in_one_labelled_grid(whole_run, tmp_path, capsys):
    axes = ["--xy", "num_steps=2,4,5", "sampler=ddim,dpm++"]
    assert sample(whole_run, tmp_path, "--prompt", "a banana", *axes) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in said if "warning" in line] == [
        f"warning: num_steps {steps} with schedule leading starts from noise alone at t = {t}"
        for steps, t in ((2, 500), (4, 750), (5, 800))
    ]
    assert [line for line in said if "evaluations" in line] == [
        f"num_steps {steps}, sampler {sampler}: {steps} model evaluations"
        for sampler in ("ddim", "dpm++")
        for steps in (2, 4, 5)
    ]
    height, width, _ = np.asarray(Image.open(tmp_path / "comparison.png")).shape
    assert width > 3 * 128
    assert height > 2 * 128


def test_a_run_is_evaluated(whole_run, tmp_path, capsys):
    given = ["--checkpoint", whole_run, "--prompts", "a cat|a dog", "--output_dir", tmp_path, "--num_steps", 2]
    assert call("evaluate.py", *given) == 0
    said = capsys.readouterr()
    assert "warning: num_steps 2 with schedule leading starts" in said.out + said.err
    for number in range(2):
        with Image.open(tmp_path / f"00000/prompt_{number:03}/image_rank_001.jpg") as picture:
            assert picture.size == (SIDE, SIDE)


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
def test_faulty_shards_are_counted_and_do_not_end_training(kind, tmp_path, capsys):
    broken_shard(tmp_path / "shard.tar", kind)
    data = [f"--config.data.path={tmp_path / 'shard.tar'}", "--config.data.bad_share=0.5"]
    assert train(tmp_path / "run", *data, "--config.train.max_steps=4") == 0
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert set(last) - {"step", "time", "data/usable", "data/read"}, f"the fault is not in the counters {last}"
    assert "skipped samples: " in capsys.readouterr().out


def assert_one_clear_line(code, expected, capsys):
    assert code == 2
    error = capsys.readouterr().err.strip()
    last = error.splitlines()[-1]
    assert "error: " in last
    assert expected in last
    assert "Traceback" not in error
    return last


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
def test_a_mistake_gets_one_clear_line(mistake, tmp_path, capsys):
    arguments, expected = MISTAKES[mistake]
    assert_one_clear_line(train(tmp_path / "run", *arguments), expected, capsys)


def test_too_short_a_run_says_so(tmp_path, capsys):
    given = ["--config.train.max_steps=3", "--config.train.optimizer.warmup_steps=3", "--config.data.path=/nowhere.tar"]
    assert train(tmp_path, *given) == 2
    warning = "warning: the learning rate does not reach its peak within train.max_steps=3, because"
    assert warning in capsys.readouterr().err
    given = ["--config.train.max_steps=3", "--config.train.max_minutes=0.00001"]
    expected = "train.max_minutes=1e-05 are over before the first step: starting took 0."
    assert_one_clear_line(train(tmp_path / "timed", *given), expected, capsys)
    assert not complete_steps(tmp_path / "timed" / "checkpoints")


def test_a_checkpoint_of_another_size_is_refused(whole_run, tmp_path, capsys):
    before = sorted(p.name for p in whole_run.rglob("*"))
    wider = "--config.model.num_channels=64"
    assert_one_clear_line(train(whole_run, wider), "--config.model.num_channels is 32 there, 64 here", capsys)
    assert sorted(p.name for p in whole_run.rglob("*")) == before
    code = train(tmp_path / "wide", f"--config.init_from={whole_run}", wider)
    assert_one_clear_line(code, "--config.model.num_channels is 32 there, 64 here", capsys)
    assert not (tmp_path / "wide").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--prompt", "x", "--sampler", "ddmi"], "did you mean"),
        (["--prompt", "x", "--timestep_respacing", "ddim49"], "exactly 49"),
        ([], "nothing to generate"),
        (["--prompt_file", "/nowhere.txt"], "/nowhere.txt"),
        (["--prompt_file", "/dev/null"], "/dev/null has no prompts: give --prompt"),
        (["--prompt", "x", "--steps", "3"], "unknown option --steps; did you mean --num_steps?"),
        (["--prompt", "x", "--eta", "0.5", "--sampler", "dpmpp_2m"], "has no eta"),
        (["--prompt", "x", "--xy", "num_steps=ten"], "--xy num_steps cannot be 'ten'"),
        (["--prompt", "x", "--image", "/nowhere.png", "--mask", "/nowhere.png"], "cannot inpaint"),
        (["--prompt", "x", "--num_samples", "0"], "--num_samples must be at least 1, not 0"),
        (["--prompt", "x", "--strength", "0.5"], "--strength needs an image to start from: give --init_image FILE"),
        (["--prompt", "x", "--xy", "strength=0.5,1"], "--xy strength needs an image"),
        (["--prompt", "x", "--upsampler_strength", "2"], "upsampler_strength must be in [0, 1], not 2.0"),
        (["--promt", "x"], "unknown option --promt; did you mean --prompt?"),
        (["a cat"], "unexpected argument 'a cat': write --prompt \"...\", with quotes; sample.py --help lists"),
        (["--num_samples", "x"], "argument --num_samples: invalid int value: 'x'; sample.py --help lists"),
    ],
)
def test_sampling_mistakes_get_one_clear_line(whole_run, tmp_path, capsys, arguments, expected):
    assert_one_clear_line(sample(whole_run, tmp_path, *arguments), expected, capsys)


def test_a_missing_checkpoint_gets_one_clear_line(tmp_path, capsys):
    assert_one_clear_line(sample(tmp_path / "none", tmp_path, "--prompt", "x"), "no checkpoint at", capsys)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("full", "step", "shown"),
    [
        # A line is written once the next step is under way.
        ("log.jsonl", 2, "log.jsonl: No space left on device"),
        (
            "samples/.grid_00000002.png.0.tmp",
            2,
            "samples/grid_00000002.png: No space left on device; choose another folder",
        ),
    ],
)
def test_a_full_disk_is_one_line_and_loses_no_step(tmp_path, capsys, monkeypatch, full, step, shown):
    monkeypatch.setattr("glide_jax.files.secrets.token_hex", lambda size: "0")
    full = tmp_path / full
    full.parent.mkdir(exist_ok=True)
    full.symlink_to("/dev/full")
    steps = ["--config.train.max_steps=4", "--config.train.log_every=1", "--config.train.sample_every=2"]
    code = train(tmp_path, *steps)
    (saved,) = (int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert saved == step
    assert_one_clear_line(code, f"{tmp_path}/{shown}; the state after step {step} is saved", capsys)
    full.unlink(missing_ok=True)
    assert train(tmp_path, *steps) == 0
    assert min(set(losses(tmp_path)) - set(range(step + 1))) == step + 1
