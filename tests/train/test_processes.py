"""What several processes must have in common, and how they end, in two real ones."""

from flax.traverse_util import flatten_dict

from glide_jax.options import nested
from glide_jax.train import RunConfig, processes
from tests.parallel.processes import free_port, start

TWO_PROCESSES = r"""
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from glide_jax.parallel import *
port, number, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
initialize_from_environment("127.0.0.1:" + port, 2, number)

from jax.experimental import multihost_utils
from glide_jax.data import DataConfig
from glide_jax.errors import GlideError
from glide_jax.train import RunConfig, processes
processes._SECONDS_TO_APPEAR = 1.0

def shared(check, *arguments):
    try:
        check(*arguments)
    except SharedError as error:
        print(str(error).encode(errors="backslashreplace").decode(), flush=True)
    else:
        print("passed", flush=True)

def only(failing):
    with together(f"only {failing}"):
        if number == failing:
            raise GlideError(f"broken at {number} \udcff")

for failing in (1, 0, None):
    shared(only, failing)

for each in (folder / "common", folder / f"of {number}"):
    each.mkdir(exist_ok=True)
    shared(processes.check_shared, each)
    assert number or not list(each.iterdir())

config = RunConfig(data=DataConfig(path=f"at/{number}"), run_dir="runs")
other = replace(config, train=replace(config.train, seed=number, max_steps=5 + number))
data = SimpleNamespace(examples_per_epoch=5, fingerprint=7)
shared(processes.check_alike, config, data, [1, 2])
shared(processes.check_alike, other, data, [1, 2])
shared(processes.check_alike, replace(config, run_dir=f"runs/{number}"), data, [1, 2])
shared(processes.check_alike, config, data, [1, 2][number:])
shared(processes.check_alike, config, SimpleNamespace(examples_per_epoch=5, fingerprint=number), None)
shared(processes.check_alike, config, SimpleNamespace(examples_per_epoch=number, fingerprint=7), None)

multihost_utils.sync_global_devices("once, as a program's later calls raise other errors")
with ending_alone():
    if number == 1:
        raise GlideError("only here")
    multihost_utils.sync_global_devices("nobody else comes")
"""


def test_options_in_which_machines_may_differ_exist():
    assert flatten_dict(nested(RunConfig()), sep=".").keys() >= processes.MAY_DIFFER


def test_processes_fail_together_and_none_waits_for_one_that_fails_alone(tmp_path):
    port = free_port()
    two = [start(TWO_PROCESSES, port, number, tmp_path) for number in range(2)]
    try:
        second, errors = two[1].communicate(timeout=100)
        assert (two[1].returncode, errors.splitlines()[-1]) == (2, "error: only here"), errors
        first, errors = two[0].communicate(timeout=100)
        assert two[0].returncode == 1
        assert errors.splitlines()[-1].startswith("error: another process may have ended, see what"), errors
    finally:
        for process in two:
            process.kill()
    second, first = ([line for line in text.splitlines() if "Gloo" not in line] for text in (second, first))
    unshared = f"{tmp_path}/of 1 is not on storage that all processes share; change --config.run_dir"
    same = [
        "passed",
        "the processes have different --config.train.max_steps, --config.train.seed; start all with the same",
        "the processes have different paths of the run folder; start all with the same",
        "the processes have different batches of validation: [2, 1]; start all with the same",
        "the processes have different images in their shards, folders or buckets; start all with the same",
        "the processes have different images: [0, 1]; start all with the same",
    ]
    told = ["passed", "passed"]
    assert second == [r"broken at 1 \udcff", r"process 0: broken at 0 \udcff", *told, unshared, *same]
    assert first == [r"process 1: broken at 1 \udcff", r"broken at 0 \udcff", *told, f"process 1: {unshared}", *same]
