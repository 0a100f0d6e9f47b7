"""What models compute in: types (parameters are always float32), and the memory of devices."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, get_args

from glide_jax.errors import GlideError

ComputeType = Literal["float32", "tf32", "bfloat16"]
COMPUTE_TYPES: tuple[str, ...] = get_args(ComputeType)
HELP = "compute type; tf32: float32 with products of 10-bit mantissas, on NVIDIA GPUs since Ampere"


def arrays_and_products(dtype: Any) -> tuple[Any, str]:
    """The type of arrays, and the precision to request from JAX for float32 products.

    By default a GPU would compute them in TF32 and a TPU in bfloat16, even in the float32 layers of a bfloat16 model.

    Args:
        dtype: a `ComputeType`, or `jnp.float32` or `jnp.bfloat16`.

    Raises:
        GlideError: it is none of these.
    """
    import jax.numpy as jnp  # noqa: PLC0415 (takes a second; command lines are parsed without it)

    if dtype not in (*COMPUTE_TYPES, jnp.float32, jnp.bfloat16):
        raise GlideError(f"dtype {dtype!r} is not supported: use float32 or bfloat16 (or tf32)")
    return (jnp.dtype("float32"), "tensorfloat32") if dtype == "tf32" else (jnp.dtype(dtype), "highest")


def check_device(dtype: str, option: str) -> None:
    """Raises `GlideError` for an unknown type or, naming `option`, one that this process's device cannot compute in."""
    import jax  # noqa: PLC0415 (as above)

    arrays_and_products(dtype)
    capability = cuda_capability()
    if capability >= 8 or dtype == "float32" or (dtype == "bfloat16" and not capability):
        return
    there = f"{jax.devices()[0].device_kind} has {capability:.1f}" if capability else "there is none"
    raise GlideError(f"{option}={dtype} needs an NVIDIA GPU of compute capability 8.0 or later, {there}: use float32")


@cache
def cuda_capability() -> float:
    """The lowest compute capability of this process's NVIDIA GPUs (9.0 for Hopper); 0 without any."""
    import jax  # noqa: PLC0415 (as above)

    try:
        return min(float(device.compute_capability) for device in jax.local_devices(backend="cuda"))
    except RuntimeError:
        return 0.0


@contextmanager
def memory_of_device(error_of: Callable[[str, str], GlideError]) -> Iterator[None]:
    """Raises what `error_of` makes of the device's kind and XLA's reason in place of XLA's out-of-memory error."""
    import jax  # noqa: PLC0415 (as above)

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise error_of(jax.local_devices()[0].device_kind, str(error).splitlines()[0]) from error
