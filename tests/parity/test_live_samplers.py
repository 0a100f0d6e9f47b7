"""Sampling loops of the live PyTorch reference beside ours, on the tiny base model with the same noise."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.diffusion.denoiser import denoiser, threshold
from glide_jax.diffusion.guidance import guidance, guided
from glide_jax.diffusion.levels import NoiseLevels
from glide_jax.diffusion.options import GuidanceOptions, LevelOptions
from glide_jax.diffusion.schedules import DiffusionConfig, Schedule
from glide_jax.diffusion.solvers.ddpm import ddim, ddpm
from glide_jax.diffusion.solvers.multistep import plms, prk
from glide_jax.diffusion.solvers.solver import run_steps, start
from glide_jax.models import Conditioning
from glide_jax.tokenizer import ClipTokenizer
from tests.parity.live import SKIP, clip_pair, glide_pair, to_nhwc
from tests.parity.recipe import draw

creation = pytest.importorskip("glide_text2im.model_creation", reason=SKIP)
torch = pytest.importorskip("torch", reason=SKIP)

TOLERANCE = 3e-4
RESPACING, SCALE, SHAPE = "ddim20", 3.0, (2, 3, 64, 64)
PROMPTS = ["a corgi in a hat", "a red bicycle"]
SCHEDULE = Schedule.from_config(DiffusionConfig())
LEVELS = NoiseLevels.from_options(SCHEDULE, LevelOptions(timestep_respacing=RESPACING))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return glide_pair("base", "tiny", tmp_path_factory.mktemp("live"))


@pytest.fixture
def recorded(monkeypatch):
    """The reference draws these in turn: the same for both halves of a guided batch."""
    noise = [draw(f"live/noise/{k}", SHAPE) for k in range(20)]
    turns = itertools.count()

    def randn_like(x):
        drawn = torch.from_numpy(noise[next(turns)])
        return drawn.repeat(len(x) // len(drawn), 1, 1, 1)

    monkeypatch.setattr(torch, "randn_like", randn_like)
    return jnp.asarray(np.stack(noise).transpose(0, 1, 3, 4, 2))


def texts(pair, prompts):
    encoder, ctx = pair.theirs.tokenizer, pair.ours.config.text_ctx
    padded = [encoder.padded_tokens_and_mask(encoder.encode(text), ctx) for text in prompts]
    tokens, mask = (torch.tensor(column) for column in zip(*padded, strict=True))
    return tokens, mask


def reference(pair):
    """The guided model function of the reference's notebooks."""
    tokens, mask = texts(pair, [*PROMPTS, "", ""])

    def guided_model(x, t, **_):
        half = x[: len(x) // 2]
        output = pair.theirs(torch.cat([half, half]), t, tokens=tokens, mask=mask)
        eps_c, eps_u = torch.chunk(output[:, :3], 2)
        eps = eps_u + SCALE * (eps_c - eps_u)
        return torch.cat([torch.cat([eps, eps]), output[:, 3:]], dim=1)

    return guided_model


def ours(pair, solver, plan, recorded):
    tokens, mask = (np.asarray(column) for column in texts(pair, [*PROMPTS, "", ""]))
    text = jax.jit(pair.ours.encode_text)(pair.params, tokens, mask)
    options = GuidanceOptions(guidance_scale=SCALE)

    @jax.jit
    def run(params, x):
        conditional = Conditioning(jax.tree.map(lambda leaf: leaf[:2], text))
        predict = guided(
            guidance(options),
            lambda x, t: pair.ours(params, x, t, conditional),
            lambda x, t: pair.ours(params, x, t, Conditioning(text)),
        )
        denoise = denoiser(predict, threshold)
        carry = start(solver, x)
        carry = run_steps(solver, denoise, lambda k: recorded[k], carry, plan.on_device(), 0, len(plan))
        return carry.state[0]

    x_t = draw("live/x_T", SHAPE).transpose(0, 2, 3, 1)
    return run(jax.tree.map(jnp.asarray, pair.params), x_t)


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("ddpm", ddpm(LEVELS)),
        ("ddim, eta 0", ddim(LEVELS)),
        ("ddim, eta 1", ddim(LEVELS, eta=1.0)),
        ("plms", plms(LEVELS, clean_up=False)),
        ("prk", prk(LEVELS, clean_up=False)),
    ],
)
def test_guided_sampling(pair, recorded, comparison, name, solver):
    diffusion = creation.create_gaussian_diffusion(1000, "squaredcos_cap_v2", RESPACING)
    method = {"ddpm": "p"}.get(name, name.split(",")[0])
    loop = getattr(diffusion, f"{method}_sample_loop", None)
    if loop is None:
        pytest.skip(f"this glide_text2im has no {name}: only crowsonkb's fork does")
    x_t = torch.from_numpy(draw("live/x_T", SHAPE))
    options = {"eta": float(name[-1])} if method == "ddim" else {}
    with torch.no_grad():
        theirs = loop(reference(pair), (4, *SHAPE[1:]), noise=torch.cat([x_t, x_t]), device="cpu", **options)[:2]
    drawn = ours(pair, *solver, recorded)
    comparison.check(f"sampler, {name}", "tiny", np.asarray(drawn).transpose(0, 3, 1, 2), theirs, TOLERANCE)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_guidance_by_clip(pair, recorded, comparison, tmp_path, name):
    diffusion = creation.create_gaussian_diffusion(1000, "squaredcos_cap_v2", RESPACING)
    if hasattr(diffusion, "plms_sample_loop"):
        pytest.skip("crowsonkb's fork hands float timesteps to the noised CLIP, whose table takes integers")
    clip = clip_pair("tiny", tmp_path)
    tokens, mask = texts(pair, PROMPTS)
    x_t = draw("live/x_T", SHAPE)
    loop = diffusion.p_sample_loop if name == "ddpm" else diffusion.ddim_sample_loop
    with torch.no_grad():
        theirs = loop(
            pair.theirs, SHAPE, noise=torch.from_numpy(x_t), device="cpu", cond_fn=clip.theirs.cond_fn(PROMPTS, 5.0),
            model_kwargs={"tokens": tokens, "mask": mask},
        )  # fmt: skip
    weights = jax.tree.map(jnp.asarray, clip.params)
    signal = jax.jit(clip.ours.encode_text)(weights, *ClipTokenizer().padded(PROMPTS))
    text = jax.jit(pair.ours.encode_text)(pair.params, np.asarray(tokens), np.asarray(mask))
    solver, plan = ddpm(LEVELS) if name == "ddpm" else ddim(LEVELS)
    params = jax.tree.map(jnp.asarray, pair.params)
    alone = lambda x, t: pair.ours(params, x, t, Conditioning(text))  # noqa: E731
    gradient = partial(clip.ours.guidance, weights, text=signal, scale=5.0)
    denoise = denoiser(guided(None, alone, alone), threshold, gradient)

    @jax.jit
    def run(x):
        carry = start(solver, x)
        carry = run_steps(solver, denoise, lambda k: recorded[k], carry, plan.on_device(), 0, len(plan))
        return carry.state[0]

    drawn = np.asarray(run(x_t.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
    comparison.check(f"sampler, {name} guided by clip", "tiny", drawn, theirs, TOLERANCE)
    assert to_nhwc(theirs).std() > 0.1
