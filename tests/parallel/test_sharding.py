import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from glide_jax.errors import GlideError
from glide_jax.parallel import (
    AXES,
    ParallelConfig,
    check_batch_size,
    make_mesh,
    partition_spec,
    put_batch,
    state_shardings,
    with_shardings,
)
from tests.parallel.processes import run


@pytest.mark.parametrize(
    ("shape", "fsdp", "spec"),
    [
        ((), 4, PartitionSpec()),
        ((192,), 4, PartitionSpec()),  # a bias: small
        ((768, 1536), 4, PartitionSpec(None, "fsdp")),
        ((2048, 768), 4, PartitionSpec("fsdp")),
        ((768, 768), 4, PartitionSpec(None, "fsdp")),  # of equal ones the last
        ((50257, 512), 4, PartitionSpec(None, "fsdp")),  # the largest is not divisible
        ((50257, 511), 4, PartitionSpec()),
        ((3, 3, 192, 384), 4, PartitionSpec(None, None, None, "fsdp")),
        ((3, 3, 384, 192), 4, PartitionSpec(None, None, "fsdp")),
        ((256, 256, 3, 7), 4, PartitionSpec()),  # H and W never
        ((16, 512, 1536), 4, PartitionSpec(None, None, "fsdp")),  # a stack of layers
        ((768, 1536), 1, PartitionSpec()),
    ],
)
def test_rule(shape, fsdp, spec):
    assert partition_spec(shape, 4, fsdp) == spec


def test_rule_counts_bytes_not_elements():
    assert partition_spec((256, 256), 4, 4) == PartitionSpec(None, "fsdp")
    assert partition_spec((256, 256), 2, 4) == PartitionSpec()
    assert partition_spec((8, 8), 4, 4, min_bytes=0) == PartitionSpec(None, "fsdp")


def test_shardings_follow_the_tree_and_attach_to_it():
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    tree = {"params": {"kernel": jnp.ones((512, 512), jnp.bfloat16)}, "opt": (jnp.int32(0), [])}
    abstract = with_shardings(tree, state_shardings(tree, mesh))
    assert jax.tree.structure(abstract) == jax.tree.structure(tree)
    kernel = abstract["params"]["kernel"]
    assert (kernel.shape, kernel.dtype) == ((512, 512), jnp.bfloat16)
    assert kernel.sharding == NamedSharding(mesh, PartitionSpec())


@pytest.mark.parametrize(
    ("size", "micro_batches", "use"),
    [(6, 1, "4 or 8"), (1, 1, "4"), (6, 3, "12"), (18, 3, "12 or 24"), (12, 2, "8 or 16"), (4, 4, "16")],
)
def test_a_batch_that_devices_cannot_share_is_refused_with_the_sizes_that_will_do(size, micro_batches, use):
    mesh = AbstractMesh((2, 2), AXES)
    by = "4 devices" if micro_batches == 1 else f"{micro_batches} micro-batches on 4 devices"
    with pytest.raises(GlideError, match=f"^train.batch_size {size} cannot be shared equally by {by}: use {use}$"):
        check_batch_size(size, mesh, micro_batches)
    for good in map(int, use.split(" or ")):
        check_batch_size(good, mesh, micro_batches)


def test_one_process_feeds_every_row():
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    check_batch_size(6, mesh)
    images = np.arange(24, dtype=np.float32).reshape(6, 4)
    with jax.transfer_guard("disallow"):
        batch = put_batch({"images": images, "tokens": np.ones((6, 2), np.int32)}, mesh)
    np.testing.assert_array_equal(batch["images"], images)
    assert batch["tokens"].dtype == jnp.int32


EIGHT_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from glide_jax.errors import GlideError
from glide_jax.parallel import *

tree = {"kernel": jnp.ones((3, 3, 64, 128)), "bias": jnp.ones(128), "step": jnp.int32(0)}
images = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
for data, fsdp in ((8, 1), (1, 8), (2, 4)):
    mesh = make_mesh(ParallelConfig(data=data, fsdp=fsdp))
    placed = jax.device_put(tree, state_shardings(tree, mesh))
    assert placed["kernel"].addressable_shards[0].data.shape == (3, 3, 64, 128 // fsdp)
    assert placed["bias"].sharding.is_fully_replicated and placed["step"].sharding.is_fully_replicated
    check_batch_size(16, mesh)
    batch = put_batch({"images": images}, mesh)["images"]
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 3)}
    assert (np.asarray(batch) == images).all()
twelve = {"images": images[:12]}
for call in (lambda: check_batch_size(12, mesh), lambda: check_batch_size(6, mesh), lambda: put_batch(twelve, mesh)):
    try:
        call()
    except GlideError as error:
        print(error)
"""


def test_eight_devices_share_state_and_batch():
    twelve, six, entry = run(EIGHT_DEVICES, devices=8).splitlines()
    assert twelve == "train.batch_size 12 cannot be shared equally by 8 devices: use 8 or 16"
    assert six == "train.batch_size 6 cannot be shared equally by 8 devices: use 8"
    assert entry == "batch entry 'images' has 12 rows, which 8 devices cannot share"
