"""Sampling over 8 simulated devices: the same noise to the bit, the same pictures within one grey level."""

import jax
import numpy as np

from tests.parallel.processes import run

PROGRAM = """
import sys
import jax, numpy as np
from glide_jax.parallel import ParallelConfig, batch_sharding, make_mesh
from tests.sample.test_devices import draw, noise

mesh = make_mesh(ParallelConfig())
assert mesh.size == 8
images = draw(mesh)
there = noise(jax.device_put(jax.numpy.arange(8), batch_sharding(mesh)))
for array in (images, there):
    assert len(array.sharding.device_set) == 8, array.sharding
np.savez(sys.argv[1], images=images, noise=there)
"""


def draw(mesh=None):
    from glide_jax.sample import Inputs, SampleOptions
    from tests.tiny.models import random_model

    model = random_model(mesh=mesh)
    inputs = Inputs([f"a cat {i}" for i in range(8)], range(8))
    return model.stage.sample(model.params, inputs, SampleOptions.of(num_steps=4, sampler="dpmpp_2m_sde"), seed=3)


def noise(indices):
    from glide_jax.randomness import normal_per_example, stream_key

    return jax.jit(lambda i: normal_per_example(stream_key(3, "x"), i, (16, 16, 3)))(indices)


def test_pictures_do_not_depend_on_the_number_of_devices(tmp_path):
    run(PROGRAM, tmp_path / "eight.npz", devices=8)
    eight = np.load(tmp_path / "eight.npz")
    np.testing.assert_array_equal(noise(jax.numpy.arange(8)), eight["noise"])
    grey = [np.rint((np.asarray(images) + 1) * 127.5) for images in (draw(), eight["images"])]
    assert (np.abs(grey[0] - grey[1]) <= 1).mean() > 0.999
    assert grey[0].std() > 5
