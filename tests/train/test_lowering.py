"""The full-size training steps and samplers build for CUDA and TPU, as far as a machine without them can tell."""

import importlib

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from glide_jax.config import from_ml_collections
from glide_jax.models import Conditioning
from glide_jax.models import attention as attention_module
from glide_jax.parallel import make_mesh
from glide_jax.sample import Stage
from glide_jax.sample.stage import _Request
from glide_jax.train.program import Program

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("platform", ["cuda", "tpu"])]
PAGES = ["base64", "upsample256"]


@pytest.fixture(autouse=True)
def pretended_cuda(platform, monkeypatch):
    """JAX looks for cuDNN on this machine before it writes a call of it."""
    if platform == "cuda":
        monkeypatch.setattr(attention_module, "_on_cuda", lambda: True)
        monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
        monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)


def page(name):
    return from_ml_collections(importlib.import_module(f"configs.{name}").get_config())


def lowered(jitted, platform, *arguments):
    return jitted.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("name", PAGES)
def test_training_step(name, platform):
    config = page(name)
    program = Program(config, make_mesh(config.parallel))
    text = lowered(program.train_step, platform, program.abstract_state, program.abstract_batch())
    for call in ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"):
        assert (call in text) == (platform == "cuda")


@pytest.mark.parametrize("name", PAGES)
def test_sampler(name, platform):
    config = page(name)
    program = Program(config, make_mesh(config.parallel))
    stage, options, model = Stage(program.model, config.diffusion), config.train.preview.options, program.model
    params = program.abstract_state["params"]
    rows = 4 * (2 if options.method.kind != "none" else 1)
    tokens = jnp.zeros((rows, config.model.text_ctx), jnp.int32)
    text = jax.eval_shape(model.encode_text, params, tokens, tokens > 0)
    small = config.model.low_res_size
    low_res = jax.ShapeDtypeStruct((rows, small, small, 3), jnp.float32) if config.model.super_res else None
    request = _Request(
        params, Conditioning(text, low_res), None, options.strengths, None, jnp.int32(0), jnp.arange(4, dtype=jnp.int32)
    )
    solver, plan = options.plan(stage.grid(options))
    start = jax.tree.map(jnp.float32, plan.start)
    carry = jax.eval_shape(
        lambda request: stage._start_impl(solver, options.method, request, None, None, start, jnp.float32(1)), request
    )
    columns = jax.tree.map(jnp.asarray, plan.on_device())
    arguments = (solver, options.method, None, request, carry, columns, jnp.int32(0), jnp.int32(len(plan)))
    text = lowered(stage._run, platform, *arguments)
    assert ("__cudnn$fmhaSoftmax" in text) == (platform == "cuda")
