"""What a run promises across time: kills, signals, other meshes and process counts, bad numbers; by command line."""

import ast
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from configs import emoji
from glide_jax.checkpoint import CheckpointStore, complete_steps, read_record
from glide_jax.config import from_ml_collections
from glide_jax.parallel import make_mesh
from glide_jax.train.program import Program
from tests.checkpoint.states import assert_same_bits
from tests.integration.test_train_and_sample import ROOT, TINY, losses, run
from tests.parallel.processes import free_port

# Smaller still: this file starts a dozen processes.
_SMALLER = {"image_size": "8", "num_channels": "32", "channel_mult": "(1,)"}
TINIEST = [
    *(argument for argument in TINY if argument.split("=")[0].split(".")[-1] not in _SMALLER),
    *(f"--config.model.{name}={value}" for name, value in _SMALLER.items()),
]
SIX = ("--config.train.max_steps=6", "--config.train.save_every=3")


_begun: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _no_process_left():
    yield
    while _begun:
        process = _begun.pop()
        process.kill()
        process.communicate()


def train(run_dir, *arguments):
    return run("train.py", *TINIEST, f"--config.run_dir={run_dir}", *arguments)


def begin(run_dir, *arguments, **environment):
    command = [sys.executable, "train.py", *TINIEST, f"--config.run_dir={run_dir}", *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    _begun.append(process)
    return process


def wait_until(process, condition):
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def state_of(run_dir):
    """The whole state of a run's newest checkpoint."""
    page = emoji.get_config()
    for argument in TINIEST[1:]:
        key, value = argument.removeprefix("--config.").split("=", 1)
        page.update_from_flattened_dict({key: value if key == "data.path" else ast.literal_eval(value)})
    config = from_ml_collections(page)
    with CheckpointStore(run_dir / "checkpoints", keep_last=9) as store:
        return store.restore(Program(config, make_mesh(config.parallel)).abstract_state)[0]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("exact") / "whole"
    result = train(run_dir, *SIX)
    assert result.returncode == 0, result.stderr
    return run_dir


def test_a_killed_run_goes_on_bit_for_bit(whole_run, tmp_path):
    keep_all = "--config.train.keep_checkpoints=1000000"
    process = begin(tmp_path, "--config.train.max_steps=1000000", "--config.train.save_every=3", keep_all)
    wait_until(process, lambda: complete_steps(tmp_path / "checkpoints"))
    process.kill()
    process.communicate()
    # It ran on for some updates that no checkpoint has: what they logged must come again.
    before = losses(tmp_path)
    done = max(complete_steps(tmp_path / "checkpoints"))
    for later in range(6, done + 1, 3):
        (tmp_path / "checkpoints" / str(later)).rename(tmp_path / f"set_aside_{later}")
    result = train(tmp_path, *SIX)
    assert result.returncode == 0, result.stderr
    assert_same_bits(state_of(tmp_path), state_of(whole_run))
    assert losses(tmp_path) == before | losses(whole_run)
    assert {step: before[step] for step in range(1, 4)} == {step: losses(whole_run)[step] for step in range(1, 4)}
    records = [read_record(folder) for folder in (tmp_path, whole_run)]
    assert records[0]["position"] == records[1]["position"] == 24
    # The time between the two starts counts, the updates that were lost do not.
    assert 0 < records[0]["goodput"]["productive"] < time.time() - records[0]["goodput"]["first_start"]


def test_sigterm_saves_at_that_update_and_has_an_exit_code_of_its_own(whole_run, tmp_path):
    process = begin(tmp_path, "--config.train.max_steps=1000000")
    wait_until(process, lambda: (tmp_path / "log.jsonl").exists() and losses(tmp_path))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM, err
    (step,) = complete_steps(tmp_path / "checkpoints")
    assert f"stopped by SIGTERM after {step} updates; run the same command to go on" in out
    assert max(losses(tmp_path)) == step
    result = train(tmp_path, f"--config.train.max_steps={step + 1}")
    assert result.returncode == 0, result.stderr
    assert max(losses(tmp_path)) == step + 1
    common = losses(tmp_path).keys() & losses(whole_run).keys()
    assert {s: losses(tmp_path)[s] for s in common} == {s: losses(whole_run)[s] for s in common}


def together(run_dir, *arguments):
    """Two processes of one device each."""
    address = f"127.0.0.1:{free_port()}"
    flags = ["--num_processes=2", f"--coordinator_address={address}"]
    return [begin(run_dir, *flags, f"--process_id={i}", *arguments, JAX_PLATFORMS="cpu") for i in range(2)]


def ends(processes):
    results = [(*process.communicate(timeout=600), process.returncode) for process in processes]
    return [code for *_, code in results], "\n".join(error for _, error, _ in results)


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for step, pair in ours.items():
        np.testing.assert_allclose(pair, theirs[step], rtol=1e-5, err_msg=f"update {step}")


def test_two_processes_train_as_one_does_and_share_checkpoints_with_it(whole_run, tmp_path):
    codes, errors = ends(together(tmp_path, *SIX, "--config.parallel.data=1", "--config.parallel.fsdp=2"))
    assert codes == [0, 0], errors
    assert_close(losses(tmp_path), losses(whole_run))
    # Written by two, read by one; then the reverse.
    result = train(tmp_path, "--config.train.max_steps=7")
    assert result.returncode == 0, result.stderr
    codes, errors = ends(together(tmp_path, "--config.train.max_steps=8"))
    assert codes == [0, 0], errors
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_notice_to_one_of_two_processes_stops_both_after_the_same_update(tmp_path):
    processes = together(tmp_path, "--config.train.max_steps=1000000")
    wait_until(processes[1], lambda: (tmp_path / "log.jsonl").exists() and losses(tmp_path))
    processes[1].send_signal(signal.SIGTERM)
    codes, errors = ends(processes)
    assert codes == [143, 143], errors
    assert complete_steps(tmp_path / "checkpoints") == [max(losses(tmp_path))]


def test_a_run_that_only_skips_stops_with_its_state_and_its_examples_kept(tmp_path):
    result = train(
        tmp_path, *SIX, "--config.train.optimizer.learning_rate=1e30", "--config.train.max_skipped_updates=1"
    )
    assert result.returncode == 2
    assert "2 updates in a row were skipped" in result.stderr.strip().splitlines()[-1]
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert len(lines) >= 2
    assert all(len(line["index"]) == len(line["captions"]) == 4 for line in lines)
    (step,) = complete_steps(tmp_path / "checkpoints")
    assert step >= lines[-1]["step"]
