"""Training losses: noise prediction, and the variational bound that trains the learned variance."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from glide_jax.diffusion.forward import Image, Level, Readout, to_columns
from glide_jax.diffusion.schedules import Schedule
from glide_jax.options import Options, option

PerImage = Float[Array, " batch"]
Column = Float[Array, "batch 1 1 1"]


@dataclass(frozen=True, slots=True)
class LossConfig(Options):
    """The loss: the weighted squared error of what the network predicts.

    `min_snr_gamma` is Hang et al. 2023 (arXiv:2303.09556), `p2_gamma` Choi et al. 2022 (arXiv:2204.00227, with k = 1).
    Logit-normal timesteps are T sigmoid(N(0, 1)) (Esser et al. 2024, arXiv:2403.03206). `velocity_cap` turns the noise
    loss into that of v = alpha eps - sigma x_0 (Salimans & Ho 2022, arXiv:2202.00512), with weights up to the cap: the
    plain loss hardly depends on x_0 at high noise, where layout and colours are decided, and teaches that last. For a
    model of v that already is the loss, and `RunConfig` refuses the cap.
    """

    PREFIX: ClassVar[str] = "train.loss."

    kind: Annotated[
        Literal["simple", "hybrid"],
        option("simple: noise only, the variance channels get no gradient; hybrid: also the learned variance"),
    ] = "simple"
    min_snr_gamma: Annotated[float, option("weights the noise loss by min(SNR, gamma) / SNR; 0 is off", low=0)] = 0.0
    velocity_cap: Annotated[float, option("adds min(1 / SNR, cap) to that weight; 0 is off", low=0)] = 0.0
    p2_gamma: Annotated[float, option("divides the weight by (1 + SNR)^gamma; 0 is off", low=0)] = 0.0
    timesteps: Annotated[
        Literal["uniform", "logit_normal"], option("how t is sampled; logit_normal favours the middle")
    ] = "uniform"

    def weights(self, schedule: Schedule) -> Float[np.ndarray, " steps"]:
        """The weight of the squared noise error at every step of a schedule."""
        snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
        if self.min_snr_gamma:
            weights = np.minimum(snr, self.min_snr_gamma) / snr
        else:
            # |v error|^2 = |noise error|^2 / alpha^2.
            weights = 1 + 1 / snr if schedule.prediction_type == "v_prediction" else np.ones_like(snr)
        return (weights + np.minimum(1 / snr, self.velocity_cap)) / (1 + snr) ** self.p2_gamma


class Losses(NamedTuple):
    """The loss of each image, and its parts.

    Attributes:
        total: the training loss.
        mse: plain mean squared error of the noise.
        vlb: bits per dimension of the bound's term at the sampled t; 0 for "simple".
    """

    total: PerImage
    mse: PerImage
    vlb: PerImage


class PosteriorTable(NamedTuple):
    """The columns of a schedule that the bound needs, float32, indexed by step."""

    mean_x0: Float[Array, "*rows"]
    mean_xt: Float[Array, "*rows"]
    log_variance: Float[Array, "*rows"]
    log_beta: Float[Array, "*rows"]

    @classmethod
    def of(cls, schedule: Schedule) -> Self:
        """The table of a schedule."""
        columns = (
            schedule.posterior_mean_coef1,
            schedule.posterior_mean_coef2,
            schedule.posterior_log_variance_clipped,
            np.log(schedule.betas),
        )
        return cls(*to_columns(*columns))

    def at(self, index: Int[Array, " batch"]) -> Self:
        """The rows of given steps, shaped to broadcast over images."""
        return type(self)(*(jnp.asarray(column)[index].reshape(-1, 1, 1, 1) for column in self))


def training_losses(
    config: LossConfig,
    schedule: Schedule,
    output: Float[Array, "batch height width 6"],
    x_0: Image,
    x_t: Image,
    noise: Image,
    t: Int[Array, " batch"],
) -> Losses:
    """Losses of a model's output at the original timesteps t.

    "simple" is L_simple = mean (eps - noise)^2. "hybrid" adds 0.001 T L_vlb at the sampled t, in bits, through which
    only the variance channels learn (Nichol & Dhariwal 2021, eq. 16; torch: RESCALED_MSE with LEARNED_RANGE).

    Args:
        config: the loss.
        schedule: the full schedule the model trains on.
        output: the network's: noise or v according to `schedule.prediction_type`, and variance in [-1, 1].
        x_0: clean images; x_t: the noised ones; noise: what was added.
        t: timesteps in [0, T).
    """
    predicted, variance = jnp.split(output.astype(jnp.float32), 2, axis=-1)
    at = Readout(schedule.prediction_type, x_t, Level.table(schedule).at(t).per_image())
    mse = _mean(jnp.square(at.eps(predicted) - noise))
    total = mse * jnp.asarray(config.weights(schedule), jnp.float32)[t]
    vlb = jnp.zeros_like(mse)
    if config.kind == "hybrid":
        vlb = vlb_terms(schedule, jax.lax.stop_gradient(at.x_0(predicted)), variance, x_0, x_t, t)
        total = total + 0.001 * schedule.diffusion_steps * vlb
    return Losses(total, mse, vlb)


def vlb_terms(
    schedule: Schedule, predicted_x0: Image, variance: Image, x_0: Image, x_t: Image, t: Int[Array, " batch"]
) -> PerImage:
    """L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 0, else -log p(x_0 | x_1), in bits per dimension.

    The decoder at t = 0 is a Gaussian integrated over the 8-bit bins (Ho et al. 2020, eq. 13; torch: _vb_terms_bpd).

    Args:
        schedule: the full schedule.
        predicted_x0: predicted clean images.
        variance: the network's output, in [-1, 1].
        x_0: clean images; x_t: the noised ones.
        t: timesteps in [0, T).
    """
    row = PosteriorTable.of(schedule).at(t)
    true_mean = row.mean_x0 * x_0 + row.mean_xt * x_t
    mean = row.mean_x0 * predicted_x0 + row.mean_xt * x_t
    share = (variance + 1) / 2
    log_variance = share * row.log_beta + (1 - share) * row.log_variance
    kl = _gaussian_kl(true_mean, row.log_variance, mean, log_variance)
    nll = -_discretized_log_likelihood(x_0, mean, 0.5 * log_variance)
    return jnp.where(t == 0, _mean(nll), _mean(kl)) / jnp.log(2.0)


def _gaussian_kl(mean1: Image, log_variance1: Column, mean2: Image, log_variance2: Image) -> Image:
    gap = log_variance1 - log_variance2
    return 0.5 * (-1.0 - gap + jnp.exp(gap) + jnp.square(mean1 - mean2) * jnp.exp(-log_variance2))


def _discretized_log_likelihood(x: Image, mean: Image, log_scale: Image) -> Image:
    """Log of a Gaussian's mass in the bin of width 2/255 around x; the outermost bins extend to infinity."""
    inverse = jnp.exp(-log_scale)
    upper = jax.scipy.stats.norm.cdf((x - mean + 1 / 255) * inverse)
    lower = jax.scipy.stats.norm.cdf((x - mean - 1 / 255) * inverse)
    mass = jnp.where(x < -0.999, upper, jnp.where(x > 0.999, 1 - lower, upper - lower))
    return jnp.log(jnp.maximum(mass, 1e-12))


def _mean(x: Image) -> PerImage:
    return x.mean(axis=(1, 2, 3))
