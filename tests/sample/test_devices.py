"""Sampling over 8 simulated devices: the same noise to the bit, the same pictures within one grey level."""

import jax
import numpy as np

from tests.parallel.processes import run
from tests.tiny.models import save_lora, save_model

PROGRAM = """
import sys
import jax, numpy as np
from glide_jax.parallel import ParallelConfig, batch_sharding, make_mesh
from tests.sample.test_devices import drawn, loaded, noise

mesh = make_mesh(ParallelConfig())
assert mesh.size == 8
plain, adapted = loaded(*sys.argv[2:])
images = drawn(plain)
there = noise(jax.device_put(jax.numpy.arange(8), batch_sharding(mesh)))
for array in (images, there):
    assert len(array.sharding.device_set) == 8, array.sharding
for before, after in zip(*map(jax.tree.leaves, (plain.params, adapted.params)), strict=True):
    assert before.sharding == after.sharding, (before.sharding, after.sharding)
assert any(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(adapted.params))
np.savez(sys.argv[1], images=images, noise=there, adapted=drawn(adapted))
"""


def loaded(base, *lora):
    """A model as it is, and with adapters."""
    from glide_jax.sample import LoadedModel

    return [LoadedModel.from_checkpoint(base, lora=given) for given in ([], lora)]


def drawn(model):
    from glide_jax.sample import Inputs, SampleOptions

    inputs = Inputs([f"a cat {i}" for i in range(8)], range(8))
    return model.stage.sample(model.params, inputs, SampleOptions.of(num_steps=4, sampler="dpmpp_2m_sde"), seed=3)


def noise(indices):
    from glide_jax.randomness import normal_per_example, stream_key

    return jax.jit(lambda i: normal_per_example(stream_key(3, "x"), i, (16, 16, 3)))(indices)


def test_pictures_do_not_depend_on_the_number_of_devices(tmp_path):
    base = save_model(tmp_path / "base")
    lora = [save_lora(tmp_path / "lora", base), save_lora(tmp_path / "dora", base, dora=True)]
    run(PROGRAM, tmp_path / "eight.npz", base, *lora, devices=8)
    eight = np.load(tmp_path / "eight.npz")
    np.testing.assert_array_equal(noise(jax.numpy.arange(8)), eight["noise"])
    plain, adapted = map(drawn, loaded(base, *lora))
    for here, there in ((plain, eight["images"]), (adapted, eight["adapted"])):
        grey = [np.rint((np.asarray(images) + 1) * 127.5) for images in (here, there)]
        assert (np.abs(grey[0] - grey[1]) <= 1).mean() > 0.999
        assert grey[0].std() > 5
    assert np.abs(plain - adapted).max() > 0.1
