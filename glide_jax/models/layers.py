"""The building blocks whose numerics must match PyTorch: norms, convolutions, resampling, time embedding."""

import math
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from glide_jax.models.convolution import convolve
from glide_jax.models.functional import Draws
from glide_jax.models.normalization import normalize

CONVOLUTION = "convolution"  # what rematerialization calls a convolution's result


def uniform(draws: Draws, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Float[Array, "..."]:
    """Initial weights uniform in +-1/sqrt(fan_in): PyTorch's default for Linear and Conv."""
    return draws.take(shape).astype(dtype) / math.sqrt(math.prod(shape[:-1]))


def normal(std: float) -> nnx.Initializer:
    """Initial weights from a normal distribution."""

    def init(draws: Draws, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Float[Array, "..."]:
        return jax.lax.erf_inv(draws.take(shape)).astype(dtype) * (std * math.sqrt(2))

    return cast(nnx.Initializer, init)


def linear(
    features_in: int, features_out: int, dtype: DTypeLike, rngs: nnx.Rngs, init: nnx.Initializer = uniform
) -> nnx.Linear:
    """A dense layer with float32 parameters that computes in `dtype` (torch: Linear, Conv1d of width 1)."""
    return nnx.Linear(
        features_in,
        features_out,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=init,
        rngs=rngs,
    )


class _Conv(nnx.Conv):
    """Adds the bias in float32: its gradient is a sum over all pixels, too long for bfloat16."""

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "..."]:
        return checkpoint_name(super().__call__(x).astype(self.dtype), CONVOLUTION)


def _all_but_bias(args: Sequence[Array | None], dtype: DTypeLike) -> list[Array | None]:
    inputs, kernel, bias = args
    return [None if arg is None else arg.astype(dtype) for arg in (inputs, kernel)] + [bias]


def conv(
    channels_in: int,
    channels_out: int,
    size: int,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    *,
    stride: int = 1,
    init: nnx.Initializer = uniform,
) -> nnx.Conv:
    """A `size` x `size` convolution over NHWC images, zero-padded by size // 2 (torch: Conv2d)."""
    return _Conv(
        channels_in,
        channels_out,
        (size, size),
        strides=stride,
        padding=size // 2,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=init,
        promote_dtype=_all_but_bias,
        conv_general_dilated=convolve,
        rngs=rngs,
    )


class GroupNorm(nnx.Module):
    """GroupNorm with eps 1e-5, computed in float32, and optionally what follows it (torch: GroupNorm32).

    Attributes:
        dtype: that of the result.
    """

    def __init__(self, channels: int, groups: int, dtype: DTypeLike) -> None:
        self.groups, self.dtype = groups, dtype
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        modulation: tuple[Float[Array, "batch channels"], Float[Array, "batch channels"]] | None = None,
        *,
        swish: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        """The normalized `x`; with (scale, shift) as `modulation` times 1 + scale plus shift; then swish of that."""
        scale, shift = self.scale[...][None], self.bias[...][None]
        if modulation is not None:
            factor, offset = 1 + modulation[0].astype(jnp.float32), modulation[1].astype(jnp.float32)
            scale, shift = scale * factor, shift * factor + offset
        scale, shift = (jnp.broadcast_to(part, (x.shape[0], x.shape[-1])) for part in (scale, shift))
        return normalize(x, scale, shift, groups=self.groups, epsilon=1e-5, swish=swish, dtype=self.dtype)


def layer_norm(channels: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with eps 1e-5, two-pass statistics in float32 (torch: xf.LayerNorm)."""
    return nnx.LayerNorm(
        channels, epsilon=1e-5, use_fast_variance=False, dtype=dtype, param_dtype=jnp.float32, rngs=rngs
    )


def zeros_linear(features_in: int, features_out: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer that starts at zero, so that a residual block starts as identity (torch: zero_module)."""
    return linear(features_in, features_out, dtype, rngs, init=nnx.initializers.zeros_init())


def timestep_embedding(t: Float[Array, " batch"], dim: int, max_period: float = 10000.0) -> Float[Array, "batch dim"]:
    """Embedding cat[cos, sin] of original timesteps, fractional ones too (torch: timestep_embedding)."""
    half = dim // 2
    exponents = np.float32(-math.log(max_period)) * np.arange(half, dtype=np.float32) / np.float32(half)
    # PyTorch's float32 exponential is correctly rounded more often than NumPy's.
    freqs = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * freqs[None]
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


def kept_by_dropout(
    keys: Key[Array, " batch"], shapes: Sequence[tuple[int, ...]], rate: float
) -> list[Bool[Array, "batch ..."]]:
    """For each shape, masks that are false with probability `rate`, to within 1/65536; one key per example.

    All are cut from one draw, in which each 32-bit word serves two positions: a draw for each layer would take XLA
    minutes to compile for a GPU.
    """
    sizes = [math.prod(shape) for shape in shapes]
    half = -(-sum(sizes) // 2)
    words = jax.vmap(lambda key: jax.random.bits(key, (half,), jnp.uint32))(keys)
    threshold = np.uint32(round(rate * 2**16))
    keep = jnp.concatenate([words & 0xFFFF, words >> 16], axis=1) >= threshold
    # Otherwise XLA would repeat the draw in the kernels of every layer.
    keep = jax.lax.optimization_barrier(keep)
    ends = np.cumsum(sizes)[:-1].tolist()
    parts = jnp.split(keep[:, : sum(sizes)], ends, axis=1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def dropout(
    x: Float[Array, "batch *shape"], rate: float, keep: Bool[Array, "batch *shape"] | None
) -> Float[Array, "batch *shape"]:
    """Zeroes the values not kept and rescales the others; `None` leaves `x` as it is, for evaluation."""
    if keep is None:
        return x
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def upsample_nearest(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height*2 width*2 channels"]:
    """Doubles both sides by repeating pixels."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, height * 2, width * 2, channels)


def downsample_average(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height//2 width//2 channels"]:
    """Halves both sides by averaging 2 x 2 pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def resize_bilinear(x: Float[Array, "batch height width channels"], size: tuple[int, int]) -> Float[Array, "..."]:
    """Enlarges to `size` = (height, width) (torch: interpolate(mode="bilinear", align_corners=False))."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), method="linear", antialias=False)
