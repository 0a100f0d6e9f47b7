"""The kernel's gradient on CPUs against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from glide_jax.models.convolution import kernel_gradient
from glide_jax.models.functional import fresh
from glide_jax.models.layers import conv


def convolution(x, kernel):
    padding = [(kernel.shape[0] // 2,) * 2] * 2
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def draw(*shape):
    return np.random.RandomState(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize(
    ("batch", "height", "width"), [(1, 64, 64), (2, 48, 32), (3, 7, 5), (4, 8, 8), (1, 1, 9)], ids=str
)
def test_it_is_the_gradient_of_the_convolution(batch, height, width, size):
    x, gradient = draw(batch, height, width, 6), draw(batch, height, width, 10)
    kernel = draw(size, size, 6, 10)
    expected = jax.jit(lambda *given: jax.vjp(convolution, *given[:2])[1](given[2])[1])(x, kernel, gradient)
    found = jax.jit(kernel_gradient, static_argnums=2)(x, gradient, size)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_layers_gradients_are_those_of_the_plain_convolution(size, stride, dtype):
    layer = fresh(lambda rngs: conv(32, 64, size, dtype, rngs, stride=stride), jax.random.key(0))
    graph, params = nnx.split(layer)
    x = jnp.asarray(draw(2, 32, 32, 32), dtype)
    weight = draw(2, 32 // stride, 32 // stride, 64)

    @jax.jit
    def gradients(params, x):
        def loss(params, x):
            return (nnx.merge(graph, params)(x).astype(jnp.float32) * weight).sum()

        return jax.grad(loss, argnums=(0, 1))(params, x)

    of_params, of_x = gradients(params, x)

    def exact(kernel, x):
        padding, numbers = [(size // 2,) * 2] * 2, ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers)
        return (y * weight).sum()

    kernel, x = layer.kernel[...].astype(dtype).astype(jnp.float32), x.astype(jnp.float32)
    expected = jax.jit(jax.grad(exact, argnums=(0, 1)))(kernel, x)
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    for mine, true in zip((nnx.to_pure_dict(of_params)["kernel"], of_x), expected, strict=True):
        np.testing.assert_allclose(np.float32(mine), true, atol=tolerance * np.abs(true).max())


def test_gradients_of_gradients_pass_through():
    layer = fresh(lambda rngs: conv(4, 4, 3, jnp.float32, rngs), jax.random.key(0))
    graph, params = nnx.split(layer)
    x = jnp.asarray(draw(1, 8, 8, 4))

    @jax.jit
    def slope(x):
        gradient = jax.grad(lambda params: jnp.square(nnx.merge(graph, params)(x)).sum())(params)
        return jnp.square(nnx.to_pure_dict(gradient)["kernel"]).sum()

    direction, step = jnp.asarray(draw(1, 8, 8, 4)), 1e-2
    numeric = (slope(x + step * direction) - slope(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(jax.grad(slope)(x), direction), numeric, rtol=1e-2)


@pytest.mark.parametrize(("size", "stride", "quick"), [(1, 1, True), (3, 1, True), (3, 2, False)])
def test_layers_that_keep_the_size_have_the_quick_gradient(size, stride, quick):
    graph, params = nnx.split(fresh(lambda rngs: conv(4, 4, size, jnp.float32, rngs, stride=stride), jax.random.key(0)))
    gradient = jax.grad(lambda params, x: nnx.merge(graph, params)(x).sum())
    program = str(jax.make_jaxpr(gradient)(params, jnp.zeros((1, 8, 8, 4))))
    assert ("platform_index" in program) == (quick and jax.device_count() == 1)


def test_parameters_of_numpy_are_constants_of_the_program():
    layer = fresh(lambda rngs: conv(4, 4, 3, jnp.float32, rngs), jax.random.key(0))
    graph, params = nnx.split(layer)
    constants = jax.tree.map(np.asarray, params)
    x = jnp.asarray(draw(1, 8, 8, 4))
    np.testing.assert_array_equal(jax.jit(nnx.merge(graph, constants))(x), jax.jit(layer)(x))
