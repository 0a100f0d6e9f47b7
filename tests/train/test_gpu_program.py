"""What XLA makes of training for an H100, where the CUDA plugin of jax is at hand in a folder of its own.

Installed among the other packages it would disturb every process that has no GPU.
"""

import os
import re
import subprocess
import sys

import pytest

from tests.programs import ROOT

PLUGIN = os.environ.get("JAX_CUDA_PLUGIN", "")


@pytest.mark.skipif(not PLUGIN, reason="JAX_CUDA_PLUGIN names no folder with jax-cuda13-plugin and jax-cuda13-pjrt")
def test_a_training_step_has_cudnns_convolutions_and_nothing_unwanted():
    command = [sys.executable, "tests/benchmarks/gpu_program.py", "--programs=init,train", "--pages=glide_base:tiny"]
    command += ["--batch=2", "--config.model.image_size=16", "--config.model.channel_mult=(1,)"]
    command += ["--config.model.attention_resolutions=(16,)", "--config.model.xf_layers=1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), PLUGIN])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    init, train = re.split(r"\n(?=\S)", done.stdout.strip())
    assert [part.split(",")[0] for part in (init, train)] == ["glide_base:tiny init", "glide_base:tiny train"]
    # Weights are cut from one draw: a kernel for each kind of shape, not for each array.
    assert int(re.search(r"(\d+) kernels", init)[1]) < 60
    # Two in each of five blocks, and one before and after them; forward and twice backward.
    assert int(re.search(r"(\d+) .*GB  convolution", train)[1]) >= 3 * 12 - 1
    # The last convolution is in float32, forward and twice backward.
    assert "unwanted: 3 float32 convolution\n" in train + "\n"
