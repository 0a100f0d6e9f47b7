"""Training of adapters: what moves, what is held, what it takes."""

from copy import copy
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from glide_jax.checkpoint import save_weights
from glide_jax.errors import GlideError
from glide_jax.models import LoraConfig
from glide_jax.models.lora import GROUP
from glide_jax.options import nested
from glide_jax.parallel import bytes_per_device, put_batch
from glide_jax.train.config import RunConfig, TrainConfig
from glide_jax.train.start import StartPoint, lora_entry
from tests.tiny.training import MODEL, compiled_step, make_batch, make_config, make_params, make_program

# Whose Adam moves whatever has a gradient: that of `down` is tiny as long as `up` is small.
CONFIG = make_config(lora=LoraConfig(rank=2))
CONFIG = replace(CONFIG, optimizer=replace(CONFIG.optimizer, learning_rate=0.1, eps=1e-8))


def test_adapters_move_and_the_weights_do_not():
    program = make_program(CONFIG)
    before = program.packing.unpack(program.state_from(make_params())["params"])
    state = program.state_from(make_params())
    for _ in range(2):
        state, metrics = compiled_step(CONFIG)(state, put_batch(make_batch(), program.mesh))
    after = program.packing.unpack(state["params"])
    np.testing.assert_allclose(metrics["param_norm"], optax.tree.norm(after[GROUP]), rtol=1e-5)
    for path, leaf in flatten_dict(before).items():
        assert np.array_equal(leaf, flatten_dict(after)[path]) == (path[0] != GROUP), path
    held = program.packing.unpack_state(state)
    adapters = jax.tree.structure(before[GROUP])
    for tree in (held["params"], held["ema"], optax.tree.get(held["opt"], "mu"), optax.tree.get(held["opt"], "nu")):
        assert set(tree) == {GROUP}
        assert jax.tree.structure(tree[GROUP]) == adapters
    base = {name: group for name, group in before.items() if name != GROUP}
    again = program.packing.pack_state(held, base)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again, state)))


def test_frozen_kernels_take_half_the_room_and_adapters_alone_have_averages_and_moments():
    lora, full = (
        make_program(make_config(dtype="bfloat16", **changes)) for changes in ({"lora": LoraConfig(rank=1)}, {})
    )
    kernels = [leaf for path, leaf in flatten_dict(lora.abstract_base).items() if path[-1] == "kernel"]
    assert {leaf.dtype for leaf in kernels} == {jnp.dtype("bfloat16"), jnp.dtype("float32")}
    unet = lambda program: bytes_per_device(program.abstract_params["unet"])  # noqa: E731
    assert unet(lora) < 0.6 * unet(full)
    assert lora.state_bytes()["ema"] < 0.1 * full.state_bytes()["ema"]
    assert lora.state_bytes()["opt"] < 0.1 * full.state_bytes()["opt"]


def test_a_record_older_than_an_option_is_resumed(tmp_path):
    lora = LoraConfig(rank=2)
    base = str(tmp_path / "base")
    run = RunConfig(run_dir=str(tmp_path), init_from=base, model=MODEL, train=make_config(lora=lora))
    save_weights(base, {"params": np.zeros(1, np.float32)}, {"model": asdict(MODEL)})
    config = nested(run)
    del config["train"]["lora"]["dora"]
    record = {"model": asdict(MODEL), "diffusion": asdict(run.diffusion), "config": config, "position": 0}
    save_weights(tmp_path / "checkpoints" / "3", {GROUP: np.zeros(1, np.float32)}, record)
    assert StartPoint.of(run).step == 3
    other = replace(run, init_from=str(tmp_path / "other"))
    save_weights(other.init_from, {"params": np.zeros(1, np.float32)}, {"model": asdict(MODEL) | {"num_channels": 64}})
    with pytest.raises(GlideError, match="num_channels is 64 there, 32 here"):
        StartPoint.of(other)
    with pytest.raises(GlideError, match=r"train\.lora\.dora is False there, True here"):
        StartPoint.of(replace(run, train=make_config(lora=replace(lora, dora=True))))


def test_adapters_name_the_step_of_their_base_which_a_run_may_leave_behind(tmp_path):
    program, base = make_program(CONFIG), tmp_path / "base"
    for step in ("3", "5"):
        save_weights(base / "checkpoints" / step, make_params(), {"model": asdict(MODEL)})
    state, made = program.state_from(make_params()), copy(program)
    made.config = replace(program.config, init_from=str(base))
    entry = lora_entry(made, state, {})["lora"]
    assert entry["base"] == str(base / "checkpoints" / "5")
    with pytest.raises(
        GlideError, match=r"belong to weights of SHA-256 abc, not .*: give those of /some/checkpoints/3"
    ):
        lora_entry(made, state, {"lora": {"base": "/some/checkpoints/3", "base_sha256": "abc"}})


@pytest.mark.parametrize("changes", [{"trainable": "unet"}, {"reinitialize": True}])
def test_there_is_one_choice_of_what_is_trained(changes):
    with pytest.raises(GlideError, match=r"train.lora freezes the weights: choose layers by train.lora.targets"):
        TrainConfig(lora=replace(CONFIG.lora), **changes)
