"""What XLA makes of training for devices that are not there, where the packages that compile for them are at hand.

Each is in a folder of its own: among the other packages they would disturb every process that has no such device.
"""

import os
import re
import subprocess
import sys

import pytest

from tests.programs import ROOT

# Images of 16 pixels, one level.
SMALL = [f"--config.model.{option}" for option in
         ("image_size=16", "channel_mult=(1,)", "attention_resolutions=(16,)", "xf_layers=1")]  # fmt: skip


def compiled(package, device, programs, *changes):
    """What is printed of each program; the variable `package` names a folder with the package for `device`."""
    if package not in os.environ:
        pytest.skip(f"{package} names no folder with the package that compiles for {device}")
    command = [sys.executable, "tests/benchmarks/device_program.py", f"--device={device}", f"--programs={programs}"]
    command += ["--pages=glide_base:tiny", "--batch=4", *SMALL, *changes]
    environment = os.environ | {"PYTHONPATH": os.environ[package]}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parts = re.split(r"\n(?=\S)", done.stdout.strip())
    assert [part.split(",")[0] for part in parts] == [f"glide_base:tiny {name}" for name in programs.split(",")]
    return parts


def count(kind, part):
    found = re.search(rf"(\d+) .*  {kind}\n", part)
    assert found, f"no {kind} in {part}"
    return int(found[1])


def test_on_two_h100_a_training_step_has_cudnns_kernels_and_nothing_unwanted():
    init, train = compiled("JAX_CUDA_PLUGIN", "h100:2", "init,train", "--config.parallel.fsdp=2")
    # Weights are cut from one draw: a kernel for each kind of shape, not for each array.
    assert int(re.search(r"(\d+) kernels", init)[1]) < 60
    # Two in each of five blocks, and one before and after them; forward and twice backward.
    assert count("convolution", train) >= 3 * 12 - 1
    # The text's layer, and one in each of four blocks; forward and backward.
    assert count("attention", train) == 2 * 5
    assert count("all-gather-start", train) > 0
    # The last convolution is in float32, forward and twice backward.
    assert "unwanted: 3 float32 convolution\n" in train + "\n"


def test_four_tpu_chips_share_a_training_step_and_call_no_host():
    (train,) = compiled("LIBTPU", "v5e:2x2", "train", "--config.parallel.fsdp=2")
    assert count("convolution", train) >= 3 * 12 - 1
    assert count("all-gather", train) > 0
    assert "unwanted: nothing\n" in train + "\n"
