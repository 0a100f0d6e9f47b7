"""Group norm, modulation and swish as one function, whose gradient passes over memory as seldom as XLA lets it."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Image = Float[Array, "batch height width channels"]
PerChannel = Float[Array, "batch channels"]


def normalize(
    x: Image, scale: PerChannel, shift: PerChannel, *, groups: int, epsilon: float, swish: bool, dtype: DTypeLike
) -> Image:
    """y = scale (x - mean) / sqrt(variance + epsilon) + shift, or y sigmoid(y) if `swish`, computed in float32.

    Mean and variance are those of each image's `groups` groups of channels. It can be differentiated in reverse mode.

    Args:
        dtype: that of the result.
    """
    return _normalize(groups, epsilon, swish, jnp.dtype(dtype), x, scale, shift)


STATISTICS = "statistics"  # what rematerialization calls means and 1 / deviations

Saved = tuple[Image, PerChannel, PerChannel, PerChannel, PerChannel]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _normalize(
    groups: int, epsilon: float, swish: bool, dtype: DTypeLike, x: Image, scale: PerChannel, shift: PerChannel
) -> Image:
    return _forward(groups, epsilon, swish, dtype, x, scale, shift)[0]


def _forward(
    groups: int, epsilon: float, swish: bool, dtype: DTypeLike, x: Image, scale: PerChannel, shift: PerChannel
) -> tuple[Image, Saved]:
    wide = x.astype(jnp.float32)
    if x.dtype.itemsize > 2:
        (mean,) = _group_means(_pixel_means(wide), groups)
        (variance,) = _group_means(_pixel_means((wide - _image(mean)) ** 2), groups)
    else:
        # One pass over memory in place of two. The difference is off by 1e-7 (mean / deviation)^2 of the variance: it
        # matters where the deviation is less than bfloat16's distance between two numbers at the mean.
        mean, square = _group_means(_pixel_means(wide, wide * wide), groups)
        variance = jnp.maximum(square - mean * mean, 0)
    mean, factor = checkpoint_name((mean, jax.lax.rsqrt(variance + epsilon)), STATISTICS)
    y = (wide - _image(mean)) * _image(factor * scale) + _image(shift)
    return (jax.nn.silu(y) if swish else y).astype(dtype), (x, scale, shift, mean, factor)


def _backward(
    groups: int, epsilon: float, swish: bool, dtype: DTypeLike, saved: Saved, gradient: Image
) -> tuple[Image, PerChannel, PerChannel]:
    x, scale, shift, mean, factor = saved

    def before_swish(mean: PerChannel, factor: PerChannel) -> tuple[Image, Image]:
        """The normalized image, and the gradient of y."""
        normal = (x.astype(jnp.float32) - _image(mean)) * _image(factor)
        wide = gradient.astype(jnp.float32)
        if not swish:
            return normal, wide
        y = normal * _image(scale) + _image(shift)
        sigmoid = jax.nn.sigmoid(y)
        return normal, wide * (sigmoid * (1 + y * (1 - sigmoid)))

    normal, of_y = before_swish(mean, factor)
    means = _pixel_means(of_y, of_y * normal)
    # What moves all of a group, or stretches it, changes nothing: such parts of the gradient are taken away.
    moving, stretching = _group_means(scale[None] * means, groups)
    # Computed once more, in less time than it takes a GPU to write and read them, which XLA would have it do.
    moving, stretching, mean, factor = jax.lax.optimization_barrier((moving, stretching, mean, factor))
    normal, of_y = before_swish(mean, factor)
    of_x = (of_y * _image(scale) - _image(moving) - normal * _image(stretching)) * _image(factor)
    of_shift, of_scale = means * (x.shape[1] * x.shape[2])
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_shift.astype(shift.dtype)


_normalize.defvjp(_forward, _backward)


def _pixel_means(*images: Image) -> Float[Array, "images batch channels"]:
    """The mean of each over its pixels, rows first, so that a small batch is many sums for a GPU too."""
    return jnp.stack([image.mean(2) for image in images]).mean(2)


def _group_means(means: Float[Array, "images batch channels"], groups: int) -> Float[Array, "images batch channels"]:
    """For each channel the mean over its group."""
    grouped = means.reshape(*means.shape[:2], groups, -1)
    return jnp.repeat(grouped.mean(-1), grouped.shape[-1], axis=-1)


def _image(values: PerChannel) -> Float[Array, "batch 1 1 channels"]:
    return values[:, None, None]
