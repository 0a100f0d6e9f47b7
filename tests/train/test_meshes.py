"""Eight devices compute what one computes, wherever the state lies, and move no more than they must."""

import json

import jax
import numpy as np
import pytest

from tests.parallel.processes import ROOT, run
from tests.tiny.training import compiled_step, make_config, make_params, make_program
from tests.train.meshes import two_updates

# Every device a replica; two replicas, each split four ways.
MESHES = ("8x1", "2x4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def reports(folder):
    program = f"import runpy; runpy.run_path({str(ROOT / 'tests/train/meshes.py')!r}, run_name='__main__')"
    lines = run(program, folder, *MESHES, devices=8).splitlines()
    return dict(zip(MESHES, map(json.loads, lines), strict=True))


def test_losses_and_weights_equal_those_of_one_device(reports, folder):
    config = make_config()
    program = make_program(config)
    state, metrics = two_updates(compiled_step(config), program.state_from(make_params()), program.mesh)
    state = program.packing.unpack_state(state)
    for mesh in MESHES:
        for ours, theirs in zip(metrics, reports[mesh]["metrics"], strict=True):
            assert theirs == pytest.approx(ours, rel=1e-5), mesh
        for part in ("params", "ema"):
            with np.load(folder / f"{mesh}_{part}.npz") as arrays:
                theirs = list(arrays.values())
            for one, eight in zip(jax.tree.leaves(state[part]), theirs, strict=True):
                assert np.abs(eight - one).max() <= 1e-5 * np.abs(one).max(), (mesh, part)


def test_state_is_split_by_the_fsdp_axis(reports):
    whole, report = reports["8x1"]["state_bytes"], reports["2x4"]
    for part in ("params", "ema", "opt"):
        assert report["state_bytes"][part] == pytest.approx(whole[part] / 4, rel=1e-3)
    # Nearly all arrays: what is left is a bias of three.
    assert report["split_bytes"] > 0.999 * report["param_bytes"]
    assert reports["8x1"]["split"] == 0


def test_pure_data_parallelism_sums_gradients_only(reports):
    report = reports["8x1"]
    assert set(report["collectives"]) == {"all-reduce"}
    assert report["param_bytes"] <= report["collectives"]["all-reduce"] < 1.01 * report["param_bytes"] + 10_000


def test_fsdp_gathers_weights_once_and_sums_gradients_once(reports):
    moved, weights = reports["2x4"]["collectives"], reports["2x4"]["param_bytes"]
    assert moved["all-gather"] == pytest.approx(reports["2x4"]["split_bytes"], rel=0.01)
    # XLA for CPU writes a reduce-scatter as all-reduce and slice.
    assert moved.get("all-reduce", 0) + moved.get("reduce-scatter", 0) < 1.01 * weights + 10_000
    assert moved.get("all-to-all", 0) + moved.get("collective-permute", 0) < 0.01 * weights + 20_000
