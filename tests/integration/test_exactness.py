"""What a run promises across time: kills, signals, other meshes and process counts, bad numbers; by command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import jax
import numpy as np
import pytest

from glide_jax.checkpoint import CheckpointStore, complete_steps, load_weights, read_record, save_weights
from glide_jax.images import save_png
from glide_jax.models import Glide
from glide_jax.parallel import make_mesh
from glide_jax.train.program import Program
from tests.checkpoint.states import assert_same_bits
from tests.integration.runs import command, compiled_once, config, log, losses, sent_after, train
from tests.parallel.processes import free_port
from tests.programs import ROOT
from tests.tiny.models import save_model
from tests.tiny.training import MODEL, make_params

ENDLESS = "--config.train.max_steps=1000000"
_begun: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _no_process_left():
    yield
    while _begun:
        process = _begun.pop()
        process.kill()
        process.communicate()


def begin(run_dir, *arguments, **environment):
    process = subprocess.Popen(
        [sys.executable, *command(run_dir, *arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment,
    )  # fmt: skip
    _begun.append(process)
    return process


def wait_until(process, condition):
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def updates(run_dir):
    """How many updates were logged, those that came twice counted twice."""
    log = run_dir / "log.jsonl"
    return log.read_text().count('"grad_norm"') if log.exists() else 0


def ends(processes):
    """Their exit codes, and what they said."""
    results = [(*process.communicate(timeout=600), process.returncode) for process in processes]
    return [code for *_, code in results], "\n".join(out + error for out, error, _ in results)


def states_of(*runs):
    """The whole states of the runs' newest checkpoints."""
    abstract = Program(config(), make_mesh(config().parallel)).abstract_state
    for run_dir in runs:
        with CheckpointStore(run_dir / "checkpoints", keep_last=9) as store:
            yield store.restore(abstract)[0]


def test_a_run_that_is_killed_and_then_told_to_stop_goes_on_bit_for_bit(tmp_path, capsys):
    run_dir, whole = tmp_path / "run", tmp_path / "whole"
    given = ["--config.train.save_every=3", "--config.train.keep_checkpoints=1000000"]
    process = begin(run_dir, ENDLESS, *given)
    wait_until(process, lambda: complete_steps(run_dir / "checkpoints"))
    process.kill()
    process.communicate()
    # It ran on for some updates that no checkpoint has: what they logged must come again.
    before, count = losses(run_dir), updates(run_dir)
    for later in complete_steps(run_dir / "checkpoints"):
        if later > 3:
            (run_dir / "checkpoints" / str(later)).rename(tmp_path / f"set_aside_{later}")

    with sent_after(signal.SIGTERM, lambda: updates(run_dir) > count):
        assert train(run_dir, "--config.train.max_steps=300", *given) == 128 + signal.SIGTERM
    stopped = max(complete_steps(run_dir / "checkpoints"))
    assert stopped < 300
    said = capsys.readouterr().out
    assert f"stopped by SIGTERM after {stopped} steps; run the same command to resume" in said
    assert updates(run_dir) == count + stopped - 3

    # The third time it is told to stop before it trains, in the middle of a compilation of many seconds.
    slow = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "empty"), "JAX_DISABLE_MOST_OPTIMIZATIONS": "false"}
    process = begin(run_dir, ENDLESS, **slow)
    assert any(line == "compiling the training step\n" for line in process.stderr)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    (code,), said = ends([process])
    assert code == 128 + signal.SIGTERM
    assert time.monotonic() - asked < 2
    nothing = "stopped by SIGTERM while compiling the training step; nothing to save"
    assert f"{nothing}; run the same command to resume at step {stopped}" in said

    end = f"--config.train.max_steps={stopped + 1}"
    assert train(run_dir, end) == train(whole, end) == 0
    assert_same_bits(*states_of(run_dir, whole))
    assert losses(run_dir) == before | losses(whole)
    assert {step: before[step] for step in range(1, 4)} == {step: losses(whole)[step] for step in range(1, 4)}
    records = [read_record(folder) for folder in (run_dir, whole)]
    assert records[0]["position"] == records[1]["position"] == 8 * (stopped + 1)
    # The time between the starts counts, the updates that were lost do not.
    assert 0 < records[0]["goodput"]["productive"] < time.time() - records[0]["goodput"]["first_start"]


