"""The full-size training steps and samplers build for CUDA and TPU, as far as a machine without them can tell."""

import importlib

import jax
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from glide_jax.config import from_ml_collections
from glide_jax.models import attention as attention_module
from glide_jax.parallel import make_mesh
from glide_jax.sample import Inputs, Stage
from glide_jax.train.program import Program

# The upsampler's attention is the base model's: what a TPU makes of it is seen there.
STEPS = [("glide_base", "cuda"), ("glide_base", "tpu"), ("glide_upsample", "cuda")]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def pretended_cuda(platform, monkeypatch):
    """JAX looks for cuDNN on this machine before it writes a call of it."""
    if platform == "cuda":
        monkeypatch.setattr(attention_module, "cuda_capability", lambda: 9.0)
        monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
        monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)


def page(name):
    return from_ml_collections(importlib.import_module(f"configs.{name}").get_config())


def lowered(jitted, platform, *arguments):
    return jitted.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("name", "platform"), STEPS)
def test_training_step(name, platform):
    config = page(name)
    program = Program(config, make_mesh(config.parallel))
    text = lowered(program.train_step, platform, program.abstract_packed, program.abstract_batch())
    for call in ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"):
        assert (call in text) == (platform == "cuda")


@pytest.mark.parametrize(("name", "platform"), STEPS[:2])
def test_sampler(name, platform):
    config = page(name)
    program = Program(config, make_mesh(config.parallel))
    stage, options = Stage(program.model, config.diffusion), config.train.preview.options
    small = config.model.low_res_size
    low_res = np.zeros((4, small, small, 3), np.float32) if config.model.super_res else None
    inputs = Inputs(["a cat"] * 4, range(4), low_res=low_res)
    sample = jax.jit(lambda params: stage.sample(params, inputs, options))
    assert ("__cudnn$fmhaSoftmax" in lowered(sample, platform, program.abstract_state["params"])) == (
        platform == "cuda"
    )
