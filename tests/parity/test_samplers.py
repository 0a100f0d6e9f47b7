"""Sampling with the tiny models against the PyTorch reference, with the recorded noise injected."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.diffusion.denoiser import denoiser, paste, threshold
from glide_jax.diffusion.guidance import guidance, guided
from glide_jax.diffusion.levels import NoiseLevels
from glide_jax.diffusion.options import GuidanceOptions, LevelOptions
from glide_jax.diffusion.schedules import DiffusionConfig, Schedule
from glide_jax.diffusion.solvers.ddpm import ddim, ddpm
from glide_jax.diffusion.solvers.multistep import plms
from glide_jax.diffusion.solvers.solver import run_steps, start
from glide_jax.models import Conditioning, Glide
from glide_jax.tokenizer import ClipTokenizer
from tests.parity.recipe import (
    clip_model,
    clip_params,
    draw_image,
    golden_arrays,
    golden_params,
    inpaint_mask,
    model_config,
    network,
    relative_error,
    root_mean_square_error,
)

TOLERANCE, PNDM_TOLERANCE = 3e-4, 1e-4
SCHEDULE = Schedule.from_config(DiffusionConfig())
LEVELS = NoiseLevels.from_options(SCHEDULE, LevelOptions(timestep_respacing="ddim10"))
GUIDANCE = GuidanceOptions(guidance_scale=3.0)
PROMPTS = ["an oil painting of a corgi", "a red bicycle"]
SAMPLERS = {
    "ddim_eta1": ddim(LEVELS, eta=1.0),
    "plms": plms(LEVELS, clean_up=False),  # its first steps are those of prk
}


@pytest.fixture(scope="module")
def base():
    model = Glide(model_config("tiny", "base"))
    params, golden = golden_params(model, "tiny/base"), golden_arrays("samplers_tiny")
    return model, params, jax.jit(model.encode_text)(params, golden["tokens"], golden["mask"])


@pytest.fixture(scope="module")
def guided_base(base):
    return guided_by_text(*base)


def guided_by_text(model, params, text, **images):
    """Classifier-free guidance over rows [cond, cond, uncond, uncond]; it never asks for the condition alone."""
    twice = {name: jnp.concatenate([image, image]) for name, image in images.items()}
    paired = network(model, params, Conditioning(text, **twice))
    return guided(guidance(GUIDANCE), paired, paired)


def recorded_noise(name, rows):
    return np.stack([draw_image(f"{name}/noise/{k}", (rows, 3, 64, 64))[:2] for k in range(10)])


def trajectory(denoise, solver, plan, x_t, recorded=None):
    """The image after every row, [rows, batch, channels, height, width]."""
    rows = plan.on_device()
    carry, images = start(solver, jnp.asarray(x_t * np.float32(plan.start.noise_alone))), []
    with jax.disable_jit():
        for k in range(len(plan)):
            carry = run_steps(solver, denoise, lambda k: recorded[k], carry, rows, k, k + 1)
            images.append(carry.state[0])
    return np.asarray(images).transpose(0, 1, 4, 2, 3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_guided_sampling_equals_the_reference(name, guided_base):
    golden = golden_arrays("samplers_tiny")
    solver, plan = SAMPLERS[name]
    denoise = denoiser(guided_base, threshold)
    recorded = jnp.asarray(recorded_noise(f"samplers/{name}", 4)) if name != "plms" else None
    images = trajectory(denoise, solver, plan, draw_image("samplers/x_T", (2, 3, 64, 64)), recorded)
    # The rows that end a step: each fourth of a Runge-Kutta step.
    ends = [3, 7, *range(11, 17)] if name == "plms" else range(10)
    images = images[list(ends)]
    tolerance = PNDM_TOLERANCE if name == "plms" else TOLERANCE
    assert relative_error(images[0], golden[f"{name}|first"]) < tolerance
    assert relative_error(images[-1], golden[f"{name}|final"]) < tolerance
    assert relative_error(images.mean((3, 4)), golden[f"{name}|traj_means"]) < tolerance


def test_inpainting_equals_the_reference():
    golden = golden_arrays("samplers_tiny")
    model = Glide(model_config("tiny", "base-inpaint"))
    params = golden_params(model, "tiny/base-inpaint")
    text = jax.jit(model.encode_text)(params, golden["tokens"], golden["mask"])
    mask = jnp.asarray(inpaint_mask(2, 64))
    image = jnp.tanh(draw_image("samplers/inpaint/inpaint_image", (2, 3, 64, 64))) * mask
    denoise = denoiser(
        guided_by_text(model, params, text, inpaint_image=image, inpaint_mask=mask),
        lambda x_0: paste(threshold(x_0), image, mask),
    )
    recorded = jnp.asarray(recorded_noise("samplers/inpaint", 4))
    images = trajectory(denoise, *ddpm(LEVELS), draw_image("samplers/x_T", (2, 3, 64, 64)), recorded)
    assert relative_error(images[-1], golden["inpaint|final"]) < TOLERANCE


@pytest.mark.slow
def test_upsampling_equals_the_reference():
    golden = golden_arrays("samplers_tiny")
    model = Glide(model_config("tiny", "upsample"))
    params = golden_params(model, "tiny/upsample")
    text = jax.jit(model.encode_text)(params, golden["tokens"][:2], golden["mask"][:2])
    low_res = np.rint((np.tanh(draw_image("samplers/low_res", (2, 3, 64, 64))) + 1) * 127.5) / 127.5 - 1
    given = Conditioning(text, jnp.asarray(low_res, jnp.float32))
    run = network(model, params, given)
    denoise = denoiser(guided(None, run, run), threshold)
    linear = Schedule.from_config(DiffusionConfig(noise_schedule="linear"))
    levels = NoiseLevels.from_options(linear, LevelOptions(timestep_respacing="fast27"))
    x_t = np.float32(0.997) * draw_image("samplers/up_x_T", (2, 3, 128, 128))
    final = trajectory(denoise, *ddim(levels), x_t)[-1]
    # The reference in float32 is 1.5e-4 from itself in float64, and moves by 1.7e-4 between one thread and two.
    seen, expected = final[:, :, ::2, ::2], golden["upsample|final_stride2"]
    assert relative_error(seen, expected) < 1e-3
    assert root_mean_square_error(seen, expected) < 2e-5
    assert relative_error(final.mean((2, 3)), golden["upsample|mean"]) < TOLERANCE


@pytest.fixture(scope="module")
def base_and_signal(base):
    """The base model, unguided by text, and the noised CLIP's gradient."""
    model, params, text = base
    alone = network(model, params, Conditioning(jax.tree.map(lambda x: x[:2], text)))
    clip = clip_model("tiny")
    weights = jax.tree.map(jnp.asarray, clip_params(clip, "tiny"))
    signal = jax.jit(clip.encode_text)(weights, *ClipTokenizer().padded(PROMPTS))
    run = jax.jit(partial(clip.guidance, weights, text=signal, scale=5.0))

    def gradient(x, t):
        with jax.disable_jit(False):
            return run(x, t)

    return guided(None, alone, alone), gradient


@pytest.mark.parametrize(
    ("name", "solver"), [pytest.param("ddpm", ddpm(LEVELS), marks=pytest.mark.slow), ("ddim", ddim(LEVELS))]
)
def test_clip_guidance_equals_the_reference(name, solver, base_and_signal):
    estimate, gradient = base_and_signal
    denoise = denoiser(estimate, threshold, gradient)
    recorded = jnp.asarray(recorded_noise(f"clip_guided/{name}", 2))
    final = trajectory(denoise, *solver, draw_image("clip_guided/x_T", (2, 3, 64, 64)), recorded)[-1]
    assert relative_error(final, golden_arrays("clip_guided_tiny")[f"{name}|final"]) < TOLERANCE
