"""The network's contract: remat, dropout, initial weights, text, and every option of its architecture."""

import math
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from glide_jax.errors import GlideError
from glide_jax.models import Conditioning, Glide, NoisedClip
from glide_jax.models.layers import dropout, kept_by_dropout, resize_bilinear, timestep_embedding
from glide_jax.train.meter import product_flops
from tests.tiny.models import BASE, random_weights

TWO_LEVELS = replace(BASE, image_size=16, channel_mult=(1, 2))
TOKENS = jnp.array([[5, 9, 2] + [50256] * 5, [50256] * 8])
MASK = TOKENS != 50256


def inputs(config):
    side, low = config.image_size, config.low_res_size
    x = jax.random.normal(jax.random.key(2), (2, side, side, 3))
    low_res = jnp.ones((2, low, low, 3)) if config.super_res else None
    mask = jnp.ones((2, side, side, 1)) if config.inpaint else None
    return x, jnp.array([3.0, 700.5]), Conditioning(None, low_res, x if config.inpaint else None, mask)


def forward(model, params, dropout_keys=None):
    x, t, given = inputs(model.config)
    return model(params, x, t, given._replace(text=model.encode_text(params, TOKENS, MASK)), dropout_keys)


@cache
def base_model():
    """A model, its weights and its output."""
    model = Glide(BASE)
    params = random_weights(model.abstract_params())
    return model, params, jax.jit(partial(forward, model))(params)


@cache
def gradients(remat):
    """Of some loss, for the same weights whatever `remat` is; also the program that computes them."""
    model, (_, params, _) = Glide(BASE, remat=remat), base_model()
    traced = jax.jit(jax.grad(lambda p: jnp.square(forward(model, p)).mean())).trace(params)
    return jax.tree.leaves(traced.lower().compile()(params)), str(traced.jaxpr)


def test_remat_is_in_the_program_and_changes_no_gradient():
    (expected, plain), (found, recomputing) = gradients("none"), gradients("full")
    model, params, _ = base_model()
    # Whatever `remat` is, text layers recompute.
    assert recomputing.count("remat") >= plain.count("remat") + len(model.bind(params).unet.blocks)
    largest = max(np.abs(leaf).max() for leaf in expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * largest)


def test_remat_saves_memory():
    def bytes_kept_for_the_backward_pass(remat):
        model = Glide(BASE, remat=remat)
        # XLA for CPU may undo what is recomputed, so this looks at the program it is given.
        kept = jax.eval_shape(lambda p: jax.vjp(lambda p: forward(model, p), p)[1], model.abstract_params())
        weights = sum(leaf.size for leaf in jax.tree.leaves(model.abstract_params()))
        return sum(leaf.size for leaf in jax.tree.leaves(kept)) - weights

    kept = {policy: bytes_kept_for_the_backward_pass(policy) for policy in ("full", "dots", "none")}
    assert kept["full"] < kept["dots"] < 0.5 * kept["none"]


def test_dots_repeats_hardly_any_product():
    def flops(remat):
        model = Glide(BASE, remat=remat)
        loss = jax.grad(lambda p: jnp.square(forward(model, p)).mean())
        return product_flops(jax.make_jaxpr(loss)(model.abstract_params()).jaxpr)

    none, dots, full = map(flops, ("none", "dots", "full"))
    assert none < dots < none + 0.2 * (full - none)


def test_dots_does_not_sum_for_a_norm_again():
    def norms(remat):
        model = Glide(BASE, remat=remat)
        program = str(jax.make_jaxpr(jax.grad(lambda p: forward(model, p).sum()))(model.abstract_params()))
        return program.count(" = rsqrt ")

    assert 0 < norms("none") == norms("dots") < norms("full")


