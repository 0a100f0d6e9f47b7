"""Building blocks in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from glide_jax.models.layers import conv


def test_the_gradient_of_a_convolutions_bias_is_summed_in_float32():
    """Summed over 8192 pixels in bfloat16, what is left after cancellation would be off by several per cent."""
    layer = conv(3, 8, 3, jnp.bfloat16, nnx.Rngs(0))
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
