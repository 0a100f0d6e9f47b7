"""Figures and pictures to file and, where asked for, to Weights & Biases without a network."""

import json
import sys

import numpy as np
import pytest

from glide_jax.errors import GlideError
from glide_jax.train.config import TrainConfig
from glide_jax.train.run_config import RunConfig
from glide_jax.train.run_log import RunLog

CONFIG = RunConfig(train=TrainConfig(wandb_project="glide"))


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(GlideError, match=r"pip install 'glide-jax\[wandb\]'"):
        RunLog(tmp_path, CONFIG)


def test_lines_and_pictures_are_files(tmp_path):
    with RunLog(tmp_path, RunConfig()) as log:
        log.write(3, {"loss": 1 / 3, "count": 2})
        log.picture(3, "grid", np.zeros((4, 4, 3), np.uint8))
    (line,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert (line["step"], line["loss"], line["count"]) == (3, 0.3333333, 2)
    assert (tmp_path / "samples" / "grid_00000003.png").exists()


def test_wandb_offline_keeps_one_run_over_restarts(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the wandb extra is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (1, 2):
        with RunLog(tmp_path, CONFIG) as log:
            log.write(step, {"loss": 1.0})
            log.picture(step, "grid", np.zeros((4, 4, 3), np.uint8))
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    identity = (tmp_path / "wandb_id").read_text()
    assert runs
    assert all(run.name.endswith(identity) for run in runs)
