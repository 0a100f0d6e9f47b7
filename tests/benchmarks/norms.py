"""Our group norm with swish and flax's, forward and with gradients, on 16 images of 32 x 32 x 64.

python tests/benchmarks/norms.py
"""

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from glide_jax.models.layers import GroupNorm

CHANNELS = 64


def fastest(run: Callable[[], object], times: int = 15) -> float:
    jax.block_until_ready(run())
    taken = []
    for _ in range(times):
        begun = time.monotonic()
        jax.block_until_ready(run())
        taken.append(time.monotonic() - begun)
    return 1e3 * min(taken)


def main() -> None:
    x = jax.random.normal(jax.random.key(0), (16, 32, 32, CHANNELS))
    ours = GroupNorm(CHANNELS, 32, jnp.float32)
    flax = nnx.GroupNorm(CHANNELS, num_groups=32, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))
    norms = {"ours": partial(ours, swish=True), "flax": lambda x: jax.nn.silu(flax(x))}
    print(f"jax {jax.__version__}, milliseconds forward and with gradients")
    for name, norm in norms.items():
        forward = jax.jit(norm)
        both = jax.jit(jax.grad(lambda x, forward=forward: (forward(x) ** 3).sum()))
        times = [fastest(lambda f=f: f(x)) for f in (forward, both)]
        print(f"{name}: {times[0]:.2f}, {times[1]:.2f}")


if __name__ == "__main__":
    main()