def test_dropout_needs_a_key_and_drops_the_given_share():
    model, (_, params, evaluated) = Glide(replace(BASE, dropout=0.5)), base_model()
    keys = jax.random.split(jax.random.key(0), 2)
    run = jax.jit(partial(forward, model))
    assert not np.allclose(run(params, keys), evaluated)
    np.testing.assert_array_equal(run(params, keys), run(params, keys))
    (_, keep) = kept_by_dropout(keys, [(3, 5), (1000,)], 0.25)
    x = dropout(jnp.ones((2, 1000)), 0.25, keep)
    np.testing.assert_allclose(np.unique(x), [0.0, 1 / 0.75])
    np.testing.assert_allclose((x == 0).mean(axis=1), 0.25, atol=0.05)
    assert (x[0] != x[1]).any()


def test_fresh_weights_start_at_zero_output_with_live_embeddings():
    model, _, _ = base_model()
    params = jax.jit(model.init)(jax.random.key(0))
    np.testing.assert_array_equal(jax.jit(partial(forward, model))(params), 0.0)
    for name, std in (("token_embedding", 0.02), ("positional_embedding", 0.01), ("padding_embedding", 0.01)):
        np.testing.assert_allclose(params["text"][name].std(), std, rtol=0.2)
    res = params["unet"]["down"]["0"]["res"]
    np.testing.assert_array_equal(res["out_conv"]["kernel"], 0.0)
    np.testing.assert_array_equal(res["in_norm"]["scale"], 1.0)
    # PyTorch's bound for a convolution is 1/sqrt(fan_in).
    bound = 1 / math.sqrt(9 * 32)
    assert 0.9 * bound < np.abs(res["in_conv"]["kernel"]).max() <= bound
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_padding_takes_its_own_embedding_whatever_the_token():
    model, params, _ = base_model()
    encode = jax.jit(model.encode_text)
    expected = encode(params, TOKENS, MASK).embedding
    np.testing.assert_array_equal(encode(params, jnp.where(MASK, TOKENS, 17), MASK).embedding, expected)
    assert not np.allclose(encode(params, TOKENS.at[0, 1].set(17), MASK).embedding[0], expected[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"inpaint": True, "resblock_updown": False, "num_head_channels": -1, "num_heads": 2, "num_heads_upsample": 4},
        {"channel_mult": (1,), "num_res_blocks": 2, "super_res": True, "low_res_size": 4, "xf_width": 0},
        {"channel_mult": (1,), "inpaint": True, "super_res": True, "low_res_size": 8, "use_scale_shift_norm": False,
         "xf_final_ln": False, "xf_padding": False},
        {"channel_mult": (1, 1, 2), "attention_resolutions": (16, 4)},
    ],
)  # fmt: skip
def test_every_option_of_the_reference_runs(changes):
    model = Glide(replace(TWO_LEVELS, **changes))
    params = random_weights(model.abstract_params())

    traced = jax.jit(partial(forward, model)).trace(params)
    y = traced.lower().compile()(params)
    assert y.shape == (2, 16, 16, 6)
    assert jnp.isfinite(y).all()
    _, used = dce_jaxpr(traced.jaxpr.jaxpr, [True])
    assert [path for (path, _), so in zip(jax.tree.leaves_with_path(params), used, strict=True) if not so] == []


def test_bfloat16_computes_close_to_float32_with_float32_weights():
    _, params, expected = base_model()
    y = jax.jit(partial(forward, Glide(BASE, dtype="bfloat16")))(params)
    assert y.dtype == jnp.float32
    difference = np.abs(y - expected).max() / np.abs(expected).max()
    assert 1e-5 < difference < 0.05


