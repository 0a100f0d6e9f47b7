"""Where each array lives on the device mesh."""

import math
from collections.abc import Mapping
from functools import partial

import jax
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, Shaped

from glide_jax.errors import GlideError
from glide_jax.parallel.mesh import AXES

Abstract = Array | jax.ShapeDtypeStruct

# Norms, biases and the narrowest kernels are below it: 1.5 of the base model's 1469 MiB, but two thirds of its arrays.
MIN_SHARDED_BYTES = 2**18


def partition_spec(
    shape: tuple[int, ...], itemsize: int, fsdp: int, min_bytes: int = MIN_SHARDED_BYTES
) -> PartitionSpec:
    """The rule for one array: its largest dimension that `fsdp` divides is split over the "fsdp" axis.

    Only the last two dimensions are candidates, so a convolution kernel [H, W, I, O] is never split over H or
    W, nor a stack of layers over its depth; the last of equal ones is taken. Arrays of fewer than `min_bytes`
    bytes, and those without such a dimension, are copied to every device.
    """
    if fsdp == 1 or math.prod(shape) * itemsize < min_bytes:
        return PartitionSpec()
    divisible = [axis for axis in range(len(shape))[-2:] if shape[axis] % fsdp == 0]
    if not divisible:
        return PartitionSpec()
    chosen = max(divisible, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(None,) * chosen, "fsdp")


def state_shardings(
    abstract_tree: PyTree[Abstract], mesh: Mesh | AbstractMesh, min_bytes: int = MIN_SHARDED_BYTES
) -> PyTree[NamedSharding]:
    """A tree of shardings like `abstract_tree`, by the rule of `partition_spec`; the mesh may be abstract."""

    def sharding(leaf: Abstract) -> NamedSharding:
        itemsize = np.dtype(leaf.dtype).itemsize
        return NamedSharding(mesh, partition_spec(leaf.shape, itemsize, mesh.shape["fsdp"], min_bytes))

    return jax.tree.map(sharding, abstract_tree)


def with_shardings(abstract_tree: PyTree[Abstract], shardings: PyTree[NamedSharding]) -> PyTree[jax.ShapeDtypeStruct]:
    """`abstract_tree` with `shardings` attached, into which a checkpoint is restored."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_tree,
        shardings,
    )


def bytes_per_device(abstract_tree: PyTree[jax.ShapeDtypeStruct]) -> int:
    """Bytes on each device of the arrays in a tree with shardings."""

    def size(leaf: jax.ShapeDtypeStruct) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        return math.prod(shape) * np.dtype(leaf.dtype).itemsize

    return sum(map(size, jax.tree.leaves(abstract_tree)))


def gather_for_use(tree: PyTree[Array], shardings: PyTree[NamedSharding]) -> PyTree[Array]:
    """Inside jit: every array whole on every device, its gradient summed into the shards it is stored in (FSDP).

    Left to itself, XLA splits activations like the weights, and moves them at every layer.
    """
    return jax.tree.map(lambda x, to: x if to.is_fully_replicated else _gather(x, to), tree, shardings)


def in_own_layout(gradients: PyTree[Array], shardings: PyTree[NamedSharding], cudnn: bool) -> PyTree[Array]:
    """Inside jit: gives the gradients of whole arrays the layout of the arrays.

    cuDNN returns those of convolution kernels in another layout, and XLA would transpose weights, EMA weights and
    moments to it and back; or, without the barrier, gradients within their update, which then cannot happen in place
    and copies all three. A TPU has no such layout, and the barrier only costs it traffic. With micro-batches, call it
    after they are summed: otherwise devices communicate for each.
    """

    def arrange(gradient: Array, to: NamedSharding) -> Array:
        if not to.is_fully_replicated:
            return gradient
        arranged = with_layout_constraint(gradient, Layout(tuple(range(gradient.ndim))))
        of_convolution = gradient.ndim == 4
        return jax.lax.optimization_barrier(arranged) if cudnn and of_convolution else arranged

    return jax.tree.map(arrange, gradients, shardings)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(leaf: Array, sharding: NamedSharding) -> Array:
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(sharding.mesh, PartitionSpec()))


def _gather_forward(leaf: Array, sharding: NamedSharding) -> tuple[Array, None]:
    return _gather(leaf, sharding), None


def _gather_backward(sharding: NamedSharding, _: None, gradient: Array) -> tuple[Array]:
    return (jax.lax.with_sharding_constraint(gradient, sharding),)


_gather.defvjp(_gather_forward, _gather_backward)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of a batch: its leading dimension is split over all devices of the mesh, ("data", "fsdp")."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def check_batch_size(batch_size: int, mesh: Mesh | AbstractMesh, micro_batches: int = 1) -> None:
    """Raises `GlideError` if devices cannot share each micro-batch equally; it names the nearest sizes that work."""
    if batch_size % (mesh.size * micro_batches):
        nearest = nearest_multiples(batch_size, mesh.size * micro_batches)
        parts = f"{micro_batches} micro-batches on " if micro_batches > 1 else ""
        raise GlideError(
            f"train.batch_size {batch_size} cannot be shared equally by {parts}{mesh.size} devices: use {nearest}"
        )


def nearest_multiples(size: int, divisor: int) -> str:
    """The positive multiples of `divisor` next to a size that is not one, as "4 or 8"."""
    below = size // divisor * divisor
    return f"{below} or {below + divisor}" if below else str(divisor)


def put_batch(batch: Mapping[str, Shaped[np.ndarray, "rows ..."]], mesh: Mesh) -> dict[str, Shaped[Array, "batch ..."]]:
    """Puts this process's rows on its devices, as global arrays split by `batch_sharding`.

    Args:
        batch: arrays of equal leading dimension: the rows of the global batch that this process provides, in order.
        mesh: the mesh, all of whose processes call this together.

    Raises:
        GlideError: the rows cannot be split evenly over this process's devices.
    """
    sharding = batch_sharding(mesh)
    local_devices = len(sharding.addressable_devices)

    def put(name: str, rows: Shaped[np.ndarray, "rows ..."]) -> Shaped[Array, "batch ..."]:
        if len(rows) % local_devices:
            raise GlideError(f"batch entry {name!r} has {len(rows)} rows, which {local_devices} devices cannot share")
        global_shape = (len(rows) // local_devices * mesh.size, *rows.shape[1:])
        return jax.make_array_from_process_local_data(sharding, rows, global_shape)

    return {name: put(name, rows) for name, rows in batch.items()}
