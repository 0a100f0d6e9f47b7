import jax
import pytest
from jax.sharding import AxisType

from glide_jax.errors import GlideError
from glide_jax.parallel import ParallelConfig, make_mesh


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
