import errno
import gc
import os
import resource
import signal
import threading
import time
from contextlib import contextmanager, suppress

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.checkpoint import CheckpointStore, read_record, save_weights
from glide_jax.checkpoint.step_format import PendingSave
from glide_jax.checkpoint.store import best_steps, steps_to_keep
from glide_jax.errors import GlideError
from tests.checkpoint.states import abstract, assert_same_bits, tiny_state
from tests.parallel.processes import start


def test_restores_every_bit_and_the_record(tmp_path):
    state = tiny_state(7)
    record = {"config": {"lr": 1e-4, "sizes": [64, 256]}, "position": 2**40, "note": "müde", "best": None}
    with CheckpointStore(tmp_path / "checkpoints") as store:
        store.save(7, state, record)
    with CheckpointStore(tmp_path / "checkpoints") as store:
        restored, restored_record = store.restore(abstract(state))
    assert_same_bits(restored, state)
    assert restored_record == record == read_record(tmp_path)


def test_no_file_names_the_folder_it_was_written_to(tmp_path):
    save_weights(tmp_path / "weights", tiny_state(), {})
    files = [path for path in (tmp_path / "weights").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if str(tmp_path).encode() in path.read_bytes()]


def test_donating_the_state_and_changing_the_record_leave_a_running_save_alone(tmp_path):
    advance = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf * 0 - 1, x), donate_argnums=0)
    state = {"params": {str(i): jax.random.normal(jax.random.key(i), (2**18,)) for i in range(8)}}
    expected = jax.tree.map(np.array, state)
    record = {"counters": {"skipped": 0}}
    with CheckpointStore(tmp_path) as store:
        store.save(1, state, record)
        jax.block_until_ready(advance(state))
        record["counters"]["skipped"] = 1
        store.wait()
        restored, restored_record = store.restore(abstract(expected))
    assert_same_bits(restored, expected)
    assert restored_record == {"counters": {"skipped": 0}}


def test_the_newest_and_every_nth_step_are_kept(tmp_path):
    with CheckpointStore(tmp_path, keep_last=2, keep_every=20) as store:
        assert store.latest() is None
        for step in (0, 10, 20, 30, 40, 50, 60):
            store.save(step, {"params": jnp.full(2, step)}, {"step": step})
        store.wait()
        assert store.steps() == [0, 20, 40, 50, 60]
        assert store.latest() == 60
        assert {path.name for path in tmp_path.iterdir()} == {"0", "20", "40", "50", "60"}
        assert store.restore(abstract({"params": jnp.full(2, 0)}), step=20)[1] == {"step": 20}


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(1, None, {9}), (2, None, {8, 9}), (1, 4, {0, 4, 8, 9}), (99, None, set(range(10)))],
)
def test_retention_rule(keep_last, keep_every, kept):
    assert steps_to_keep(range(10), keep_last, keep_every) == kept


def test_the_best_by_validation_loss_are_kept_beside_the_newest(tmp_path):
    with CheckpointStore(tmp_path, keep_last=1, keep_best=2) as store:
        for step, loss in enumerate([0.5, 0.2, 0.9, 0.3, None, float("nan"), 0.2, 0.8]):
            record = {} if loss is None else {"validation_mse": loss}
            store.save(step, {"params": jnp.full(2, step)}, record)
        store.wait()
        assert store.steps() == [1, 6, 7]


@pytest.mark.parametrize(
    ("losses", "keep", "best"),
    [({1: 0.5, 2: 0.4, 3: 0.4}, 1, {3}), ({1: None, 2: float("inf")}, 2, set()), ({1: 0.1, 2: 0.2}, 0, set())],
)
def test_best_rule(losses, keep, best):
    assert best_steps(losses, keep) == best


def test_a_step_that_is_there_already_is_not_written_again(tmp_path):
    with CheckpointStore(tmp_path) as store:
        for value in (1.0, 2.0):
            store.save(5, {"params": jnp.full(2, value)}, {"value": value})
        store.wait()
        restored, record = store.restore(abstract({"params": jnp.zeros(2)}))
    np.testing.assert_array_equal(restored["params"], [1.0, 1.0])
    assert record == {"value": 1.0}


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
import jax.numpy as jnp
from glide_jax.checkpoint import CheckpointStore

