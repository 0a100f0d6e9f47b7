"""Guided sampling of the tiny models against the PyTorch reference, with the recorded noise injected."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.diffusion.denoiser import denoiser
from glide_jax.diffusion.guidance import classifier_free
from glide_jax.diffusion.schedules import DiffusionConfig, Schedule
from glide_jax.diffusion.solvers import ddim, ddpm
from glide_jax.diffusion.solvers.solver import run_steps
from glide_jax.models import Conditioning, Glide
from tests.parity.recipe import draw_image, golden_arrays, golden_params, model_config, relative_error

TOLERANCE = 3e-4
SCHEDULE = Schedule.from_config(DiffusionConfig()).respace("ddim10")
SAMPLERS = {
    "ddpm": (ddpm.DDPM, ddpm.plan(SCHEDULE)),
    "ddim_eta0": (ddim.DDIM, ddim.plan(SCHEDULE, eta=0.0)),
    "ddim_eta1": (ddim.DDIM, ddim.plan(SCHEDULE, eta=1.0)),
}


@pytest.fixture(scope="module")
def base():
    model = Glide(model_config("tiny", "base"))
    return model, golden_params(model, "tiny/base")


@pytest.mark.parametrize("name", SAMPLERS)
def test_guided_sampling_equals_the_reference(name, base):
    golden = golden_arrays("samplers_tiny")
    model, params = base
    solver, plan = SAMPLERS[name]
    recorded = np.stack([draw_image(f"samplers/{name}/noise/{k}", (4, 3, 64, 64))[:2] for k in range(10)])

    @jax.jit
    def run_chunk(params, text, carry, rows, first, recorded):
        conditioning = Conditioning(text)
        network = classifier_free(lambda x, t: model(params, x, t, conditioning), jnp.float32(3.0))
        active = jnp.ones(1, bool)
        return run_steps(solver, denoiser(network), lambda k: recorded[k], carry, rows, first, active)

    text = jax.jit(model.encode_text)(params, golden["tokens"], golden["mask"])
    carry = (solver.init(draw_image("samplers/x_T", (2, 3, 64, 64))), None)
    trajectory = []
    for k in range(10):
        rows = jax.tree.map(partial(np.take, indices=[k], axis=0), plan.rows)
        carry = run_chunk(params, text, carry, rows, k, recorded)
        trajectory.append(solver.finish(carry[0]))
    trajectory = np.asarray(trajectory).transpose(0, 1, 4, 2, 3)
    assert relative_error(trajectory[0], golden[f"{name}|first"]) < TOLERANCE
    assert relative_error(trajectory[-1], golden[f"{name}|final"]) < TOLERANCE
    assert relative_error(trajectory.mean((3, 4)), golden[f"{name}|traj_means"]) < TOLERANCE
