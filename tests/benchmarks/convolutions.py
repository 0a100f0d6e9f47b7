"""GFLOP/s of a 3x3 convolution at the base model's widths, and of its two gradients, in XLA and in PyTorch on a CPU.

python tests/benchmarks/convolutions.py
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F

BATCH = 2
SHAPES = ((192, 64), (384, 32), (576, 16), (768, 8))  # channels, side


def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def fastest(run: Callable[[], object], times: int = 4) -> float:
    run()
    taken = []
    for _ in range(times):
        begun = time.monotonic()
        jax.block_until_ready(run())
        taken.append(time.monotonic() - begun)
    return min(taken)


def ours(channels: int, side: int) -> list[Callable[[], object]]:
    x, w = jnp.ones((BATCH, side, side, channels)), jnp.ones((3, 3, channels, channels))
    forward = jax.jit(convolve)
    of_picture = jax.jit(lambda x, w, g: jax.vjp(lambda x: convolve(x, w), x)[1](g)[0])
    of_kernel = jax.jit(lambda x, w, g: jax.vjp(lambda w: convolve(x, w), w)[1](g)[0])
    return [lambda: forward(x, w), lambda: of_picture(x, w, x), lambda: of_kernel(x, w, x)]


def theirs(channels: int, side: int) -> list[Callable[[], object]]:
    x, w = torch.ones(BATCH, channels, side, side), torch.ones(channels, channels, 3, 3)
    return [
        lambda: F.conv2d(x, w, padding=1),
        lambda: torch.nn.grad.conv2d_input(x.shape, w, x, padding=1),
        lambda: torch.nn.grad.conv2d_weight(x, w.shape, x, padding=1),
    ]


def main() -> None:
    print("| channels, side | XLA | oneDNN | ratio |\n|---|---|---|---|")
    for channels, side in SHAPES:
        gflop = 2 * 9 * BATCH * (side * channels) ** 2 / 1e9
        pairs = zip(ours(channels, side), theirs(channels, side), strict=True)
        rates = [(gflop / fastest(mine), gflop / fastest(other)) for mine, other in pairs]
        xla, onednn = (", ".join(f"{rate:.0f}" for rate in column) for column in zip(*rates, strict=True))
        print(f"| {channels}, {side} | {xla} | {onednn} | {', '.join(f'{a / b:.2f}' for a, b in rates)} |", flush=True)


if __name__ == "__main__":
    main()
