"""Harmful updates: nothing changes but the counters, they are written down, and too many stop the run."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.data.examples import Batch
from glide_jax.errors import GlideError
from glide_jax.train.skips import SkipWatch, TooManySkipped, judge, no_skips
from tests.tiny.training import make_batch, make_config, make_params, make_state, updated


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_an_update_that_is_not_finite_leaves_the_state_as_it_was(poison):
    config = make_config()
    fine, _ = updated(config, make_state(config), make_batch())
    params = make_params()
    params["unet"]["input_conv"]["kernel"][0, 0, 0, 0] = poison
    bad = make_state(config, params) | {"skips": fine["skips"], "step": fine["step"]}
    after, metrics = updated(config, bad, make_batch(first=8))
    assert not np.isfinite(metrics["loss"])
    for tree in ("params", "ema", "opt"):
        assert bits(after[tree]) == bits(bad[tree]), tree
    assert (int(metrics["skipped_updates"]), int(after["skips"]["count"]), int(after["step"])) == (1, 1, 2)
    assert after["skips"]["loss_ema"] == bad["skips"]["loss_ema"]


def judged(losses, threshold, grad_norm=1.0):
    skips, verdicts = no_skips(), []
    for loss in losses:
        good, skips = judge(skips, jnp.float32(loss), jnp.float32(grad_norm), threshold)
        verdicts.append(bool(good))
    return verdicts, skips


def test_spikes_are_skipped_only_where_that_is_asked_for():
    losses = [1.0, 4.9, 5.3, np.nan, 1.0]
    verdicts, skips = judged(losses, 5.0)
    assert verdicts == [True, True, False, False, True]
    assert int(skips["count"]) == 2
    average = 1.0
    for loss in (4.9, 5.3, 1.0):
        average += 0.01 * (loss - average)
    np.testing.assert_allclose(skips["loss_ema"], average, rtol=1e-6)
    assert judged(losses, 0.0)[0] == [True, True, True, False, True]
    assert judged([1.0], 0.0, grad_norm=np.inf)[0] == [False]


def test_a_lasting_rise_is_taken_in():
    verdicts, _ = judged([1.0] + [6.0] * 40, 5.0)
    assert not verdicts[1]
    assert verdicts[-1]


def test_skipped_examples_are_written_down_and_too_many_in_a_row_stop(tmp_path):
    watch = SkipWatch(tmp_path, limit=2, count=5)
    batch = Batch({"index": np.array([8, 9], np.int32)}, ["a cat", "a dog"])
    for step, count in enumerate((5, 6, 6, 7, 8), start=1):
        watch.see(step, count, float("nan"), float("inf"), batch)
    with pytest.raises(TooManySkipped, match=r"^3 updates in a row were skipped .*skipped\.jsonl"):
        watch.see(6, 9, float("nan"), float("inf"), batch)
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5, 6]
    assert lines[0]["index"] == [8, 9]
    assert lines[0]["captions"] == ["a cat", "a dog"]
    assert (lines[0]["loss"], lines[0]["grad_norm"]) == ("nan", "inf")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_another_error_than_too_many(tmp_path):
    (tmp_path / "skipped.jsonl").symlink_to("/dev/full")
    watch = SkipWatch(tmp_path, limit=0, count=0)
    with pytest.raises(GlideError, match=r"^cannot write to .*skipped\.jsonl: No space left on device$") as refusal:
        watch.see(1, 1, float("nan"), 1.0, Batch({"index": np.array([8], np.int32)}, ["a cat"]))
    assert not isinstance(refusal.value, TooManySkipped)  # which all processes of a run find at once, and save
