"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): products of two thin matrices, added to frozen kernels.

A layer of kernel W [..., in, out] gets W + alpha / rank * down @ up, with down [..., in, rank] and up [rank, out]; for
a convolution, `down` is a convolution of the same size and `up` is 1 x 1. Parameters with adapters are the model's and
a group "lora", nested in the same way.

DoRA (Liu et al. 2024, arXiv:2402.09353) uses that sum only for the direction of each output unit's weights; their norm
is learnt separately, as `magnitude` [out].
"""

import hashlib
import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from glide_jax.errors import GlideError
from glide_jax.models.functional import Params
from glide_jax.options import Options, option

# The name of the adapters among a model's parameters.
GROUP = "lora"
# The layers that use the network's compute type; all others use float32.
_IN_COMPUTE_TYPE = {("unet", "down"), ("unet", "middle"), ("unet", "up"), ("text", "blocks")}
_LONGEST_TARGET = 200  # characters
_Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoraConfig(Options):
    """Which layers get adapters, and their rank.

    The default targets are the UNet's attention and the convolutions of its blocks; "text/*" adds the text transformer.
    """

    PREFIX: ClassVar[str] = "train.lora."

    rank: Annotated[int, option("rank of the adapters; 0 trains the weights themselves", low=0)] = 0
    alpha: Annotated[float, option("adapters are scaled by alpha / rank; 0 sets alpha to the rank", low=0)] = 0.0
    targets: Annotated[
        tuple[str, ...], option("layers that get adapters, as patterns of their names; * also matches slashes")
    ] = ("unet/*/attn/*", "unet/*/*conv")
    dora: Annotated[bool, option("DoRA: the norm of each output unit's weights is trained separately")] = False

    def __post_init__(self) -> None:
        Options.__post_init__(self)
        if self.dora and not self.rank:
            raise GlideError("train.lora.dora needs adapters: give train.lora.rank")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return (self.alpha or self.rank) / self.rank

    def layers(self, params: Params) -> dict[_Path, tuple[int, ...]]:
        """Paths of the layers that get adapters, and their kernels' shapes.

        Args:
            params: (abstract) parameters of the model.

        Raises:
            GlideError: there are no targets, one matches no layer, or the rank exceeds that of every layer.
        """
        kernels = {path[:-1]: leaf.shape for path, leaf in flatten_dict(params).items() if path[-1] == "kernel"}
        # They may come from a stranger's file, and each is compared with each layer.
        if len(self.targets) > len(kernels) or any(len(target) > _LONGEST_TARGET for target in self.targets):
            raise GlideError(
                f"train.lora.targets: give at most {len(kernels)}, one a layer, of at most {_LONGEST_TARGET} characters"
            )
        chosen: dict[_Path, tuple[int, ...]] = {}
        for target in self.targets:
            found = {path: shape for path, shape in kernels.items() if fnmatchcase("/".join(path), target)}
            if not found:
                example = "/".join(next(iter(kernels)))
                raise GlideError(f"train.lora.targets: no layer is named like {target!r}; one is named {example}")
            chosen |= found
        if self.rank and not chosen:
            raise GlideError("train.lora.targets names no layer, so there is nothing to train")
        full = max((min(math.prod(shape[:-1]), shape[-1]) for shape in chosen.values()), default=0)
        if self.rank > full:
            raise GlideError(f"train.lora.rank {self.rank} is more than any of the layers has: use at most {full}")
        return {path: chosen[path] for path in kernels if path in chosen}


def fresh_adapters(config: LoraConfig, params: Params, key: PRNGKeyArray) -> Params:
    """Adapters that change nothing yet: `down` uniform in +-1/sqrt(fan_in), `up` zero, `magnitude` the kernel's.

    Args:
        config: which layers.
        params: parameters of the model; magnitudes need their values, all else only their shapes.
        key: of the random numbers, which come from a single draw.
    """
    kernels = flatten_dict(params)
    layers = config.layers(params)
    shapes = {path: (*shape[:-1], config.rank) for path, shape in layers.items()}
    numbers = jax.random.uniform(key, (sum(map(math.prod, shapes.values())),), jnp.float32, -1.0, 1.0)
    flat: dict[_Path, Array] = {}
    begin = 0
    for path, shape in shapes.items():
        end = begin + math.prod(shape)
        flat[*path, "down"] = numbers[begin:end].reshape(shape) / math.sqrt(math.prod(shape[:-1]))
        flat[*path, "up"] = jnp.zeros((config.rank, layers[path][-1]))
        if config.dora:
            flat[*path, "magnitude"] = _norms(kernels[*path, "kernel"])
        begin = end
    return unflatten_dict(flat)


def abstract_adapters(config: LoraConfig, params: Params) -> Params:
    """Shapes and types of the adapters for (abstract) parameters."""
    return jax.eval_shape(partial(fresh_adapters, config), params, jax.random.key(0))


def with_adapters(params: Params, adapters: Params, scale: float) -> Params:
    """The parameters, with `scale` times the product of each adapter added to its kernel in float32.

    With a magnitude, the sum is then scaled to it; as in DoRA (section 4.3), the gradient treats the norms before that
    as constants.
    """
    flat: dict[_Path, Any] = flatten_dict(params)
    thin = flatten_dict(adapters)
    for path in {path[:-1] for path in thin}:
        kernel = _adapted(flat[*path, "kernel"], thin[*path, "down"], thin[*path, "up"], scale)
        magnitude = thin.get((*path, "magnitude"))
        flat[*path, "kernel"] = kernel if magnitude is None else _brought_to(kernel, magnitude)
    return unflatten_dict(flat)


def _adapted(
    kernel: Float[Array, "*fan_in out"], down: Float[Array, "*fan_in rank"], up: Float[Array, "rank out"], scale: float
) -> Float[Array, "*fan_in out"]:
    return kernel.astype(jnp.float32) + scale * jnp.tensordot(down, up, 1)


def _brought_to(kernel: Float[Array, "*fan_in out"], magnitude: Float[Array, " out"]) -> Float[Array, "*fan_in out"]:
    norms = _norms(jax.lax.stop_gradient(kernel))
    # A unit whose weights are all zero has no direction and stays as it is.
    return kernel * jnp.broadcast_to(magnitude / jnp.where(norms > 0, norms, 1.0), kernel.shape)


def _norms(kernel: Float[Array, "*fan_in out"]) -> Float[Array, " out"]:
    """The norm of each output unit's weights, over all of its inputs."""
    squares = jnp.square(jnp.asarray(kernel, jnp.float32))
    return jnp.sqrt(squares.sum(axis=tuple(range(squares.ndim - 1))))


def fingerprint(params: Params) -> str:
    """Identifies a model's weights: the SHA-256 of its kernels, rounded to bfloat16.

    It is the same for weights stored in float32 and in bfloat16, but not in float16, which rounds differently. Adapters
    do not count.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params).items()):
        if path[-1] == "kernel":
            digest.update("/".join(path).encode())
            digest.update(np.asarray(leaf).astype(jnp.bfloat16).tobytes())
    return digest.hexdigest()


def stored_type(path: tuple[str, ...], frozen_in: DTypeLike) -> DTypeLike:
    """The type to store a frozen parameter in: `frozen_in` for kernels that layers round to it before each use."""
    rounded = path[-1] == "kernel" and path[:2] in _IN_COMPUTE_TYPE
    return frozen_in if rounded else jnp.float32
