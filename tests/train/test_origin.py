"""Where a run begins: fresh, from other weights, with a part of them made anew; and what is refused."""

from dataclasses import asdict, replace

import jax
import numpy as np
import pytest

from glide_jax.checkpoint import save_weights
from glide_jax.errors import GlideError
from glide_jax.train.origin import Origin
from glide_jax.train.run_config import RunConfig
from glide_jax.train.trainable import split
from tests.tiny.training import MODEL, make_config, make_params, make_program


def config(run_dir, init_from="", **changes):
    return RunConfig(run_dir=str(run_dir), init_from=str(init_from), model=MODEL, train=make_config(**changes))


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_only_the_trained_part_is_made_anew(tmp_path):
    program = make_program(make_config(trainable="text", reinitialize=True))
    given = make_params(1)
    state = program.state_from(given)
    trained, frozen = split(state["params"], "text")
    assert same(frozen, split(given, "text")[1])
    assert same(trained, split(program.fresh_state()["params"], "text")[0])
    assert same(state["ema"], state["params"])


def test_starting_weights_are_read_and_their_source_is_kept(tmp_path):
    run = config(tmp_path / "run", tmp_path / "weights")
    params = make_params(1)
    record = {"model": asdict(run.model), "diffusion": asdict(run.diffusion), "source": {"file": "base.pt"}}
    save_weights(tmp_path / "weights", params, record)
    origin = Origin.of(run)
    assert (origin.continues, origin.position, origin.source) == (False, 0, {"source": {"file": "base.pt"}})
    assert not (tmp_path / "run").exists()


def test_starting_weights_may_be_of_another_size(tmp_path):
    run = config(tmp_path / "run", tmp_path / "weights")
    half = tuple(side // 2 for side in MODEL.attention_resolutions)
    small = replace(MODEL, image_size=MODEL.image_size // 2, attention_resolutions=half)
    save_weights(tmp_path / "weights", make_params(1), {"model": asdict(small), "diffusion": asdict(run.diffusion)})
    assert not Origin.of(run).continues
    save_weights(tmp_path / "run" / "checkpoints" / "1", make_params(1), {"model": asdict(small), "position": 8})
    with pytest.raises(GlideError, match=r"image_size: 4 there, 8 here"):
        Origin.of(run)


@pytest.mark.parametrize(
    ("changes", "init_from", "message"),
    [
        ({"trainable": "unet"}, "", r"train.trainable=unet keeps the rest as it is, but there are no weights"),
        ({"reinitialize": True}, "weights", "train.reinitialize leaves nothing of init_from"),
    ],
)
def test_contradictions_are_refused(tmp_path, changes, init_from, message):
    with pytest.raises(GlideError, match=message):
        Origin.of(config(tmp_path, init_from, **changes))


def test_a_run_that_trains_another_part_is_refused_with_both(tmp_path):
    run = config(tmp_path, "weights", trainable="text")
    record = {"model": asdict(run.model), "diffusion": asdict(run.diffusion), "config": asdict(run), "position": 8}
    save_weights(tmp_path / "checkpoints" / "1", {"kernel": np.zeros(2, np.float32)}, record)
    assert Origin.of(run).position == 8
    with pytest.raises(GlideError, match=r"train.trainable: text there, all here"):
        Origin.of(config(tmp_path, "weights"))
