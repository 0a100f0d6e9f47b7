"""The device mesh that every array of a run lives on; one device is a mesh of one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import jax
from jax.sharding import AxisType, Mesh

from glide_jax.errors import GlideError
from glide_jax.options import Options, option

AXES = ("data", "fsdp")


@dataclass(frozen=True, slots=True)
class ParallelConfig(Options):
    """Sizes of the mesh axes; one of them may be -1, "the devices that are left".

    Raises:
        GlideError: a size is neither positive nor -1, or both are -1.
    """

    data: Annotated[int, option("ways to split the batch with every parameter copied; -1: all devices left")] = -1
    fsdp: Annotated[
        int, option("ways to split the batch and, with it, parameters, EMA and optimizer state; -1: likewise")
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
        GlideError: `config` does not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    # jax.make_mesh would otherwise choose Explicit axes, which want an out_sharding at many operations.
    axis_types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(config.sizes(len(devices)), AXES, axis_types=axis_types, devices=devices)
