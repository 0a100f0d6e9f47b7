r"""Noise schedules as float64 tables.

The forward process is q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) with abar_t = prod_{s<=t} (1 - beta_s)
(Ho et al. 2020, arXiv:2006.11239). A respaced schedule keeps some of the original timesteps with their abar, and
derives new betas from them; t is always an original timestep in [0, T).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from jaxtyping import Float, Int, Shaped

from glide_jax.errors import GlideError
from glide_jax.options import Options, option

Table = Float[np.ndarray, " steps"]
PredictionType = Literal["epsilon", "v_prediction"]


def _linear_betas(steps: int) -> Table:
    """From 1e-4 to 0.02, scaled so that the total noise does not depend on the number of steps (Ho et al. 2020)."""
    scale = 1000 / steps
    return np.linspace(scale * 1e-4, scale * 0.02, steps)


def _cosine_betas(steps: int) -> Table:
    """abar(u) = cos^2((u + 0.008) / 1.008 * pi / 2), betas at most 0.999 (Nichol & Dhariwal 2021, eq. 17)."""
    u = np.arange(steps + 1) / steps
    abar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - abar[1:] / abar[:-1], 0.999)


# The last beta is 20 / steps, and must be below 1.
_LEAST_LINEAR = 21
_MOST_STEPS = 999_999
_BETAS: dict[str, Callable[[int], Table]] = {"linear": _linear_betas, "squaredcos_cap_v2": _cosine_betas}


@dataclass(frozen=True, slots=True)
class DiffusionConfig(Options):
    """The noise schedule a model is trained on, and what it predicts.

    "epsilon" is the noise, as in GLIDE; "v_prediction" is v = alpha eps - sigma x_0 (Salimans & Ho 2022,
    arXiv:2202.00512), which gives x_0 without a division by alpha, so that a small model learns layout and colours
    sooner.
    """

    PREFIX: ClassVar[str] = "diffusion."

    diffusion_steps: Annotated[int, option("number T of timesteps", low=1, high=_MOST_STEPS)] = 1000
    noise_schedule: Annotated[
        str, option("squaredcos_cap_v2 for base models, linear for upsamplers", choices=tuple(_BETAS))
    ] = "squaredcos_cap_v2"
    prediction_type: Annotated[
        PredictionType, option("what the network predicts: the noise, or v = alpha eps - sigma x_0")
    ] = "epsilon"

    def __post_init__(self) -> None:
        Options.__post_init__(self)
        if self.noise_schedule == "linear" and self.diffusion_steps < _LEAST_LINEAR:
            raise GlideError(
                f"diffusion.diffusion_steps {self.diffusion_steps} are too few for the linear schedule, which cannot"
                f" fit in all its noise: use at least {_LEAST_LINEAR}"
            )


@dataclass(frozen=True, eq=False)
class Schedule:
    """A (possibly respaced) diffusion process; every table is float64 and indexed by step, ascending.

    Attributes:
        timesteps: the original timestep of each step, possibly fractional (torch: timestep_map).
        betas: variance added by each step.
        diffusion_steps: T of the original process.
        prediction_type: what a network trained on it predicts.
    """

    timesteps: Shaped[np.ndarray, " steps"]
    betas: Table
    diffusion_steps: int
    prediction_type: PredictionType = "epsilon"

    @classmethod
    def from_config(cls, config: DiffusionConfig) -> Self:
        """The full schedule a model is trained on."""
        steps = config.diffusion_steps
        return cls(np.arange(steps), _BETAS[config.noise_schedule](steps), steps, config.prediction_type)

    def through(self, abar: Table, timesteps: Shaped[np.ndarray, " steps"]) -> Self:
        """The process through these levels only, ascending in noise: betas = 1 - abar / abar_prev."""
        return replace(self, timesteps=timesteps, betas=1 - abar / np.append(1.0, abar[:-1]))

    @cached_property
    def sigmas(self) -> Table:
        """sqrt((1 - abar) / abar): the noise relative to an unscaled signal."""
        return np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)

    def sigma_to_t(self, sigma: Float[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch"]:
        """The original timestep of any sigma: linear in log sigma between two steps, clipped at the ends.

        Call it on a full schedule (k-diffusion: OpenAIDenoiser.sigma_to_t).
        """
        return np.asarray(np.interp(np.log(sigma), np.log(self.sigmas), self.timesteps))

    @cached_property
    def alphas_cumprod(self) -> Table:
        """abar, the share of signal variance left at each step."""
        return np.cumprod(1 - self.betas)

    @cached_property
    def alphas_cumprod_prev(self) -> Table:
        """abar of the step before; 1 before the first."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def posterior_variance(self) -> Table:
        """Variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7); 0 at the first step."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> Table:
        """Its logarithm, with the first step's -inf replaced by the second's value."""
        floor = self.posterior_variance[1] if len(self.betas) > 1 else self.betas[0]
        return np.log(np.append(floor, self.posterior_variance[1:]))

    @cached_property
    def posterior_mean_coef1(self) -> Table:
        """Weight of x_0 in the mean of q(x_{t-1} | x_t, x_0)."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> Table:
        """Weight of x_t in the mean of q(x_{t-1} | x_t, x_0)."""
        return (1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)


# GLIDE's choice for the upsampler; its noisiest step moves from T-1 to T-3, which avoids DDIM artefacts.
_FAST27 = "10,10,3,2,2"


def space_timesteps(diffusion_steps: int, respacing: str) -> Int[np.ndarray, " steps"]:
    """The ascending original timesteps that `respacing` keeps (torch: space_timesteps).

    Args:
        diffusion_steps: length T of the original process.
        respacing: "" for all; "N" or "N,M,..." for that many in each of equal sections, from 0 to T-1; "ddimN" for an
            integer stride that gives exactly N; "fast27".

    Raises:
        GlideError: not one of these forms, or not possible with T steps.
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
        # Accumulated rather than multiplied, because the rounding of these sums decides which steps the reference
        # takes.
        position = 0.0
        for _ in range(count):
            steps.append(start + round(position))
            position += stride
        start += length
    return np.asarray(steps)
