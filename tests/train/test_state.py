"""The state of a run: optimizer and EMA against hand arithmetic, what is frozen, what a skipped step leaves."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from glide_jax.errors import GlideError
from glide_jax.models import Glide, LoraConfig, ModelConfig
from glide_jax.train.config import OptimizerConfig, RunConfig, TrainConfig
from glide_jax.train.optimizer import global_norm, is_for_muon, learning_rate, make_optimizer
from glide_jax.train.state import judge, merge, no_skips, split, update_ema
from tests.tiny.training import MODEL, make_batch, make_config, make_params, make_state, updated


def rates(config, max_steps, at):
    schedule = learning_rate(config, max_steps)
    return np.array([schedule(step) for step in at])


def test_warmup_rises_from_the_first_update_to_the_peak():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4)
    np.testing.assert_allclose(rates(config, 100, range(6)), [0.25, 0.5, 0.75, 1.0, 1.0, 1.0], rtol=1e-6)


def test_cosine_goes_from_peak_to_zero():
    config = OptimizerConfig(learning_rate=2.0, lr_schedule="cosine")
    np.testing.assert_allclose(rates(config, 100, (0, 50, 100)), [2.0, 1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("norm", [None, 5.0])
def test_first_update_is_a_clipped_adamw_step(norm):
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, max_grad_norm=1.0, eps=1.0)
    optimizer = make_optimizer(config, 10)
    params = {"w": jnp.array([2.0, -1.0])}
    given = {} if norm is None else {"norm": jnp.float32(norm)}
    updates, _ = optimizer.update({"w": jnp.array([3.0, 4.0])}, optimizer.init(params), params, **given)
    clipped = np.array([0.6, 0.8])
    # With bias correction the first moments are g and g^2, from which AdamW's first step follows.
    expected = -0.1 * (clipped / (clipped + 1.0) + 0.5 * np.array([2.0, -1.0]))
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-4)


def test_the_norm_of_a_tree_is_that_of_all_its_numbers():
    rng = np.random.default_rng(0)
    tree = {"kernel": rng.normal(size=(3, 3, 4, 8)), "bias": rng.normal(size=8), "scale": np.float32(2.0)}
    every = np.concatenate([np.ravel(leaf) for leaf in tree.values()])
    found = global_norm(jax.tree.map(jnp.float32, tree))
    np.testing.assert_allclose(found, np.linalg.norm(every), rtol=1e-6)


def test_first_update_of_muon_is_an_orthogonal_matrix_as_large_as_an_update_of_adam():
    config = OptimizerConfig(kind="muon", learning_rate=0.1, weight_decay=0.5, max_grad_norm=0.0)
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.float32(rng.normal(size=(3, 3, 4, 8))), "embedding": jnp.float32(rng.normal(size=(5, 8)))}
    grads = jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), params)
    optimizer = make_optimizer(config, 10, {"kernel": True, "embedding": False})
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    # Of the gradient's U S V^T, S is replaced by ones, as far as five Newton-Schulz iterations get.
    u, _, v = np.linalg.svd(np.reshape(grads["kernel"], (36, 8)), full_matrices=False)
    kernel = np.reshape(updates["kernel"] / -0.1 - 0.5 * params["kernel"], (36, 8))
    in_place_of_s = u.T @ kernel @ v.T / (0.2 * np.sqrt(36))
    np.testing.assert_allclose(in_place_of_s, np.diag(np.diag(in_place_of_s)), atol=1e-4)
    assert 0.6 < np.diag(in_place_of_s).min() <= np.diag(in_place_of_s).max() < 1.3
    assert 0.1 < np.sqrt(np.square(kernel).mean()) < 0.25
    adamw = optax.nadamw(0.1, config.b1, config.b2, config.eps, weight_decay=0.5)
    expected, _ = adamw.update(grads, adamw.init(params), params)
    np.testing.assert_allclose(updates["embedding"], expected["embedding"], rtol=1e-5)
    ((_, second),) = optax.tree.get_all_with_path(state, "nu")
    assert jax.tree.map(jnp.shape, second["embedding"]) == (5, 8)
    assert len(jax.tree.leaves(second)) == 1


def test_muon_takes_the_kernels_between_the_first_layer_and_the_last():
    params = names(Glide(MODEL, lora=LoraConfig(rank=1, dora=True)).abstract_params())
    left = {name for name in params if name.endswith(("/kernel", "/down", "/up")) and not is_for_muon(name)}
    assert left == {"unet/input_conv/kernel", "unet/out_conv/kernel"}
    assert not any(is_for_muon(name) for name in params if name.endswith(("/bias", "/scale", "/magnitude")))


def test_ema_is_a_float32_average_with_warm_up():
    config = OptimizerConfig(ema_decay=0.9)
    ema = {"w": jnp.float32(0.0)}
    expected = 0.0
    for updates in range(1, 100):
        ema = update_ema(config, ema, {"w": jnp.float32(1.0)}, jnp.int32(updates))
        decay = min(0.9, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay)
        np.testing.assert_allclose(ema["w"], expected, rtol=1e-5)


def test_ema_moves_by_less_than_bfloat16_could_hold():
    ema = {"w": jnp.float32(1.0)}
    config = OptimizerConfig(ema_decay=0.9999, ema_warmup=False)
    moved = update_ema(config, ema, {"w": jnp.float32(1.001)}, jnp.int32(1))["w"]
    assert moved > 1.0
    assert moved.astype(jnp.bfloat16) == 1.0


def test_optimizer_state_is_float32():
    state = make_optimizer(OptimizerConfig(), 10).init({"w": jnp.zeros(3)})
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert dtypes == {jnp.dtype("float32")}
    assert optax.tree.get(state, "nu")["w"].shape == (3,)


@pytest.mark.parametrize("bad", [{"b2": 1.0}, {"learning_rate": -1.0}, {"lr_schedule": "step"}, {"ema_decay": 1.0}])
def test_impossible_options_are_refused(bad):
    with pytest.raises(GlideError, match=next(iter(bad))):
        OptimizerConfig(**bad)


def test_a_bucket_is_no_folder_to_write_runs_to():
    with pytest.raises(GlideError, match=r"^run_dir=gs://bucket/run: it must be a local folder"):
        RunConfig(run_dir="gs://bucket/run")


def test_float16_is_refused_with_the_way_out():
    with pytest.raises(GlideError, match="bfloat16"):
        TrainConfig(dtype="float16")


def names(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)}


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_sets_of_the_published_base_model():
    params = Glide(ModelConfig.published("base")).abstract_params()
    sizes = {trainable: [count(part) for part in split(params, trainable)] for trainable in ("all", "unet", "text")}
    assert sizes["all"] == [385_030_726, 0]
    # The reference's groups: 308.3 M of UNet, 76.7 M of text transformer.
    assert sizes["unet"] == [308_334_918, 76_695_808]
    # 25 attention blocks of 384, 576 and 768 channels, each with a projection of 512 to twice its channels.
    blocks = {384: 3 + 4, 576: 3 + 4, 768: 3 + 1 + 4}
    projections = sum(n * (512 + 1) * 2 * channels for channels, n in blocks.items())
    assert sizes["text"] == [76_695_808 + projections, 308_334_918 - projections]


def test_names_of_the_sets():
    params = Glide(MODEL).abstract_params()
    everything = names(params)
    assert names(split(params, "unet")[0]) == {name for name in everything if name.startswith("unet/")}
    projections = {name for name in everything if "/text_kv/" in name}
    assert len(projections) == 2 * 4  # kernel and bias of one block down, one in the middle, two up
    assert names(split(params, "text")[0]) == {name for name in everything if name.startswith("text/")} | projections


@pytest.mark.parametrize("trainable", ["all", "unet", "text"])
def test_parts_make_the_whole_again(trainable):
    params = Glide(MODEL).abstract_params()
    assert merge(*split(params, trainable)) == params


def test_only_the_trained_part_moves_and_has_optimizer_state():
    config = make_config(trainable="text")
    state = make_state(config)
    trained = names(split(state["params"], "text")[0])
    assert names(optax.tree.get(state["opt"], "mu")) == names(optax.tree.get(state["opt"], "nu")) == trained
    after, _ = updated(config, state, make_batch())
    for tree in ("params", "ema"):
        same = jax.tree.map(np.array_equal, state[tree], after[tree])
        moved = {name for name in names(same) if not leaf_at(same, name)}
        # A key's bias shifts all scores alike, so that it may have no gradient at all.
        assert moved <= trained
        assert {name for name in trained if not name.endswith("bias")} <= moved


def leaf_at(tree, name):
    for key in name.split("/"):
        tree = tree[key]
    return tree


def test_impossible_choices_are_refused():
    with pytest.raises(GlideError, match=r"train.trainable must be one of all, unet or text, not 'decoder'"):
        TrainConfig(trainable="decoder")
    with pytest.raises(GlideError, match="no text transformer"):
        RunConfig(model=replace(MODEL, xf_width=0), train=TrainConfig(trainable="text"))
    with pytest.raises(GlideError, match=r"keep_best_checkpoints needs held-out images: give data\.validation_path"):
        RunConfig(train=TrainConfig(keep_best_checkpoints=1))


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
