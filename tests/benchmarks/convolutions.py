"""GFLOP/s of a 3x3 convolution and of its gradients by image and by kernel, here and in PyTorch on a CPU.

python tests/benchmarks/convolutions.py

Widths are those of the small models and of the base model; for the gradient by kernel, ours and XLA's own.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F

from glide_jax.models.convolution import kernel_gradient

# Pictures, channels, side.
SHAPES = ((4, 64, 128), (16, 64, 32), (2, 192, 64), (2, 384, 32), (2, 576, 16), (2, 768, 8))


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


def ours(batch: int, channels: int, side: int) -> list[Callable[[], object]]:
    x, w = jnp.ones((batch, side, side, channels)), jnp.ones((3, 3, channels, channels))
    forward = jax.jit(convolve)
    of_image = jax.jit(lambda x, w, g: jax.vjp(lambda x: convolve(x, w), x)[1](g)[0])
    of_kernel = jax.jit(lambda x, g: kernel_gradient(x, g, 3))
    by_xla = jax.jit(lambda x, w, g: jax.vjp(lambda w: convolve(x, w), w)[1](g)[0])
    return [lambda: forward(x, w), lambda: of_image(x, w, x), lambda: of_kernel(x, x), lambda: by_xla(x, w, x)]


def theirs(batch: int, channels: int, side: int) -> list[Callable[[], object]]:
    x, w = torch.ones(batch, channels, side, side), torch.ones(channels, channels, 3, 3)
    return [
        lambda: F.conv2d(x, w, padding=1),
        lambda: torch.nn.grad.conv2d_input(x.shape, w, x, padding=1),
        lambda: torch.nn.grad.conv2d_weight(x, w.shape, x, padding=1),
    ]


def main() -> None:
    print("| batch, channels, side | ours | gradient of the kernel, XLA | oneDNN | ratio |\n|---|---|---|---|---|")
    for batch, channels, side in SHAPES:
        gflop = 2 * 9 * batch * (side * channels) ** 2 / 1e9
        *mine, by_xla = (gflop / fastest(run) for run in ours(batch, channels, side))
        other = [gflop / fastest(run) for run in theirs(batch, channels, side)]
        ratios = [a / b for a, b in zip(mine, other, strict=True)]
        cells = [", ".join(f"{rate:.0f}" for rate in rates) for rates in (mine, [by_xla], other)]
        print(
            f"| {batch}, {channels}, {side} | {' | '.join(cells)} | {', '.join(f'{r:.2f}' for r in ratios)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
