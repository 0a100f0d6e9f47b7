"""Eight devices compute what one computes, wherever the state lies, and move no more than they must."""

import json

import pytest

from tests.parallel.processes import ROOT, run

# Quick to compile; the numbers are the same to rounding.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"


@pytest.fixture(scope="module")
def reports():
    program = f"import runpy; runpy.run_path({str(ROOT / 'tests/train/meshes.py')!r}, run_name='__main__')"
    lines = run(program, "8x1", "1x8", "2x4", XLA_FLAGS=FLAGS).splitlines()
    return {report["mesh"]: report for report in map(json.loads, lines)}


@pytest.mark.parametrize("mesh", ["8x1", "1x8", "2x4"])
def test_losses_and_weights_equal_those_of_one_device(reports, mesh):
    for name in ("loss", "grad_norm", "params", "ema"):
        assert reports[mesh][name] <= 1e-5, (name, reports[mesh])


def test_state_is_split_by_the_fsdp_axis(reports):
    whole = reports["8x1"]["state_bytes"]
    for mesh, ways in (("1x8", 8), ("2x4", 4)):
        report = reports[mesh]
        for part in ("params", "ema", "opt"):
            assert report["state_bytes"][part] == pytest.approx(whole[part] / ways, rel=1e-3)
        # Nearly all arrays: what is left is a bias of three.
        assert report["split_bytes"] > 0.999 * report["param_bytes"]
    assert reports["8x1"]["split"] == 0


def test_pure_data_parallelism_sums_gradients_only(reports):
    report = reports["8x1"]
    assert set(report["collectives"]) == {"all-reduce"}
    assert report["param_bytes"] <= report["collectives"]["all-reduce"] < 1.01 * report["param_bytes"] + 10_000


@pytest.mark.parametrize("mesh", ["1x8", "2x4"])
def test_fsdp_gathers_weights_once_and_sums_gradients_once(reports, mesh):
    moved = reports[mesh]["collectives"]
    weights = reports[mesh]["param_bytes"]
    assert moved["all-gather"] == pytest.approx(reports[mesh]["split_bytes"], rel=0.01)
    # XLA for CPU writes a reduce-scatter as all-reduce and slice.
    assert moved.get("all-reduce", 0) + moved.get("reduce-scatter", 0) < 1.01 * weights + 10_000
    assert moved.get("all-to-all", 0) + moved.get("collective-permute", 0) < 0.01 * weights + 20_000
