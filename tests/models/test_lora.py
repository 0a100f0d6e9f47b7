"""Adapters: what they add, where, and which weights they belong to."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from glide_jax.errors import GlideError
from glide_jax.models import Conditioning, Glide, LoraConfig
from glide_jax.models.lora import GROUP, fingerprint, fresh_adapters, stored_type, with_adapters
from tests.tiny.models import BASE, random_weights

PARAMS = random_weights(Glide(BASE).abstract_params())
LORA = LoraConfig(rank=2, alpha=6.0)
AXES = ("NHWC", "HWIO", "NHWC")


def names(adapters):
    return {"/".join(path[:-1]) for path in flatten_dict(adapters)}


def test_attention_and_convolutions_of_the_blocks_are_the_default_and_text_a_choice():
    found = names(fresh_adapters(LORA, PARAMS, jax.random.key(0)))
    kernels = {"/".join(path[:-1]) for path in flatten_dict(PARAMS) if path[-1] == "kernel"}
    assert found == {
        name
        for name in kernels
        if name.startswith("unet/") and ("/attn/" in name or (name.count("/") > 1 and name.endswith("conv")))
    }
    assert {name.rsplit("/", 1)[1] for name in found} == {"qkv", "text_kv", "proj", "in_conv", "out_conv"}
    everything = replace(LORA, targets=("text/*", *LORA.targets))
    text = names(fresh_adapters(everything, PARAMS, jax.random.key(0))) - found
    assert text == {name for name in kernels if name.startswith("text/")}


def test_a_convolution_gets_two_thin_ones_after_another():
    random = np.random.default_rng(0)
    x, kernel = (jnp.asarray(random.standard_normal(shape, np.float32)) for shape in ((1, 5, 5, 4), (3, 3, 4, 6)))
    down, up = (jnp.asarray(random.standard_normal(shape, np.float32)) for shape in ((3, 3, 4, 2), (2, 6)))
    whole = with_adapters({"a": {"kernel": kernel}}, {"a": {"down": down, "up": up}}, 3.0)["a"]["kernel"]

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=AXES)

    expected = convolve(x, kernel) + 3.0 * convolve(convolve(x, down), up[None, None])
    np.testing.assert_allclose(convolve(x, whole), expected, atol=1e-4)


def test_fresh_adapters_change_nothing_and_others_do():
    model, plain = Glide(BASE, lora=LORA), Glide(BASE)
    params = jax.tree.map(jnp.asarray, PARAMS)
    adapted = jax.jit(model.adapt)(params, jax.random.key(0))
    assert jax.tree.map(jnp.shape, adapted) == jax.tree.map(jnp.shape, model.abstract_params())
    tokens, mask = jnp.ones((1, BASE.text_ctx), int), jnp.ones((1, BASE.text_ctx), bool)
    x, t = jnp.ones((1, 8, 8, 3)), jnp.ones(1)

    @partial(jax.jit, static_argnums=0)
    def output(model, params):
        return model(params, x, t, Conditioning(model.encode_text(params, tokens, mask)))

    np.testing.assert_array_equal(output(model, adapted), output(plain, params))
    moved = adapted | {GROUP: jax.tree.map(jnp.asarray, random_weights(adapted[GROUP]))}
    base = {name: group for name, group in moved.items() if name != GROUP}
    expected = output(plain, with_adapters(base, moved[GROUP], 3.0))
    np.testing.assert_allclose(output(model, moved), expected, atol=1e-4)
    assert np.abs(expected - output(plain, params)).max() > 0.01


def test_fresh_magnitudes_are_the_kernels_norms_and_change_nothing():
    model = Glide(BASE, lora=replace(LORA, dora=True))
    params = jax.tree.map(jnp.asarray, PARAMS)
    adapted = jax.jit(model.adapt)(params, jax.random.key(0))
    assert jax.tree.map(jnp.shape, adapted) == jax.tree.map(jnp.shape, model.abstract_params())
    found = {path[:-1]: leaf for path, leaf in flatten_dict(adapted[GROUP]).items() if path[-1] == "magnitude"}
    assert {"/".join(path) for path in found} == names(adapted[GROUP])
    flat = flatten_dict(PARAMS)
    for path, leaf in found.items():
        kernel = flat[*path, "kernel"].reshape(-1, len(leaf))
        np.testing.assert_allclose(leaf, np.linalg.norm(kernel, axis=0), rtol=1e-5)
    whole = jax.jit(with_adapters)(params, adapted[GROUP], model.lora.scale)
    for path, leaf in flatten_dict(whole).items():
        np.testing.assert_allclose(leaf, flat[path], rtol=1e-6, err_msg="/".join(path))


@pytest.mark.parametrize("taps", [(), (3, 3)], ids=["linear", "conv"])
def test_dora_is_the_published_formula_in_value_and_gradient(taps):
    """A layer and its adapter one beside the other, in PyTorch; the norm is no part of the gradient."""
    torch = pytest.importorskip("torch", reason="torch is not installed: uv sync --inexact --extra torch")
    functional, random = torch.nn.functional, np.random.default_rng(0)
    draw = lambda *shape: random.standard_normal(shape, np.float32)  # noqa: E731
    x, kernel = draw(2, *(5 for _ in taps), 4), draw(*taps, 4, 6)
    thin = {"down": draw(*taps, 4, 2), "up": draw(2, 6), "magnitude": draw(6)}

    def ours(thin):
        whole = with_adapters({"a": {"kernel": jnp.asarray(kernel)}}, {"a": thin}, 3.0)["a"]["kernel"]
        y = (
            jax.lax.conv_general_dilated(x, whole, (1,) * len(taps), "SAME", dimension_numbers=AXES)
            if taps
            else x @ whole
        )
        return jnp.square(y).sum(), y

    (_, y), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(jax.tree.map(jnp.asarray, thin))
    theirs = {name: torch.tensor(array, requires_grad=True) for name, array in thin.items()}
    weight, down = (each.permute(-1, -2, *range(len(taps))) for each in (torch.tensor(kernel), theirs["down"]))
    up, image = theirs["up"].T, torch.tensor(x).movedim(-1, 1)
    if taps:
        inner = functional.conv2d(image, down, padding=1)
        sides = functional.conv2d(image, weight, padding=1), functional.conv2d(inner, up[..., None, None])
    else:
        sides = functional.linear(image, weight), functional.linear(functional.linear(image, down), up)
    direction = weight + 3.0 * torch.einsum("or,ri...->oi...", up, down)
    norms = direction.flatten(1).norm(dim=1).detach()
    expected = (sides[0] + 3.0 * sides[1]).movedim(1, -1) * theirs["magnitude"] / norms
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-4, atol=1e-4)
    expected.square().sum().backward()
    for name, leaf in theirs.items():
        np.testing.assert_allclose(gradient[name], leaf.grad, rtol=1e-4, atol=1e-3, err_msg=name)


def test_a_unit_of_zeros_stays_one():
    kernel = jnp.ones((3, 2)).at[:, 1].set(0.0)
    thin = {"down": jnp.ones((3, 1)), "up": jnp.zeros((1, 2)), "magnitude": jnp.array([jnp.sqrt(3.0), 0.0])}

    def total(thin):
        return with_adapters({"a": {"kernel": kernel}}, {"a": thin}, 1.0)["a"]["kernel"]

    np.testing.assert_array_equal(total(thin), kernel)
    gradient = jax.jit(jax.grad(lambda thin: total(thin).sum()))(thin)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_kernels_stored_as_their_layers_round_them_change_nothing():
    model = Glide(BASE, "bfloat16")
    params = jax.tree.map(jnp.asarray, PARAMS)
    flat = flatten_dict(params)
    stored = unflatten_dict({path: leaf.astype(stored_type(path, jnp.bfloat16)) for path, leaf in flat.items()})
    halved = [path for path, leaf in flatten_dict(stored).items() if leaf.dtype == jnp.bfloat16]
    assert len(halved) > 0.8 * sum(path[-1] == "kernel" for path in flat)
    tokens, mask = jnp.ones((1, BASE.text_ctx), int), jnp.ones((1, BASE.text_ctx), bool)

    @jax.jit
    def output(params):
        text = model.encode_text(params, tokens, mask)
        return model(params, jnp.ones((1, 8, 8, 3)), jnp.ones(1), Conditioning(text))

    np.testing.assert_array_equal(output(stored), output(params))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("unet/*/atn/*",)}, r"no layer is named like 'unet/\*/atn/\*'; one is named \S+/"),
        ({"targets": ()}, r"train\.lora\.targets names no layer"),
        ({"rank": 97}, "rank 97 is more than any of the layers has: use at most 32"),
        ({"rank": 0, "dora": True}, "train.lora.dora needs adapters: give train.lora.rank"),
    ],
)
def test_what_no_layer_has_is_refused(changes, message):
    with pytest.raises(GlideError, match=message):
        Glide(BASE, lora=replace(LORA, **changes)).abstract_params()


def test_the_fingerprint_is_of_the_kernels_in_any_type():
    before = fingerprint(PARAMS)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), PARAMS)
    assert fingerprint(half) == before
    kernel = PARAMS["unet"]["middle"]["0"]["attn"]["qkv"]["kernel"].copy()
    kernel[3, 5] *= -1
    qkv = PARAMS["unet"]["middle"]["0"]["attn"]["qkv"] | {"kernel": kernel}
    changed = jax.tree.map(lambda x: x, PARAMS)
    changed["unet"]["middle"]["0"]["attn"]["qkv"] = qkv
    assert fingerprint(changed) != before
