"""A convolution whose kernel gradient is also fast on a CPU."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Image = Float[Array, "batch height width channels"]
Kernel = Float[Array, "size size channels features"]
NumPyKernel = Float[np.ndarray, "size size channels features"]

# Pixels whose shifted copies still fit into a core's cache.
_BLOCK_PIXELS = 1024


def convolve(
    x: Image, kernel: Kernel | NumPyKernel, strides: tuple[int, int], padding: Any, **options: Any
) -> Float[Array, "batch new_height new_width features"]:
    """`jax.lax.conv_general_dilated` over NHWC images, as `nnx.Conv` calls it without dilation or groups.

    A NumPy kernel is a constant. On a single CPU device, the kernel gradient of a convolution that keeps the size is
    computed by `kernel_gradient`: XLA would convolve with a kernel as large as the image, up to fourteen times slower.
    With several devices XLA's own is used, because there each block's sum would become a sum over all of them.
    """

    if options.get("precision") is None:  # gradients are traced after the model's call has returned
        options["precision"] = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009 (mypy does not know it)

    def plain(x: Image, kernel: Kernel) -> Float[Array, "..."]:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)

    kernel = jnp.asarray(kernel)
    size = kernel.shape[0]
    keeps_size = size % 2 == 1 and strides == (1, 1) and [*map(tuple, padding)] == [(size // 2,) * 2] * 2
    quick = keeps_size and jax.device_count() == 1
    return (_with_quick_gradient(plain) if quick else plain)(x, kernel)


def kernel_gradient(
    x: Image, gradient: Float[Array, "batch height width features"], size: int
) -> Float[Array, "size size channels features"]:
    """Kernel gradient of a zero-padded convolution of odd `size` and stride 1, summed in at least float32.

    dW[i, j] = sum_p x[p + (i, j) - size // 2]^T gradient[p]. Moving x along the rows and the gradient along the columns
    turns this into a single matrix product over all pixels, of `size` times the channels by `size` times the features.
    It is summed over blocks of rows, so that the moved copies never leave the cache.
    """
    batch, height, width, channels = x.shape
    features, half = gradient.shape[-1], size // 2
    most = max(1, _BLOCK_PIXELS // (batch * width))
    rows = max(n for n in range(1, min(most, height) + 1) if height % n == 0)
    x = jnp.pad(x, ((0, 0), (0, 0), (half, half), (0, 0)))
    gradient = jnp.pad(gradient, ((0, 0), (half, half), (0, 0), (0, 0)))
    kind = jnp.promote_types(x.dtype, jnp.float32)

    def add_block(block: Any, total: Array) -> Array:
        some_x = jax.lax.dynamic_slice_in_dim(x, block * rows, rows, axis=1)
        some_g = jax.lax.dynamic_slice_in_dim(gradient, block * rows, rows + 2 * half, axis=1)
        moved_x = jnp.concatenate([some_x[:, :, j : j + width] for j in range(size)], axis=-1)
        moved_g = jnp.concatenate([some_g[:, i : i + rows] for i in reversed(range(size))], axis=-1)
        exact = jax.lax.Precision.HIGHEST
        return total + jnp.einsum("bhwc,bhwd->cd", moved_x, moved_g, precision=exact, preferred_element_type=kind)

    total = jnp.zeros((size * channels, size * features), kind)
    total = jax.lax.fori_loop(0, height // rows, add_block, total)
    return total.reshape(size, channels, size, features).transpose(2, 0, 1, 3)


def _with_quick_gradient(plain: Callable[[Image, Kernel], Array]) -> Callable[[Image, Kernel], Array]:
    quick = jax.custom_vjp(plain)

    def forward(x: Image, kernel: Kernel) -> tuple[Array, tuple[Image, Kernel]]:
        return plain(x, kernel), (x, kernel)

    def backward(saved: tuple[Image, Kernel], gradient: Array) -> tuple[Array, Array]:
        x, kernel = saved
        (of_x,) = jax.vjp(lambda x: plain(x, kernel), x)[1](gradient)
        of_kernel = jax.lax.platform_dependent(
            x,
            gradient,
            cpu=lambda x, gradient: kernel_gradient(x, gradient, kernel.shape[0]).astype(kernel.dtype),
            default=lambda x, gradient: jax.vjp(lambda kernel: plain(x, kernel), kernel)[1](gradient)[0],
        )
        return of_x, of_kernel

    quick.defvjp(forward, backward)
    return quick
