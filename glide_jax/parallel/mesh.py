"""The device mesh: a single device is a mesh of one, several nodes or TPU slices are one mesh too."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh
from jaxtyping import Shaped

from glide_jax.errors import GlideError
from glide_jax.options import Options, option
from glide_jax.parallel.distributed import SharedError

AXES = ("data", "fsdp")


@dataclass(frozen=True, slots=True)
class ParallelConfig(Options):
    """Sizes of the mesh axes; one of them may be -1, "the devices that are left".

    Raises:
        GlideError: a size is neither positive nor -1, or both are -1.
    """

    data: Annotated[int, option("ways to split the batch with parameters copied; -1: all devices left")] = -1
    fsdp: Annotated[
        int, option("ways to split the batch and also parameters, EMA and optimizer state; -1: all devices left")
    ] = 1

    def __post_init__(self) -> None:
        for axis in AXES:
            size = getattr(self, axis)
            if size != -1 and size < 1:
                raise GlideError(f"parallel.{axis}={size}: must be at least 1, or -1 for the devices that are left")
        if self.data == self.fsdp == -1:
            raise GlideError("parallel.data and parallel.fsdp are both -1: give one of them a size")

    def sizes(self, devices: int) -> tuple[int, int]:
        """The axis sizes (data, fsdp) on `devices` devices; their product is `devices`.

        Raises:
            GlideError: the configured sizes do not fill exactly that many devices.
        """
        data, fsdp = self.data, self.fsdp
        if data == -1:
            data = devices // fsdp
        elif fsdp == -1:
            fsdp = devices // data
        if data * fsdp != devices:
            raise GlideError(
                f"parallel.data={self.data}, parallel.fsdp={self.fsdp} do not fill {devices} device(s):"
                f" the product of the two must be {devices} (-1 takes the devices that are left)"
            )
        return data, fsdp


def make_mesh(config: ParallelConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh with axes ("data", "fsdp") over `devices`, by default all devices of all processes.

    Raises:
        GlideError: `config` does not fit the number of devices, or processes have unequal numbers of them.
    """
    devices = jax.devices() if devices is None else devices
    of_process = Counter(device.process_index for device in devices)
    if len(set(of_process.values())) > 1:
        counts = sorted(of_process.values())
        raise SharedError(f"processes have {counts} devices: give each the same number, for example one each")
    # jax.make_mesh refuses several nodes, and on most TPUs sizes that no set of the torus's axes has.
    arranged = arrange(config.sizes(len(devices)), devices)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(sizes: tuple[int, int], devices: Sequence[jax.Device]) -> Shaped[np.ndarray, "data fsdp"]:
    """The devices as an array of `sizes`, with as much of "fsdp" as possible inside a node or TPU slice.

    Along "fsdp" all weights move in every step, along "data" only gradients. The GPUs of a node, or the chips of a TPU
    slice, have one `slice_index` and a faster network.
    """
    slices = Counter(getattr(device, "slice_index", 0) for device in devices)
    unequal = len(set(slices.values())) > 1  # a job may have fewer GPUs on one of its nodes
    if len(slices) == 1 or unequal:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    data = math.gcd(sizes[0], len(slices))
    between = (data, len(slices) // data)
    within = (sizes[0] // between[0], sizes[1] // between[1])
    return mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)
