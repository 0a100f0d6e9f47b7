"""Building blocks: what is computed in which type and precision, and what is kept for the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from glide_jax.models import Conditioning
from glide_jax.models.attention import attention
from glide_jax.models.functional import fresh, in_turn
from glide_jax.models.layers import conv
from glide_jax.models.text import TextBlock
from tests.tiny.models import BASE, random_clip, random_model


def test_the_gradient_of_a_convolutions_bias_is_summed_in_float32():
    """Summed over 8192 pixels in bfloat16, what is left after cancellation would be off by several per cent."""
    layer = fresh(lambda rngs: conv(3, 8, 3, jnp.bfloat16, rngs), jax.random.key(0))
    random = np.random.RandomState(0)
    x = jnp.asarray(random.standard_normal((2, 64, 64, 3)), jnp.bfloat16)
    weight = jnp.asarray(random.standard_normal((2, 64, 64, 8)), jnp.bfloat16)
    graph, params = nnx.split(layer)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: (nnx.merge(graph, p)(x) * weight).astype(jnp.float32).sum())(params)

    bias = nnx.to_pure_dict(gradient(params))["bias"]
    exact = np.asarray(weight, np.float64).sum((0, 1, 2))
    np.testing.assert_allclose(bias, exact, rtol=1e-4, atol=1e-4 * np.abs(exact).max())
    assert nnx.merge(graph, params)(x).dtype == jnp.bfloat16


HIGHEST = jax.lax.Precision.HIGHEST


def products(jaxpr):
    """All matrix products and convolutions of a program, those within other operations too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


def assert_products_have(precision, function, *arguments):
    found = list(products(jax.make_jaxpr(function)(*arguments).jaxpr))
    assert len(found) > 2
    for equation in found:
        if all(operand.aval.dtype == jnp.float32 for operand in equation.invars):
            # What only a CPU computes is never less than exact: it has no other products.
            exact = equation.params["dimension_numbers"] == (((0, 1, 2), (0, 1, 2)), ((), ()))
            expected = HIGHEST if exact else precision
            assert equation.params["precision"] in (expected, (expected, expected)), equation


@pytest.mark.parametrize(
    ("dtype", "precision"), [("float32", HIGHEST), ("bfloat16", HIGHEST), ("tf32", jax.lax.Precision.HIGH)]
)
def test_float32_is_asked_for_in_full_precision_in_both_directions(dtype, precision):
    """Otherwise an H100 computes it in TF32 and a TPU in bfloat16; there are float32 layers in a bfloat16 model too."""
    loaded = random_model(dtype=dtype)
    model, params = loaded.stage.model, loaded.params
    x, t = jnp.zeros((1, BASE.image_size, BASE.image_size, 3)), jnp.zeros(1)
    tokens, mask = jnp.zeros((1, BASE.text_ctx), int), jnp.ones((1, BASE.text_ctx), bool)

    def loss(params):
        return model(params, x, t, Conditioning(model.encode_text(params, tokens, mask))).sum()

    assert_products_have(precision, jax.grad(loss), params)


def test_the_noised_clip_is_float32_too():
    clip = random_clip()
    size = clip.model.image.image_size
    assert_products_have(HIGHEST, clip.model.encode_image, clip.params, jnp.zeros((1, size, size, 3)), jnp.zeros(1))


def test_queries_and_keys_are_scaled_in_float32():
    """32^-1/4 is 0.42045, and 0.41992 in bfloat16, which would make all logits 0.25 % too small."""
    random = np.random.RandomState(0)
    q = jnp.asarray(random.standard_normal((1, 4096, 1, 32)), jnp.bfloat16)
    k = jnp.asarray(random.standard_normal((1, 2, 1, 32)), jnp.bfloat16)
    v = jnp.eye(2, 32, dtype=jnp.bfloat16)[None, :, None]
    weights = np.asarray(attention(q, k, v), np.float64)[0, :, 0]
    found = np.log(weights[:, 0] / weights[:, 1])
    queries, keys = np.asarray(q, np.float64)[0, :, 0], np.asarray(k, np.float64)[0, :, 0]
    exact = queries @ (keys[0] - keys[1]) / np.sqrt(32)
    assert abs((found * exact).sum() / (exact**2).sum() - 1) < 1e-3


def test_the_gradient_of_text_layers_keeps_what_linear_layers_return():
    layers, batch, ctx, width = 3, 2, 8, 32
    blocks = [
        fresh(lambda rngs: TextBlock(width, 2, layers, jnp.float32, rngs), jax.random.key(i)) for i in range(layers)
    ]
    _, pull = jax.vjp(lambda x: in_turn(blocks, x), jnp.ones((batch, ctx, width)))
    kept = sorted(x.shape[3] for x in jax.tree.leaves(pull) if x.shape[:3] == (layers, batch, ctx))
    # Also what came in; what the last of a layer's returns is the next one's.
    assert kept == [width, width, 3 * width, 4 * width]
