"""Which of the original timesteps a sampler visits, from strings such as "100", "ddim50" and "fast27"."""

import re

import numpy as np
from jaxtyping import Int

from glide_jax.errors import GlideError

# GLIDE's choice for the upsampler; its noisiest step moves from T-1 to T-3, which avoids DDIM artefacts.
_FAST27 = "10,10,3,2,2"


def space_timesteps(diffusion_steps: int, respacing: str) -> Int[np.ndarray, " steps"]:
    """The ascending original timesteps that `respacing` keeps (torch: space_timesteps).

    Args:
        diffusion_steps: length T of the original process.
        respacing: "" for all; "N" or "N,M,..." for evenly many in equal sections, from 0 to T-1; "ddimN" for an
            integer stride that gives exactly N; "fast27".

    Raises:
        GlideError: not of these forms, or not possible with T steps.
    """
    if respacing == "":
        return np.arange(diffusion_steps)
    if respacing == "fast27":
        steps = space_timesteps(diffusion_steps, _FAST27)
        return np.append(steps[:-1], diffusion_steps - 3)
    if respacing.startswith("ddim"):
        return _strided(diffusion_steps, _count(respacing.removeprefix("ddim"), respacing))
    return _sections(diffusion_steps, [_count(part.strip(), respacing) for part in respacing.split(",")])


def _count(text: str, respacing: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,5}", text):
        raise GlideError(
            f'timestep_respacing {respacing[:40]!r} is not of the form "50", "10,10,3,2,2", "ddim50" or "fast27"'
        )
    return int(text)


def _strided(diffusion_steps: int, count: int) -> Int[np.ndarray, " steps"]:
    # The largest candidate stride is T // count; only few counts can be met exactly.
    for stride in range(1, diffusion_steps + 1):
        if len(range(0, diffusion_steps, stride)) == count:
            return np.arange(0, diffusion_steps, stride)
    raise GlideError(
        f"no integer stride gives exactly {count} of {diffusion_steps} steps; use {str(count)!r} instead of ddim{count}"
    )


def _sections(diffusion_steps: int, counts: list[int]) -> Int[np.ndarray, " steps"]:
    steps: list[int] = []
    size, extra = divmod(diffusion_steps, len(counts))
    start = 0
    for i, count in enumerate(counts):
        length = size + (i < extra)
        if length < count:
            raise GlideError(f"cannot take {count} timesteps from a section of {length}; ask for at most {length}")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        # Accumulated, not multiplied: the rounding of the sums decides which steps are taken.
        position = 0.0
        for _ in range(count):
            steps.append(start + round(position))
            position += stride
        start += length
    return np.asarray(steps)
