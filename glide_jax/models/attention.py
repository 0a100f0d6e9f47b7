"""The one attention function of every model here."""

from functools import cache, partial

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

    q and k are each scaled by channels^-1/4, as in the reference, and in float32: bfloat16's own factor is off by up to
    0.2 %. Half-precision inputs on CUDA take cuDNN's flash kernel; float32, other platforms and what the kernel
    refuses take XLA's.
    """
    scale = q.shape[-1] ** -0.25
    scaled = [(x.astype(jnp.float32) * scale).astype(x.dtype) for x in (q, k)]
    attend = partial(jax.nn.dot_product_attention, *scaled, v, scale=1.0, is_causal=causal)
    if _flash_applies(q):
        return attend(implementation="cudnn")
    if q.dtype != jnp.float32:
        return attend(implementation="xla")
    with jax.default_matmul_precision("highest"):  # a GPU would compute in TF32, a TPU in bfloat16
        return attend(implementation="xla")


def _flash_applies(q: Array) -> bool:
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    most = 256 if cuda_capability() >= 9 else 128
    return half and cuda_capability() >= 8 and q.shape[-1] % 8 == 0 and q.shape[-1] <= most


@cache
def cuda_capability() -> float:
    """The least compute capability of this process's GPUs, 9.0 for Hopper; 0 where JAX computes on something else."""
    if jax.default_backend() != "gpu" or "cuda" not in get_backend().platform_version.lower():
        return 0.0
    return min(float(device.compute_capability) for device in jax.local_devices())