folder = Path(sys.argv[1])
store = CheckpointStore(folder)
store.save(1, {"params": jnp.full(1000, 1.0)}, {"step": 1})
store.wait()
store.save(2, {"params": jnp.zeros(2**25)}, {"step": 2})
while not any(path.is_file() for path in folder.glob("2.*/state/**/*")):
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_in_the_middle_of_a_save_the_one_before_is_the_latest(tmp_path):
    process = start(KILLED_WHILE_SAVING, tmp_path)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert any(path.name.startswith("2.") for path in tmp_path.iterdir()), "the save had ended before the kill"
    assert read_record(tmp_path) == {"step": 1}

    with CheckpointStore(tmp_path) as store:
        assert store.steps() == [1]
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        state, _ = store.restore(abstract({"params": jnp.zeros(1000)}))
        assert (state["params"] == 1.0).all()
        store.save(2, state, {"step": 2})
        store.wait()
        assert store.steps() == [1, 2]


@contextmanager
def files_no_larger_than(limit):
    """The disk is full, as far as this process can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("ones", [jnp.ones, np.ones])
def test_a_full_disk_is_one_line_and_costs_no_earlier_checkpoint(ones, tmp_path, capfd):
    small, large = {"params": jnp.ones(1000)}, {"params": [ones(2**18, np.float32)] * 20}

    def save_both():
        with CheckpointStore(tmp_path) as store:
            store.save(1, small, {"step": 1})
            store.wait()
            with files_no_larger_than(2**20):
                store.save(2, large, {"step": 2})
                store.wait()

    with pytest.raises(GlideError) as caught:
        save_both()
    reason = os.strerror(errno.EFBIG)  # the limit that stands in for the disk's
    assert str(caught.value) == (
        f"cannot write checkpoint {tmp_path / '2'}: {reason}; what was saved before is untouched"
    )
    assert capfd.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert read_record(tmp_path) == {"step": 1}


class _FailedWhileOthersWrite:
    """A save that failed, and a thread of it that goes on making files for a moment."""

    def __init__(self, unfinished):
        self.thread = threading.Thread(target=self._write, args=(unfinished,))
        self.thread.start()

    def _write(self, unfinished):
        for number in range(20):
            with suppress(OSError):
                unfinished.mkdir(exist_ok=True)
                (unfinished / str(number)).write_text("late")
            time.sleep(0.01)

    def result(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failed_save_leaves_nothing_though_its_threads_still_write(tmp_path):
    response = _FailedWhileOthersWrite(tmp_path / "2.orbax-checkpoint-tmp")
    with pytest.raises(GlideError, match=r"/2: No space left on device;"):
        PendingSave(tmp_path / "2", response).finish()
    response.thread.join()
    assert list(tmp_path.iterdir()) == []


def test_a_step_whose_hashes_do_not_fit_on_the_disk_is_removed(tmp_path, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("glide_jax.checkpoint.step_format.write_hashes", full)
    with pytest.raises(GlideError, match="No space left on device"):
        save_weights(tmp_path / "base", {"kernel": jnp.ones(2)}, {})
    assert list(tmp_path.iterdir()) == []


GONE = r"checkpoints is no longer the folder that this run began to write to .*: put it back"


def _another_folder_in_its_place(run):
    (run / "checkpoints" / "1").mkdir(parents=True)


@pytest.mark.parametrize("replace", [lambda run: None, _another_folder_in_its_place])
def test_a_folder_that_vanished_is_not_made_anew(tmp_path, replace):
    run, moved = tmp_path / "run", tmp_path / "moved"
    with CheckpointStore(run / "checkpoints") as store:
        store.save(1, {"params": jnp.ones(2)}, {"step": 1})
        store.wait()
        run.rename(moved)
        replace(run)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(GlideError, match=GONE):
            store.save(2, {"params": jnp.ones(2)}, {"step": 2})
    assert sorted(tmp_path.rglob("*")) == before
    assert read_record(moved) == {"step": 1}


def test_a_folder_that_vanishes_during_a_save_is_not_made_anew(tmp_path, monkeypatch):
    run, moved = tmp_path / "run", tmp_path / "moved"
    finish = PendingSave.finish

    def finish_elsewhere(pending):
        run.rename(moved)
        finish(pending)

    monkeypatch.setattr(PendingSave, "finish", finish_elsewhere)
    with pytest.raises(GlideError, match=GONE), CheckpointStore(run / "checkpoints") as store:
        store.save(1, {"params": jnp.ones(2**22)}, {"step": 1})
    assert not run.exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(GlideError, match=r"^cannot write to .*file/checkpoints: Not a directory; choose another"):
        CheckpointStore(tmp_path / "file" / "checkpoints")


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    with CheckpointStore(tmp_path), pytest.raises(GlideError, match=r"^another run is writing to .*;"):
        CheckpointStore(tmp_path)
    CheckpointStore(tmp_path).close()


def test_a_store_that_nobody_closes_is_free_once_it_is_gone(tmp_path):
    store = CheckpointStore(tmp_path)
    del store
    gc.collect()
    CheckpointStore(tmp_path).close()


def test_another_model_is_refused_with_both_shapes(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(3, tiny_state(3, width=8), {})
        store.wait()
        with pytest.raises(GlideError) as error:
            store.restore(abstract(tiny_state(3, width=12)))
    message = str(error.value)
    assert f"checkpoint {tmp_path / '3'} does not fit the configuration: " in message
    assert "ema/unet/kernel is 3x3x4x8 float32 in the checkpoint, 3x3x4x12 float32 wanted; " in message
    assert message.count(" wanted") == 3
    assert " and 5 more; " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state | {"step": jnp.float32(0)},
            "step is a scalar int32 in the checkpoint, a scalar float32 wanted",
        ),
        (lambda state: state | {"extra": jnp.zeros(2)}, "extra is not in the checkpoint"),
        (lambda state: {"params": state["params"]}, "ema/text/embedding is in the checkpoint only"),
    ],
)
def test_dtypes_and_names_count_too(tmp_path, change, message):
    with CheckpointStore(tmp_path) as store:
        store.save(3, tiny_state(), {})
        store.wait()
        with pytest.raises(GlideError, match=message):
            store.restore(abstract(change(tiny_state())))


def test_a_missing_step_names_those_that_exist(tmp_path):
    with CheckpointStore(tmp_path) as store:
        with pytest.raises(GlideError, match=rf"^no complete checkpoint in {tmp_path}$"):
            store.restore({})
        for step in (4, 9):
            store.save(step, {"params": jnp.zeros(2)}, {})
        store.wait()
        with pytest.raises(GlideError, match=rf"^no checkpoint of step 5 in {tmp_path}; there are 4, 9$"):
            store.restore({}, step=5)


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    state = {"params": jnp.arange(5000.0)}
    with CheckpointStore(tmp_path) as store:
        store.save(1, state, {})
        store.wait()
        for data in (tmp_path / "1" / "state").glob("**/d/*"):
            os.truncate(data, data.stat().st_size // 2)
        with pytest.raises(GlideError, match=r"^checkpoint .*/1 is damaged: state/d/.* bytes, not .*; use another"):
            store.restore(abstract(state))
        (tmp_path / "1" / "hashes.json").unlink()
        with pytest.raises(GlideError, match=r"^cannot read checkpoint .*/1: .*; if it is damaged, use another step"):
            store.restore(abstract(state))


def test_a_record_that_is_not_json_is_refused_at_once(tmp_path):
    with CheckpointStore(tmp_path) as store, pytest.raises(TypeError, match="not JSON serializable"):
        store.save(1, {"params": jnp.zeros(2)}, {"array": jnp.zeros(2)})


@pytest.mark.parametrize("limits", [{"keep_last": 0}, {"keep_every": 0}])
def test_impossible_retention_is_refused(tmp_path, limits):
    with pytest.raises(GlideError, match="both must be at least 1"):
        CheckpointStore(tmp_path, **limits)
