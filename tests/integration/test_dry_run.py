"""`train.py --dry_run` as a user runs it."""

import importlib

import jax
import numpy as np
import pytest
from PIL import Image

from glide_jax.parallel import AXES
from tests.integration.runs import train
from tests.tiny.training import make_params


def test_a_rehearsal_shows_everything_and_leaves_one_picture(tmp_path, capsys):
    assert train(tmp_path, "--dry_run") == 0
    count = sum(leaf.size for leaf in jax.tree.leaves(make_params()))
    shown = capsys.readouterr().out
    for part in ("text/token_embedding", f"{count:,}", "memory, mesh 1 x 1", "activations and gradients", "TFLOP"):
        assert part in shown
    (picture,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert picture == tmp_path / "samples" / "dry_run.png"
    assert np.asarray(Image.open(picture)).shape[1] > 96


def test_what_a_run_refuses_the_rehearsal_refuses_too(tmp_path, capsys):
    for given, said in [
        ("train.trainable=text", "give --config.init_from=DIR"),
        ("data.path=/none.tar", "/none.tar"),
        ("data.validation_path=/none.tar", "/none.tar"),
        ("train.preview.upsampler=/none", "/none"),
    ]:
        assert train(tmp_path, "--dry_run", "--config.train.validate_every=1", f"--config.{given}") == 2
        shown = capsys.readouterr()
        assert said in shown.err.strip().splitlines()[-1]
        assert shown.out == ""


@pytest.mark.parametrize(("more", "module"), [([], "loop"), (["--dry_run"], "dry_run")])
def test_a_batch_that_the_devices_cannot_share_is_refused_before_anything_is_made(
    tmp_path, capsys, monkeypatch, more, module
):
    four = jax.sharding.AbstractMesh((4, 1), AXES)
    monkeypatch.setattr(importlib.import_module(f"glide_jax.train.{module}"), "make_mesh", lambda _: four)
    assert train(tmp_path / "run", "--config.train.batch_size=6", *more) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == "error: train.batch_size 6 cannot be shared equally by 4 devices: use 4 or 8"
    assert not (tmp_path / "run").exists()
