"""Figures, images and skipped steps to file and, where asked for, to Weights & Biases without a network."""

import errno
import io
import json
import os
import resource
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

from glide_jax.data.examples import Batch, Shapes, empty_batch
from glide_jax.errors import GlideError
from glide_jax.train.config import RunConfig, TrainConfig
from glide_jax.train.log import RunLog, SkipWatch, TooManySkipped, append_json

CONFIG = RunConfig(train=TrainConfig(wandb_project="glide"))


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(GlideError, match=r"uv sync --inexact --extra wandb` .*pip install -e '\.\[wandb\]'"):
        RunLog(tmp_path, CONFIG)


def test_lines_and_images_are_files(tmp_path):
    with RunLog(tmp_path, RunConfig()) as log:
        log.write(3, {"loss": 1 / 3, "count": 2})
        log.image(3, "grid", np.zeros((4, 4, 3), np.uint8))
    (line,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert (line["step"], line["loss"], line["count"]) == (3, 0.3333333, 2)
    assert (tmp_path / "samples" / "grid_00000003.png").exists()


def test_torch_is_not_imported_for_the_events_and_can_be_later(tmp_path, monkeypatch):
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("torch", "tensorboardX"):
            monkeypatch.delitem(sys.modules, name)
    with RunLog(tmp_path, RunConfig()) as log:
        log.write(3, {"loss": 1.0})
    assert "torch" not in sys.modules
    assert list((tmp_path / "tensorboard").iterdir())


def test_wandb_offline_keeps_one_run_over_restarts(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the wandb extra is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (1, 2):
        with RunLog(tmp_path, CONFIG) as log:
            log.write(step, {"loss": 1.0})
            log.image(step, "grid", np.zeros((4, 4, 3), np.uint8))
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    identity = (tmp_path / "wandb_id").read_text()
    assert runs
    assert all(run.name.endswith(identity) for run in runs)


def test_an_identity_that_a_full_disk_left_empty_is_made_anew(tmp_path, monkeypatch):
    (tmp_path / "wandb_id").touch()
    monkeypatch.setitem(sys.modules, "wandb", MagicMock())
    for _ in range(2):
        with RunLog(tmp_path, CONFIG):
            pass
    first, second = (call.kwargs["id"] for call in sys.modules["wandb"].init.call_args_list)
    assert len(first) == 8
    assert first == second


@contextmanager
def room_for(size):
    """Files of this process cannot grow beyond `size` bytes meanwhile, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["log.jsonl", "samples/.grid_00000003.png.0.tmp"])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setattr("glide_jax.files.secrets.token_hex", lambda size: "0")
    full = tmp_path / name
    full.parent.mkdir(exist_ok=True)
    full.symlink_to("/dev/full")

    def run():
        with RunLog(tmp_path, RunConfig()) as log:
            log.image(3, "grid", np.zeros((4, 4, 3), np.uint8))
            log.write(3, {"loss": 1.0})

    with pytest.raises(GlideError, match=r"^cannot write .*: No space left on device.*$"):
        run()


def test_a_line_that_does_not_fit_leaves_no_half_of_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    path = tmp_path / "log.jsonl"
    with RunLog(tmp_path, RunConfig()) as log:
        log.write(1, {"loss": 1.0})
        with (
            room_for(path.stat().st_size + 20),
            pytest.raises(GlideError, match=f"^cannot write to {path}: File too large"),
        ):
            log.write(2, {"loss": 2.0})
        assert [line["step"] for line in lines(path)] == [1]
        log.write(3, {"loss": 3.0})
    assert [line["step"] for line in lines(path)] == [1, 3]


def test_events_that_do_not_fit_are_one_line_and_no_thread_dies_of_them(tmp_path):
    pytest.importorskip("tensorboardX", reason="the tensorboard extra is not installed")
    pixels = np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)
    with RunLog(tmp_path, RunConfig()) as log:
        log.image(1, "grid", pixels)
        (events,) = (tmp_path / "tensorboard").iterdir()
        size = events.stat().st_size
        assert size > pixels.nbytes
        with room_for(size + 10):
            for step in range(2, 14):
                with pytest.raises(GlideError, match=f"^cannot write to {events.parent}: File too large$"):
                    log.write(step, {"loss": 1.0})
    assert len(lines(tmp_path / "log.jsonl")) == 12


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_whatever_a_disk_fails_with_is_named(tmp_path, number):
    class Failing(io.FileIO):
        def write(self, content):
            if len(content) > 10:
                return super().write(content[:10])
            raise OSError(number, os.strerror(number))

    path = tmp_path / "log.jsonl"
    path.write_text("{}\n")
    with (
        Failing(path, "a") as file,
        pytest.raises(GlideError, match=f"^cannot write to {path}: {os.strerror(number)}$"),
    ):
        append_json(file, {"loss": 1.0})
    assert path.read_text() == "{}\n"


def test_skipped_examples_are_written_down_and_too_many_in_a_row_stop(tmp_path):
    watch = SkipWatch(tmp_path, limit=2, count=5)
    arrays = {"index": np.array([8, 9], np.int32), "image": np.zeros((2, 4, 6, 3), np.uint8)}
    batch = Batch(arrays, ["a cat", "a dog"])
    for step, count in enumerate((5, 6, 6, 7, 8), start=1):
        watch.see(step, count, float("nan"), float("inf"), batch)
    with pytest.raises(TooManySkipped, match=r"^3 steps in a row were skipped .*skipped\.jsonl"):
        watch.see(6, 9, float("nan"), float("inf"), batch)
    written = lines(tmp_path / "skipped.jsonl")
    assert [line["step"] for line in written] == [2, 4, 5, 6]
    assert written[0]["index"] == [8, 9]
    assert written[0]["captions"] == ["a cat", "a dog"]
    assert written[0]["size"] == "4x6"
    assert (written[0]["loss"], written[0]["grad_norm"]) == ("nan", "inf")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_another_error_than_too_many(tmp_path):
    (tmp_path / "skipped.jsonl").symlink_to("/dev/full")
    watch = SkipWatch(tmp_path, limit=0, count=0)
    with pytest.raises(GlideError, match=r"^cannot write to .*skipped\.jsonl: No space left on device$") as refusal:
        watch.see(1, 1, float("nan"), 1.0, empty_batch(Shapes(4, 8), 1))
    assert not isinstance(refusal.value, TooManySkipped)  # which all processes of a run find at once, and save
