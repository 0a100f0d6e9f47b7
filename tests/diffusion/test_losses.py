"""Training losses against closed forms and what may learn from them."""

from functools import partial
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.diffusion.forward import Level, Readout, q_sample
from glide_jax.diffusion.losses import LossConfig, training_losses, vlb_terms
from glide_jax.diffusion.schedules import DiffusionConfig, Schedule
from glide_jax.errors import GlideError

SCHEDULE = Schedule.from_config(DiffusionConfig())
T = jnp.array([0, 1, 300, 999])
normal_cdf = np.vectorize(NormalDist().cdf)


@pytest.fixture
def batch():
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (4, 8, 8, 3)
    x_0 = jnp.tanh(jax.random.normal(keys[0], shape))
    noise, eps = jax.random.normal(keys[1], shape), jax.random.normal(keys[2], shape)
    variance = jax.random.uniform(keys[3], shape, minval=-1.0)
    return x_0, noise, eps, variance, q_sample(x_0, noise, Level.table(SCHEDULE).at(T))


def test_q_sample_mixes_signal_and_noise(batch):
    x_0, noise, _, _, x_t = batch
    abar = SCHEDULE.alphas_cumprod[np.asarray(T)].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(x_t, np.sqrt(abar) * x_0 + np.sqrt(1 - abar) * noise, rtol=1e-5, atol=1e-6)


def test_vlb_equals_the_closed_form(batch):
    x_0, _, eps, variance, x_t = batch
    seen = Readout("epsilon", x_t, Level.table(SCHEDULE).at(T).per_image()).x_0(eps)
    ours = jax.jit(partial(vlb_terms, SCHEDULE))(seen, variance, x_0, x_t, T)
    x_0, eps, variance, x_t = (np.asarray(a, np.float64) for a in (x_0, eps, variance, x_t))
    for i, t in enumerate(np.asarray(T)):
        abar, posterior = SCHEDULE.alphas_cumprod[t], SCHEDULE.posterior_log_variance_clipped[t]
        weight_x0, weight_xt = SCHEDULE.posterior_mean_coef1[t], SCHEDULE.posterior_mean_coef2[t]
        predicted = (x_t[i] - np.sqrt(1 - abar) * eps[i]) / np.sqrt(abar)
        mean, true_mean = (weight_x0 * x + weight_xt * x_t[i] for x in (predicted, x_0[i]))
        share = (variance[i] + 1) / 2
        scale = np.exp(0.5 * (share * np.log(SCHEDULE.betas[t]) + (1 - share) * posterior))
        if t > 0:
            true_variance = np.exp(posterior)
            terms = np.log(scale) - 0.5 * posterior + (true_variance + (true_mean - mean) ** 2) / (2 * scale**2) - 0.5
        else:
            upper, lower = (normal_cdf((x_0[i] + d - mean) / scale) for d in (1 / 255, -1 / 255))
            terms = -np.log(
                np.maximum(
                    np.where(x_0[i] < -0.999, upper, np.where(x_0[i] > 0.999, 1 - lower, upper - lower)),
                    1e-12,
                )
            )
        np.testing.assert_allclose(ours[i], terms.mean() / np.log(2), rtol=2e-4)


def test_vlb_teaches_the_variance_channels_only(batch):
    x_0, noise, eps, variance, x_t = batch

    def vlb_part(output):
        losses = training_losses(LossConfig("hybrid"), SCHEDULE, output, x_0, x_t, noise, T)
        return (losses.total - losses.mse).sum()

    gradient = jax.jit(jax.grad(vlb_part))(jnp.concatenate([eps, variance], axis=-1))
    np.testing.assert_array_equal(gradient[..., :3], 0.0)
    assert np.abs(gradient[..., 3:]).min(axis=(1, 2, 3)).max() > 0


def test_simple_leaves_the_variance_channels_alone(batch):
    x_0, noise, eps, variance, x_t = batch

    def total(output):
        return training_losses(LossConfig("simple"), SCHEDULE, output, x_0, x_t, noise, T).total.sum()

    output = jnp.concatenate([eps, variance], axis=-1)
    np.testing.assert_allclose(total(output), np.square(eps - noise).mean((1, 2, 3)).sum(), rtol=1e-5)
    np.testing.assert_array_equal(jax.grad(total)(output)[..., 3:], 0.0)


