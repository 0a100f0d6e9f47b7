"""The one attention function of every model here."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.extend.backend import get_backend
from jaxtyping import Array, Float


def attention(
    q: Float[Array, "batch queries heads channels"],
    k: Float[Array, "batch keys heads channels"],
    v: Float[Array, "batch keys heads channels"],
    *,
    causal: bool = False,
) -> Float[Array, "batch queries heads channels"]:
    """softmax(q k^T / sqrt(channels)) v, with the softmax in float32 (torch: QKVAttention).

    q and k are each scaled by channels^-1/4, as in the reference. Half-precision inputs on CUDA take cuDNN's
    flash kernel; float32, other platforms and shapes the kernel refuses take XLA's.
    """
    scale = q.shape[-1] ** -0.25
    implementation: Literal["cudnn", "xla"] = "cudnn" if _flash_applies(q, k) else "xla"
    return jax.nn.dot_product_attention(
        q * jnp.asarray(scale, q.dtype),
        k * jnp.asarray(scale, k.dtype),
        v,
        scale=1.0,
        is_causal=causal,
        implementation=implementation,
    )


def _flash_applies(q: Array, k: Array) -> bool:
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    heads_fit = q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    lengths_fit = q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
    return half and heads_fit and lengths_fit and _on_cuda()


def _on_cuda() -> bool:
    return jax.default_backend() == "gpu" and "cuda" in get_backend().platform_version.lower()
