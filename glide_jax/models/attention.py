"""The attention function that all models here share."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from glide_jax.compute import cuda_capability


def attention(
    q: Float[Array, "batch queries heads channels"],
    k: Float[Array, "batch keys heads channels"],
    v: Float[Array, "batch keys heads channels"],
    *,
    causal: bool = False,
) -> Float[Array, "batch queries heads channels"]:
    """softmax(q k^T / sqrt(channels)) v, with the softmax in float32 (torch: QKVAttention).

    q and k are each scaled by channels^-1/4, as in the reference, and in float32: rounded to bfloat16 the factor would
    be off by up to 0.2 %. Half-precision inputs on CUDA use cuDNN's flash kernel; float32, other platforms and shapes
    that the kernel refuses use XLA's.
    """
    scale = q.shape[-1] ** -0.25
    scaled = [(x.astype(jnp.float32) * scale).astype(x.dtype) for x in (q, k)]

    def attend(implementation: Literal["xla", "cudnn"], *qkv: Array) -> Array:
        return jax.nn.dot_product_attention(*qkv, scale=1.0, is_causal=causal, implementation=implementation)

    if not _flash_applies(q, k):
        return attend("xla", *scaled, v)
    # A process with a GPU may also compute on its CPU.
    return jax.lax.platform_dependent(*scaled, v, cuda=partial(attend, "cudnn"), default=partial(attend, "xla"))


def attention_weights(
    q: Float[Array, "batch queries heads channels"], k: Float[Array, "batch keys heads channels"]
) -> Float[Array, "batch queries keys"]:
    """softmax(q k^T / sqrt(channels)) in float32, averaged over heads: the weights of the values in `attention`."""
    logits = jnp.einsum("bqhc,bkhc->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    return jax.nn.softmax(logits, axis=-1).mean(axis=1)


def _flash_applies(q: Array, k: Array) -> bool:
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    most = 256 if cuda_capability() >= 9 else 128
    channels = q.shape[-1] % 8 == 0 and q.shape[-1] <= most
    even = q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0  # others have no gradient
    return half and cuda_capability() >= 8 and channels and even