def test_hybrid_adds_a_thousandth_of_T_times_the_bound(batch):
    x_0, noise, eps, variance, x_t = batch
    output = jnp.concatenate([eps, variance], axis=-1)
    schedule = Schedule.from_config(DiffusionConfig(diffusion_steps=2000))
    losses = training_losses(LossConfig("hybrid"), schedule, output, x_0, x_t, noise, T)
    np.testing.assert_allclose(losses.total, losses.mse + 2.0 * losses.vlb, rtol=1e-6)


def test_min_snr_weights(batch):
    x_0, noise, eps, variance, x_t = batch
    output = jnp.concatenate([eps, variance], axis=-1)
    losses = training_losses(LossConfig("simple", min_snr_gamma=5.0), SCHEDULE, output, x_0, x_t, noise, T)
    abar = SCHEDULE.alphas_cumprod[np.asarray(T)]
    snr = abar / (1 - abar)
    np.testing.assert_allclose(losses.total / losses.mse, np.minimum(snr, 5.0) / snr, rtol=1e-5)


def test_p2_weights(batch):
    x_0, noise, eps, variance, x_t = batch
    output = jnp.concatenate([eps, variance], axis=-1)
    losses = training_losses(LossConfig("simple", p2_gamma=0.5), SCHEDULE, output, x_0, x_t, noise, T)
    abar = SCHEDULE.alphas_cumprod[np.asarray(T)]
    np.testing.assert_allclose(losses.total / losses.mse, np.sqrt(1 - abar), rtol=1e-5)  # 1 + SNR = 1 / (1 - abar)


def test_velocity_weight_is_the_loss_of_v_up_to_its_cap(batch):
    x_0, noise, eps, variance, x_t = batch
    output = jnp.concatenate([eps, variance], axis=-1)
    losses = training_losses(LossConfig("simple", velocity_cap=100.0), SCHEDULE, output, x_0, x_t, noise, T)
    level = Level.table(SCHEDULE).at(T).per_image()
    predicted_x0 = (x_t - level.sigma * eps) / level.alpha
    error = level.alpha * (eps - noise) - level.sigma * (predicted_x0 - x_0)
    expected = np.square(error).mean((1, 2, 3))
    np.testing.assert_allclose(losses.total[:3], expected[:3], rtol=2e-3)
    np.testing.assert_allclose(losses.total[3], 101.0 * losses.mse[3], rtol=1e-5)


def test_unknown_loss_is_refused():
    with pytest.raises(GlideError, match="simple or hybrid"):
        LossConfig("l1")


V_SCHEDULE = Schedule.from_config(DiffusionConfig(prediction_type="v_prediction"))


def test_the_noise_and_the_image_are_found_in_v_at_every_level(batch):
    x_0, noise, _, _, x_t = batch
    at = Readout("v_prediction", x_t, Level.table(V_SCHEDULE).at(T).per_image())
    v = at.level.alpha * noise - at.level.sigma * x_0
    np.testing.assert_allclose(at.eps(v), noise, atol=1e-6)
    np.testing.assert_allclose(at.x_0(v), x_0, atol=1e-6)
    np.testing.assert_allclose(at.prediction_of(x_0)[1:], v[1:], atol=1e-4)


def test_the_loss_of_a_v_prediction_is_that_of_v(batch):
    x_0, noise, v, variance, x_t = batch
    at = Readout("v_prediction", x_t, Level.table(V_SCHEDULE).at(T).per_image())
    of_v, of_noise = (jnp.concatenate([output, variance], axis=-1) for output in (v, at.eps(v)))
    losses = training_losses(LossConfig("simple"), V_SCHEDULE, of_v, x_0, x_t, noise, T)
    expected = np.square(v - (at.level.alpha * noise - at.level.sigma * x_0)).mean((1, 2, 3))
    np.testing.assert_allclose(losses.total, expected, rtol=2e-3)
    noise_losses = training_losses(LossConfig("simple", min_snr_gamma=5.0), SCHEDULE, of_noise, x_0, x_t, noise, T)
    losses = training_losses(LossConfig("simple", min_snr_gamma=5.0), V_SCHEDULE, of_v, x_0, x_t, noise, T)
    np.testing.assert_array_equal(losses.total, noise_losses.total)
