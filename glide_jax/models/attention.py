"""The one attention function of every model here."""

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

    q and k are each scaled by channels^-1/4, as in the reference, and in float32: bfloat16's own factor is off by up to
    0.2 %. Half-precision inputs on CUDA take cuDNN's flash kernel; float32, other platforms and what the kernel
    refuses take XLA's.
    """
    scale = q.shape[-1] ** -0.25
    scaled = [(x.astype(jnp.float32) * scale).astype(x.dtype) for x in (q, k)]

    def attend(implementation: Literal["xla", "cudnn"], *qkv: Array) -> Array:
        return jax.nn.dot_product_attention(*qkv, scale=1.0, is_causal=causal, implementation=implementation)

    if not _flash_applies(q):
        return attend("xla", *scaled, v)
    # A process with a GPU may compute on its CPU too.
    return jax.lax.platform_dependent(*scaled, v, cuda=partial(attend, "cudnn"), default=partial(attend, "xla"))


def attention_weights(
    q: Float[Array, "batch queries heads channels"], k: Float[Array, "batch keys heads channels"]
) -> Float[Array, "batch queries keys"]:
    """softmax(q k^T / sqrt(channels)) in float32, averaged over the heads: what `attention` weights values by."""
    logits = jnp.einsum("bqhc,bkhc->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    return jax.nn.softmax(logits, axis=-1).mean(axis=1)


def _flash_applies(q: Array) -> bool:
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    most = 256 if cuda_capability() >= 9 else 128
    return half and cuda_capability() >= 8 and q.shape[-1] % 8 == 0 and q.shape[-1] <= most
