"""Sampling over 8 simulated devices: the same noise to the bit, the same pictures within one grey level."""

import numpy as np

from tests.parallel.processes import finish, start

PROGRAM = """
import sys
import jax, numpy as np
from glide_jax.parallel import ParallelConfig, make_mesh
from glide_jax.randomness import normal_per_example, stream_key
from glide_jax.sample import Inputs, SampleOptions
from tests.sample.models import random_model

devices, output = int(sys.argv[1]), sys.argv[2]
assert jax.device_count() == devices
mesh = make_mesh(ParallelConfig())
model = random_model(mesh=mesh)
inputs = Inputs([f"a cat {i}" for i in range(8)], range(8))
options = SampleOptions(num_steps=4, sampler="dpmpp_2m_sde")
images = model.stage.sample(model.params, inputs, options, seed=3)
assert len(images.sharding.device_set) == devices, images.sharding
indices = model.stage._put(jax.numpy.arange(8))
noise = jax.jit(lambda i: normal_per_example(stream_key(3, "x"), i, (16, 16, 3)))(indices)
assert len(noise.sharding.device_set) == devices
np.savez(output, images=images, noise=noise)
"""


def test_pictures_do_not_depend_on_the_number_of_devices(tmp_path):
    files = {devices: tmp_path / f"{devices}.npz" for devices in (1, 8)}
    for process in [start(PROGRAM, devices, file, devices=devices) for devices, file in files.items()]:
        finish(process)
    one, eight = (np.load(file) for file in files.values())
    np.testing.assert_array_equal(one["noise"], eight["noise"])
    grey = [np.rint((run["images"] + 1) * 127.5) for run in (one, eight)]
    assert (np.abs(grey[0] - grey[1]) <= 1).mean() > 0.999
    assert grey[0].std() > 5
