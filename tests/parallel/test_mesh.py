import itertools
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from glide_jax.errors import GlideError
from glide_jax.parallel import ParallelConfig, make_mesh
from glide_jax.parallel.mesh import arrange


@pytest.mark.parametrize(
    ("config", "devices", "sizes"),
    [
        (ParallelConfig(), 1, (1, 1)),
        (ParallelConfig(), 8, (8, 1)),
        (ParallelConfig(data=-1, fsdp=4), 8, (2, 4)),
        (ParallelConfig(data=2, fsdp=-1), 8, (2, 4)),
        (ParallelConfig(data=1, fsdp=-1), 8, (1, 8)),
        (ParallelConfig(data=2, fsdp=4), 8, (2, 4)),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(config, devices, sizes):
    assert config.sizes(devices) == sizes


@pytest.mark.parametrize(
    ("config", "devices"),
    [
        (ParallelConfig(data=3), 8),
        (ParallelConfig(data=2, fsdp=2), 8),
        (ParallelConfig(data=-1, fsdp=3), 8),
        (ParallelConfig(data=16, fsdp=-1), 8),
    ],
)
def test_sizes_that_do_not_fill_the_devices_are_refused_in_one_line(config, devices):
    with pytest.raises(GlideError, match=rf"^parallel\.data={config.data}, parallel\.fsdp={config.fsdp} .* 8 .*$"):
        config.sizes(devices)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 0}, r"^parallel\.data=0: must be at least 1, or -1"),
        ({"fsdp": -2}, r"^parallel\.fsdp=-2: must be at least 1, or -1"),
        ({"data": -1, "fsdp": -1}, "^parallel.data and parallel.fsdp are both -1"),
    ],
)
def test_impossible_sizes_are_refused_before_any_device_is_counted(sizes, message):
    with pytest.raises(GlideError, match=message):
        ParallelConfig(**sizes)


def test_one_device_is_a_mesh_of_one_with_auto_axes():
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1}
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)


@dataclass(frozen=True)
class Device:
    """What a mesh asks of a device, as jax's own tests of meshes have it."""

    id: int
    slice_index: int = 0
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"
    coords: tuple[int, ...] = ()
    core_on_chip: int = 0


def gpus(*nodes):
    """So many GPUs on each node, listed as processes join: the second node first."""
    of_node = [[(node, i) for i in range(count)] for node, count in enumerate(nodes)]
    order = itertools.chain(*of_node[1:], of_node[0])
    return [Device(sum(nodes[:node]) + i, node) for node, i in order]


def tpus(kind, x, y, z=1):
    places = itertools.product(range(z), range(y), range(x))
    return [Device(i, 0, "tpu", kind, place[::-1]) for i, place in enumerate(places)]


@pytest.mark.parametrize("nodes", [(8, 8), (8, 8, 8), (4,) * 6, (1, 1)])
def test_on_any_nodes_a_mesh_of_any_sizes_takes_every_gpu_once(nodes):
    total = sum(nodes)
    for fsdp in (size for size in range(1, total + 1) if total % size == 0):
        arranged = arrange((total // fsdp, fsdp), gpus(*nodes))
        assert arranged.shape == (total // fsdp, fsdp)
        assert sorted(device.id for device in arranged.flat) == list(range(total))


def test_weights_are_split_inside_a_node_where_they_can_be():
    for fsdp in (2, 4, 8):
        nodes = np.vectorize(lambda device: device.slice_index)(arrange((16 // fsdp, fsdp), gpus(8, 8)))
        assert (nodes == nodes[:, :1]).all()
    across = np.vectorize(lambda device: device.slice_index)(arrange((1, 16), gpus(8, 8)))
    assert across.tolist() == [[0] * 8 + [1] * 8]


def test_nodes_may_have_unequal_numbers_of_gpus():
    assert [device.id for device in arrange((6, 1), gpus(4, 2)).flat] == list(range(6))


@pytest.mark.parametrize("devices", [tpus("TPU v6 lite", 8, 8), tpus("TPU v5", 4, 4, 4)], ids=["v6e 8x8", "v5p 4x4x4"])
@pytest.mark.parametrize("fsdp", [1, 2, 4, 8, 16, 32, 64])
def test_on_a_tpu_pod_fsdp_may_be_any_part_of_a_side(devices, fsdp):
    arranged = arrange((64 // fsdp, fsdp), devices)
    assert arranged.shape == (64 // fsdp, fsdp)
    assert len(set(arranged.flat)) == 64