def test_timesteps_may_be_fractional_and_dimensions_odd():
    embedding = timestep_embedding(jnp.array([0.0, 2.5]), 7)
    np.testing.assert_array_equal(embedding[0], [1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(embedding[1, [0, 3]], [np.cos(2.5), np.sin(2.5)], rtol=1e-6)


def test_bilinear_enlargement_is_half_pixel_centred():
    x = jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(resize_bilinear(x, (1, 4))[0, 0, :, 0], [0.0, 0.25, 0.75, 1.0], atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 15}, "divisible by 2"),
        ({"num_channels": 33}, "multiple of norm_groups 32"),
        ({"num_head_channels": 24}, "num_head_channels 24 does not divide the 64 channels at 8 px"),
        ({"num_head_channels": -1, "num_heads_upsample": 3}, "num_heads_upsample 3 does not divide"),
        ({"num_head_channels": -1, "num_heads_upsample": 0}, "num_heads_upsample 0 does not divide"),
        ({"xf_width": -16}, "xf_width must be at least 0"),
        ({"xf_heads": 3}, "xf_heads"),
        ({"dropout": 1.0}, "dropout"),
        ({"num_res_blocks": 0}, "at least 1"),
        ({"channel_mult": ()}, "channel_mult must be given"),
    ],
)
def test_impossible_architectures_are_refused(changes, message):
    with pytest.raises(GlideError, match=message):
        replace(TWO_LEVELS, **changes)


def test_heads_need_to_divide_only_levels_with_attention():
    config = replace(TWO_LEVELS, num_head_channels=64, attention_resolutions=(8,))
    shapes = jax.tree.leaves(Glide(config).abstract_params()["unet"])
    assert len(shapes) > 20
    with pytest.raises(GlideError, match="the 32 channels at 16 px"):
        replace(config, attention_resolutions=(16, 8))


@pytest.mark.parametrize("dtype", ["float16", "fp32", "2", "", 2, None])
def test_unknown_compute_options_are_refused(dtype):
    with pytest.raises(GlideError, match="use float32 or bfloat16"):
        Glide(BASE, dtype=dtype)
    with pytest.raises(GlideError, match="use float32 or bfloat16"):
        NoisedClip(dtype=dtype)
    with pytest.raises(GlideError, match="none, full or dots"):
        Glide(BASE, remat="some")


def test_attention_to_text_is_shared_among_its_keys():
    model, params, _ = base_model()
    text = jax.jit(model.encode_text)(params, TOKENS, MASK)
    attention = jax.jit(model.text_attention)
    x, t, given = inputs(BASE)
    pixels = BASE.image_size**2

    def shares(first_key):
        """With queries of 1 and keys of 0, but for the first of the text."""
        keys_values = tuple((jnp.zeros_like(k).at[:, 0].set(first_key), v) for k, v in text.keys_values)
        attending = jax.tree.map_with_path(_plain_queries, params)
        return attention(attending, x, t, given._replace(text=text._replace(keys_values=keys_values)))

    assert shares(0.0).shape == (*x.shape[:3], BASE.text_ctx)
    np.testing.assert_allclose(shares(0.0), 1 / (BASE.text_ctx + pixels), rtol=1e-5)
    first = math.exp(2 / math.sqrt(BASE.num_head_channels) * BASE.num_head_channels)
    others = BASE.text_ctx + pixels - 1
    np.testing.assert_allclose(shares(2.0)[..., 0], first / (first + others), rtol=1e-5)
    np.testing.assert_allclose(shares(2.0)[..., 1:], 1 / (first + others), rtol=1e-4)
    with pytest.raises(GlideError, match="attends to no text"):
        attention(params, x, t, given)


def _plain_queries(path, leaf):
    """Of a layer that makes queries, keys and values per head: queries of 1, keys of 0."""
    names = [part.key for part in path]
    if names[-2:] == ["qkv", "kernel"] and "unet" in names:
        return jnp.zeros_like(leaf)
    if names[-2:] == ["qkv", "bias"] and "unet" in names:
        one, zero = jnp.ones(BASE.num_head_channels), jnp.zeros(2 * BASE.num_head_channels)
        return jnp.tile(jnp.concatenate([one, zero]), leaf.size // (3 * BASE.num_head_channels))
    return leaf
