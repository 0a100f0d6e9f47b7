"""A run whose newest checkpoint is damaged resumes from the one before, and says so."""

import shutil
from dataclasses import asdict

import jax.numpy as jnp
import pytest

from glide_jax.checkpoint import CheckpointStore, save_weights
from glide_jax.diffusion.schedules import DiffusionConfig
from glide_jax.errors import GlideError
from glide_jax.train.config import RunConfig
from glide_jax.train.start import StartPoint
from tests.parallel.processes import finish, free_port, start
from tests.tiny.training import MODEL, make_config, make_params, make_program, make_state


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run folder with checkpoints after updates 1 and 2, of which the newer has one wrong bit; not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    record = {"model": asdict(MODEL), "diffusion": asdict(DiffusionConfig())}
    state = make_state(make_config(), make_params())
    with CheckpointStore(folder / "checkpoints") as store:
        for step in (1, 2):
            store.save(step, state | {"step": jnp.int32(step)}, record | {"position": 8 * step})
    data = max((folder / "checkpoints" / "2" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 4
    data.write_bytes(content)
    return folder


@pytest.fixture
def run(written, tmp_path):
    """The configuration of such a run in `tmp_path`."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return RunConfig(run_dir=str(tmp_path), model=MODEL, train=make_config())


def test_the_step_before_is_resumed_from_and_the_damaged_one_is_set_aside(run, tmp_path, capfd):
    folder = tmp_path / "checkpoints"
    point = StartPoint.of(run)
    assert (point.step, point.position) == (1, 8)
    error = capfd.readouterr().err
    assert error.startswith(f"checkpoint {folder / '2'} is damaged: state/")
    assert error.endswith("is not what was written; resuming from step 1\n")
    assert {path.name for path in folder.iterdir()} == {"1", "2"}, "another run may have the folder open"
    with CheckpointStore(folder) as store:
        state = point.state(make_program(run.train), store)
    assert int(state["step"]) == 1
    assert {path.name for path in folder.iterdir()} == {"1", "2.damaged"}


def test_a_run_all_of_whose_checkpoints_are_damaged_does_not_begin_anew(run, tmp_path):
    (tmp_path / "checkpoints" / "1" / "hashes.json").write_text("")
    with pytest.raises(GlideError, match=r"^checkpoint .*/2 is damaged: .*; so are all others in .*/checkpoints$"):
        StartPoint.of(run)


def test_a_checkpoint_without_data_position_is_one_line(run, tmp_path):
    record = {"model": asdict(run.model), "diffusion": asdict(run.diffusion)}
    save_weights(tmp_path / "checkpoints" / "3", {"kernel": jnp.zeros(2)}, record)
    with pytest.raises(GlideError, match=r"^checkpoint 3 of .* is not from a training run: its record has no"):
        StartPoint.of(run)


TWO_PROCESSES = """
import sys
from pathlib import Path
import numpy as np
from jax.experimental import multihost_utils
from glide_jax.checkpoint import CheckpointStore
from glide_jax.errors import GlideError
from glide_jax.parallel import initialize_from_environment
initialize_from_environment(sys.argv[2], 2, int(sys.argv[3]))
from glide_jax.train.start import StartPoint
from glide_jax.train.config import RunConfig
from tests.tiny.training import MODEL, make_config

run = Path(sys.argv[1])
point = StartPoint.of(RunConfig(run_dir=str(run), model=MODEL, train=make_config()))
assert (point.step, point.position) == (1, 8)
with CheckpointStore(run / "checkpoints") as store:
    store.set_aside(point.damaged)
    assert store.steps() == [1]
    multihost_utils.sync_global_devices("seen")
    if sys.argv[3] == "0":
        run.rename(run.with_name("moved"))
    try:
        store.save(2, {"params": np.ones(2)}, {})
    except GlideError as error:
        print(error)
"""


def test_two_processes_resume_from_one_step_and_notice_together_that_the_folder_is_gone(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "checkpoints").rename(tmp_path / "run" / "checkpoints")
    address = f"127.0.0.1:{free_port()}"
    for process in [start(TWO_PROCESSES, tmp_path / "run", address, i) for i in range(2)]:
        assert "is no longer the folder that this run began to write to" in finish(process)
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]
    assert {path.name for path in (tmp_path / "moved" / "checkpoints").iterdir()} == {"1", "2.damaged"}
