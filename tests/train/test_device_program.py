"""What XLA makes of training for devices that are not there, where the packages that compile for them are at hand.

Each is in a folder of its own: among the other packages they would disturb every process that has no such device.
"""

import os
import re
import subprocess
import sys

import pytest

from tests.benchmarks.hlo import kernels
from tests.programs import ROOT

# Images of 16 pixels, one level.
SMALL = [f"--config.model.{option}" for option in
         ("image_size=16", "channel_mult=(1,)", "attention_resolutions=(16,)", "xf_layers=1")]  # fmt: skip


FUSION = """
HloModule step

%fused_add (param_0: f32[8,4], param_1.2: s32[], param_2: f32[2,4]) -> f32[2,4] {
  %param_0 = f32[8,4]{1,0} parameter(0)
  %bitcast.3 = f32[8,4]{1,0} bitcast(%param_0)
  %param_1.2 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %dynamic-slice.1 = f32[2,4]{1,0} dynamic-slice(%bitcast.3, %param_1.2, %zero), dynamic_slice_sizes={2,4}
  %param_2 = f32[2,4]{1,0} parameter(2)
  %slice.1 = f32[1,4]{1,0} slice(%param_2), slice={[0:1], [0:4]}
  ROOT %add.1 = f32[2,4]{1,0} add(%dynamic-slice.1, %param_2)
}

ENTRY %main (x: f32[8,4], i: s32[], y: f32[2,4]) -> f32[2,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %y = f32[2,4]{1,0} parameter(2)
  ROOT %loop_add_fusion = f32[2,4]{1,0} fusion(%x, %i, %y), kind=kLoop, calls=%fused_add
}
"""


def run(package, device, *command):
    """What a command prints; the variable `package` names a folder with the package that compiles for `device`."""
    if package not in os.environ:
        pytest.skip(f"{package} names no folder with the package that compiles for {device}")
    environment = os.environ | {"PYTHONPATH": os.environ[package]}
    command = [sys.executable, *command]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def compiled(package, device, programs, *changes):
    """What is printed of each program."""
    command = ["tests/benchmarks/device_program.py", f"--device={device}", f"--programs={programs}"]
    command += ["--configs=glide_base:tiny", "--batch=4", *SMALL, *changes]
    parts = re.split(r"\n(?=\S)", run(package, device, *command))
    assert [part.split(",")[0] for part in parts] == [f"glide_base:tiny {name}" for name in programs.split(",")]
    return parts


def count(kind, part):
    found = re.search(rf"(\d+) .*  {kind}\n", part)
    assert found, f"no {kind} in {part}"
    return int(found[1])


def test_traffic_counts_what_is_read_of_an_array():
    (kernel,) = kernels(FUSION)
    # Eight numbers of x and eight of y are read, and an index; eight are written.
    assert (kernel.kind, kernel.bytes) == ("other fusion", 4 * (8 + 8 + 1 + 8))


NORM = """
import sys
from functools import partial

sys.path.insert(0, "")
from tests.benchmarks.device_program import absent_devices

import jax
import jax.numpy as jnp
from glide_jax.models.normalization import normalize
from tests.benchmarks.hlo import kernels

(device,) = absent_devices("h100")
to = jax.sharding.SingleDeviceSharding(device)
image = jax.ShapeDtypeStruct((8, 64, 64, 192), jnp.bfloat16, sharding=to)
channels = jax.ShapeDtypeStruct((8, 192), jnp.float32, sharding=to)
norm = partial(normalize, groups=32, epsilon=1e-5, swish=True, dtype=jnp.bfloat16)
gradient = jax.jit(lambda *given: jax.vjp(norm, *given[:3])[1](given[3]))
text = gradient.lower(image, channels, channels, image).compile().as_text()
print(sum(kernel.bytes for kernel in kernels(text)) / (2 * image.size))
"""


def test_a_norms_gradient_passes_over_memory_six_times():
    passes = float(run("JAX_CUDA_PLUGIN", "h100", "-c", NORM))
    # Over x for the statistics; over x and the gradient for sums; over both, and over what it returns; a quarter of one
    # for the sums of rows. JAX's derivative of the formula: 18.
    assert 6 <= passes < 6.5


GLOBAL_NORM = """
import sys

sys.path.insert(0, "")
from tests.benchmarks.device_program import absent_devices

import jax
import jax.numpy as jnp
from glide_jax.train.optimizer import global_norm
from tests.benchmarks.hlo import kernels

(device,) = absent_devices("h100")
to = jax.sharding.SingleDeviceSharding(device)
gradients = [jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32, sharding=to)] * 20
print(len(list(kernels(jax.jit(global_norm).lower(gradients).compile().as_text()))))
"""


def test_a_sum_over_all_parameters_is_ended_once():
    # One over each array, one or two to join what they give, and the last; optax.tree.norm has 41.
    assert 20 < int(run("JAX_CUDA_PLUGIN", "h100", "-c", GLOBAL_NORM)) <= 25


def test_on_two_h100_a_training_step_has_cudnns_kernels_and_nothing_unwanted():
    init, train = compiled("JAX_CUDA_PLUGIN", "h100:2", "init,train", "--config.parallel.fsdp=2")
    # Weights are cut from one draw: a kernel for each kind of shape, not for each array.
    assert int(re.search(r"(\d+) kernels", init)[1]) < 60
    # Two in each of five blocks, and one before and after them; forward and twice backward.
    assert count("convolution", train) >= 3 * 12 - 1
    # The text's layer, and one in each of four blocks; forward and backward.
    assert count("attention", train) == 2 * 5
    assert count("all-gather-start", train) > 0
    # A group norm's are one forward and one backward; the gradient of JAX's formula has two and three.
    assert count("reduce", train) < 112
    # The last convolution is in float32, forward and twice backward.
    assert "unwanted: 3 float32 convolution\n" in train + "\n"


def test_four_tpu_chips_share_a_training_step_and_call_no_host():
    (train,) = compiled("LIBTPU", "v5e:2x2", "train", "--config.parallel.fsdp=2")
    assert count("convolution", train) >= 3 * 12 - 1
    assert count("all-gather", train) > 0
    assert "unwanted: nothing\n" in train + "\n"
