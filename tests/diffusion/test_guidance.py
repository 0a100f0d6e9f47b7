"""Guidance on networks whose output is known: formulas, and identities between the methods."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.diffusion.denoiser import Prediction, denoiser, follow_gradient, threshold
from glide_jax.diffusion.forward import Level
from glide_jax.diffusion.guidance import guidance, guided, initial_memory
from glide_jax.diffusion.options import GuidanceOptions, ThresholdingOptions
from glide_jax.errors import GlideError
from tests.compilations import compilations

LEVEL = Level(jnp.float32(500.0), jnp.float32(0.6), jnp.float32(0.8))
RANDOM = np.random.RandomState(0)
X = jnp.asarray(RANDOM.standard_normal((2, 4, 4, 3)), jnp.float32)
EPS_C, EPS_U = (jnp.asarray(RANDOM.standard_normal((2, 4, 4, 3)), jnp.float32) for _ in range(2))


def conditional(x, t):
    assert x.shape == X.shape
    assert t.shape == (2,)
    return jnp.concatenate([EPS_C, jnp.full_like(EPS_C, 0.5)], axis=-1)


def paired(x, t):
    assert t.shape == (4,)
    # The last rows must be the first ones again.
    both = jnp.concatenate([EPS_C, EPS_U + x[2:] - x[:2]])
    return jnp.concatenate([both, jnp.where(jnp.arange(4) < 2, 0.5, -0.5)[:, None, None, None] + 0 * both], axis=-1)


def predict(level=LEVEL, memory=None, **options):
    options = GuidanceOptions(**options)
    memory = initial_memory(guidance(options), X) if memory is None else memory
    return guided(guidance(options), conditional, paired)(X, level, memory)


def eps_of(**options):
    return np.asarray(predict(**options)[0].eps)


@pytest.mark.parametrize("scale", [0.0, 1.5, 3.0])
def test_guided_noise_and_conditional_variance(scale):
    noise, _ = predict(guidance_scale=scale)
    np.testing.assert_allclose(noise.eps, EPS_U + scale * (EPS_C - EPS_U), atol=1e-6)
    np.testing.assert_array_equal(noise.variance_share, 0.75)
    assert noise.renoise is None


def test_scale_one_evaluates_the_condition_alone():
    assert guidance(GuidanceOptions(guidance_scale=1.0)) is None
    np.testing.assert_array_equal(eps_of(guidance_scale=1.0), EPS_C)


def test_apg_without_its_three_means_is_cfg():
    plain = eps_of(guidance_scale=4.0)
    same = eps_of(guidance_scale=4.0, guidance="apg", apg_eta=1.0, apg_momentum=0.0)
    np.testing.assert_allclose(same, plain, atol=2e-5)
    assert np.abs(eps_of(guidance_scale=4.0, guidance="apg", apg_eta=0.0, apg_momentum=0.0) - plain).max() > 0.05


def test_apg_moves_at_right_angles_to_the_prediction_and_no_further_than_allowed():
    noise, _ = predict(guidance_scale=4.0, guidance="apg", apg_momentum=0.0, apg_norm_threshold=2.0)
    x0_c = (X - LEVEL.sigma * EPS_C) / LEVEL.alpha
    moved = (X - LEVEL.sigma * noise.eps) / LEVEL.alpha - x0_c
    for row in range(2):
        assert abs(float((moved[row] * x0_c[row]).sum())) < 1e-3
        assert float(jnp.linalg.norm(moved[row])) <= 3 * 2.0 + 1e-4


def test_apg_remembers_earlier_updates():
    options = {"guidance_scale": 4.0, "guidance": "apg", "apg_eta": 1.0, "apg_momentum": -0.5}
    memory = predict(**options)[1]
    difference = LEVEL.sigma / LEVEL.alpha * (EPS_U - EPS_C)
    np.testing.assert_allclose(memory, difference, atol=1e-5)
    _, memory = predict(memory=memory, **options)
    np.testing.assert_allclose(memory, difference / 2, atol=1e-5)


def test_rescale():
    plain = eps_of(guidance_scale=4.0)
    np.testing.assert_allclose(eps_of(guidance_scale=4.0, guidance_rescale=1e-9), plain, atol=1e-5)
    matched = eps_of(guidance_scale=4.0, guidance_rescale=1.0)
    np.testing.assert_allclose(matched.std((1, 2, 3)), np.asarray(EPS_C).std((1, 2, 3)), rtol=1e-5)
    half = eps_of(guidance_scale=4.0, guidance_rescale=0.5)
    np.testing.assert_allclose(half, (plain + matched) / 2, atol=1e-5)


HIGH = Level(jnp.float32(999.0), jnp.float32(4.9e-5), jnp.float32(1.0))


def estimate_of(level=HIGH, prediction_type="v_prediction", **options):
    """What guidance makes of images of spread 0.36 and 0.18 that a network of v sees, or one of the noise."""
    x_0 = 0.36 * EPS_C, 0.18 * EPS_U
    if prediction_type == "v_prediction":
        x_0 = [(level.alpha * X - image) / level.sigma for image in x_0]
    else:
        x_0 = [(X - level.alpha * image) / level.sigma for image in x_0]
    both = jnp.concatenate([jnp.concatenate(x_0), jnp.zeros((4, 4, 4, 3))], axis=-1)
    how = guidance(GuidanceOptions(**options))
    network = lambda x, t: both[:2]  # noqa: E731
    return guided(how, network, lambda x, t: both, prediction_type)(X, level, initial_memory(how, X))[0]


def test_rescaling_a_v_gives_images_the_conditional_spread():
    conditional, plain = estimate_of(guidance_scale=1.0), estimate_of(guidance_scale=8.0)
    np.testing.assert_allclose(conditional.x_0, 0.36 * EPS_C, atol=1e-5)
    spread = lambda estimate: np.asarray(estimate.x_0).std((1, 2, 3))  # noqa: E731
    assert (spread(plain) > 4 * spread(conditional)).all()
    np.testing.assert_allclose(
        spread(estimate_of(guidance_scale=8.0, guidance_rescale=1.0)), spread(conditional), rtol=1e-3
    )


@pytest.mark.parametrize(
    "options",
    [
        {"guidance": "cfg"},
        {"guidance": "cfg++", "guidance_scale": 0.6},
        {"guidance": "apg"},
        {"guidance_interval": (1.0, 1.3)},
    ],
)
def test_a_v_is_guided_as_the_noise_is_and_tells_the_image_exactly(options):
    options = {"guidance_scale": 3.0} | options
    of_v, of_noise = (estimate_of(LEVEL, kind, **options) for kind in ("v_prediction", "epsilon"))
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-5), of_v, of_noise)
    if options.get("guidance", "cfg") == "cfg":
        exact = estimate_of(guidance_scale=3.0)
        np.testing.assert_allclose(exact.x_0, 0.18 * EPS_U + 3 * (0.36 * EPS_C - 0.18 * EPS_U), atol=1e-5)
        np.testing.assert_allclose(exact.eps, X, atol=1e-3)


def test_interval():
    plain = eps_of(guidance_scale=4.0)
    sigma = 0.8 / 0.6
    np.testing.assert_allclose(eps_of(guidance_scale=4.0, guidance_interval=(0.0, 1e9)), plain, atol=1e-6)
    np.testing.assert_allclose(eps_of(guidance_scale=4.0, guidance_interval=(1.0, 1.4)), plain, atol=1e-6)
    for outside in ((0.0, sigma - 0.01), (sigma + 0.01, math.inf)):
        np.testing.assert_array_equal(eps_of(guidance_scale=4.0, guidance_interval=outside), EPS_C)
    noise, _ = predict(guidance="cfg++", guidance_scale=0.6, guidance_interval=(5.0, 6.0))
    np.testing.assert_array_equal(noise.renoise, EPS_C)


def test_cfgpp_goes_on_with_unconditional_noise():
    noise, _ = predict(guidance="cfg++", guidance_scale=0.6)
    np.testing.assert_allclose(noise.eps, 0.4 * EPS_U + 0.6 * EPS_C, atol=1e-6)
    np.testing.assert_allclose(noise.renoise, EPS_U, atol=1e-6)
    options = GuidanceOptions(guidance="cfg++", guidance_scale=0.6)
    network = guided(guidance(options), conditional, paired)
    prediction, _ = denoiser(network, threshold)(X, LEVEL, None)
    np.testing.assert_allclose(prediction.direction, EPS_U, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": "cgf"}, "one of cfg, cfg"),
        ({"guidance": "cfg++", "guidance_scale": 3.0}, r"\[0, 1\]"),
        ({"guidance_rescale": 1.5}, "guidance_rescale"),
        ({"guidance_interval": (2.0, 1.0)}, "guidance_interval"),
        ({"apg_norm_threshold": -1.0}, "apg_norm_threshold"),
    ],
)
def test_impossible_guidance_is_refused(options, message):
    with pytest.raises(GlideError, match=message):
        GuidanceOptions(**options)


def test_a_denoiser_solves_for_x0_and_thresholds_it():
    x_t = jnp.full((1, 2, 2, 3), 0.5).at[..., 0].set(3.0)

    def network(x, t):
        assert t.shape == (1,)
        return jnp.concatenate([jnp.full_like(x, 0.25), jnp.full_like(x, -1.0)], axis=-1)

    prediction, memory = denoiser(guided(None, network, network), threshold)(x_t, LEVEL, "memory")
    assert memory == "memory"
    np.testing.assert_allclose(prediction.x_0[..., 1:], (0.5 - 0.8 * 0.25) / 0.6, rtol=1e-6)
    np.testing.assert_array_equal(prediction.x_0[..., 0], 1.0)
    np.testing.assert_array_equal(prediction.eps, 0.25)
    np.testing.assert_array_equal(prediction.variance_share, 0.0)
    np.testing.assert_allclose(0.6 * prediction.x_0 + 0.8 * prediction.direction, x_t, atol=1e-6)


def test_a_gradient_moves_noise_and_image_together():
    plain = Prediction(X, EPS_C, EPS_U, X, gradient=jnp.ones_like(X))
    moved = follow_gradient(plain, LEVEL)
    np.testing.assert_allclose(moved.eps, EPS_C - 0.8, atol=1e-6)
    np.testing.assert_allclose(0.6 * (moved.x_0 - X) + 0.8 * (moved.direction - EPS_U), 0.0, atol=1e-6)
    assert follow_gradient(moved, LEVEL) is moved


def test_thresholds():
    x_0 = 3 * X
    np.testing.assert_array_equal(threshold(x_0, ThresholdingOptions("static")), jnp.clip(x_0, -1, 1))
    assert threshold(x_0, ThresholdingOptions("none")) is x_0
    dynamic = np.asarray(threshold(x_0, ThresholdingOptions("dynamic", 0.9)))
    for row in range(2):
        limit = np.quantile(np.abs(x_0[row]), 0.9)
        assert limit > 1
        np.testing.assert_allclose(dynamic[row], np.clip(x_0[row], -limit, limit) / limit, rtol=1e-5)
    np.testing.assert_array_equal(threshold(0.01 * X, ThresholdingOptions("dynamic", 1.0)), 0.01 * X)
    with pytest.raises(GlideError, match="one of static, dynamic"):
        ThresholdingOptions("clip")


def test_guidance_with_an_interval_is_one_program_for_all_numbers():
    @jax.jit
    def run(guidance):
        return guided(guidance, conditional, paired)(X, LEVEL, None)[0].eps

    run(guidance(GuidanceOptions(guidance_scale=2.0, guidance_interval=(0.5, 3.0))))
    with compilations() as found:
        run(guidance(GuidanceOptions(guidance_scale=7.0, guidance_interval=(0.1, 1.0))))
    assert not found