def test_two_processes_train_as_one_does_share_checkpoints_with_it_and_stop_together(whole_run, tmp_path):
    both, alone = (shutil.copytree(whole_run, tmp_path / name) for name in ("both", "alone"))
    flags = ["--num_processes=2", f"--coordinator_address=127.0.0.1:{free_port()}", "--config.parallel.data=1"]
    buckets = "--config.data.buckets=('8x8', '8x12')"  # all are squares; the processes agree on how many there are
    given = [ENDLESS, *flags, "--config.parallel.fsdp=2", buckets]
    # One's clock may be ahead: both must take the same share of the time for used.
    given.append("--config.train.max_minutes=1000")
    processes = [begin(both, *given, f"--process_id={i}", JAX_PLATFORMS="cpu") for i in range(2)]
    wait_until(processes[1], lambda: updates(both) > 9)
    processes[1].send_signal(signal.SIGTERM)
    codes, said = ends(processes)
    assert codes == [143, 143], said
    stopped = max(losses(both))
    assert complete_steps(both / "checkpoints") == [6, stopped]
    used = log(both, "time_used")
    assert 0 < used[7] < used[stopped] <= read_record(both)["minutes"] / 1000

    end = f"--config.train.max_steps={stopped + 1}"
    assert train(both, end, buckets) == train(alone, end, buckets) == 0
    ours, theirs = losses(both), losses(alone)
    assert sorted(ours) == sorted(theirs) == list(range(1, stopped + 2))
    for step in (7, 8, 9, 10, stopped + 1):
        np.testing.assert_allclose(ours[step], theirs[step], rtol=1e-5, err_msg=f"update {step}")


def test_a_run_that_only_skips_stops_with_its_state_and_its_examples_kept(tmp_path, capsys):
    weights = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), make_params())
    record = {"model": asdict(MODEL), "diffusion": asdict(config().diffusion)}
    save_weights(tmp_path / "broken", weights, record)
    run_dir = tmp_path / "run"
    given = [f"--config.init_from={tmp_path / 'broken'}", "--config.train.max_skipped_updates=1"]
    assert train(run_dir, *given, "--config.train.max_steps=6") == 2
    assert "2 steps in a row were skipped" in capsys.readouterr().err.strip().splitlines()[-1]
    lines = [json.loads(line) for line in (run_dir / "skipped.jsonl").read_text().splitlines()]
    assert len(lines) >= 2
    assert all(len(line["index"]) == len(line["captions"]) == 8 for line in lines)
    (step,) = complete_steps(run_dir / "checkpoints")
    assert step >= lines[-1]["step"]


def test_a_run_with_muon_goes_on_bit_for_bit(tmp_path):
    given = ["--config.train.optimizer.kind=muon", "--config.train.optimizer.learning_rate=0.01"]
    # Of all kernels it would be twice the program.
    given += ["--config.train.trainable=text", "--config.data.validation_path="]
    given.append(f"--config.init_from={save_model(tmp_path / 'base', MODEL)}")
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    with compiled_once():
        for run_dir, steps in ((stopped, 1), (stopped, 2), (whole, 2)):
            assert train(run_dir, *given, f"--config.train.max_steps={steps}") == 0
    assert losses(stopped) == losses(whole)
    weights = [load_weights(run_dir, Glide(MODEL).abstract_params(), prefer="params") for run_dir in (stopped, whole)]
    assert_same_bits(*weights)


def test_a_run_with_buckets_goes_on_bit_for_bit(tmp_path, capsys):
    folder = tmp_path / "images"
    for i, side in enumerate([8] * 9 + [12] * 7):
        pixels = np.random.default_rng(i).integers(0, 256, (8, side, 3), np.uint8)
        save_png(folder / f"{i}.png", pixels)
        (folder / f"{i}.txt").write_text(f"number {i}")
    given = ["--config.data.source=folder", f"--config.data.path={folder}", "--config.data.buckets=('8x8', '8x12')"]
    given += ["--config.train.max_steps=6", "--config.train.save_every=3"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert train(whole, *given) == 0
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "6")
    expected = losses(resumed)
    assert train(resumed, *given) == 0
    assert updates(resumed) == updates(whole) + 3
    said = capsys.readouterr().err
    assert "compiling the training step for 8x12, 2 of 2: 7 images" in said
    assert "warning" not in said
    assert losses(resumed) == expected
    pixels = log(whole, "pixels")
    assert set(pixels.values()) == {64, 96}
    assert log(resumed, "pixels") == pixels
    assert [read_record(run_dir)["position"] for run_dir in (resumed, whole)] == [48, 48]
