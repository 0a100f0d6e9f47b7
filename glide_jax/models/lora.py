"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): products of two thin matrices, added to kernels that stay.

A layer of kernel W [..., in, out] gets W + alpha / rank * down @ up, with down [..., in, rank] and up [rank, out]; of a
convolution `down` is one too, and `up` is 1 x 1. Parameters with adapters are those of the model and a group "lora",
nested as they are.
"""

import hashlib
import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
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

# What adapters are in a model's parameters.
GROUP = "lora"
# Where the layers of a network compute in its compute type, not in float32.
_IN_COMPUTE_TYPE = {("unet", "down"), ("unet", "middle"), ("unet", "up"), ("text", "blocks")}
_Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoraConfig(Options):
    """Which layers get adapters, and how large these are.

    The default targets are the UNet's attention and the convolutions of its blocks; "text/*" adds the text transformer.
    """

    PREFIX: ClassVar[str] = "train.lora."

    rank: Annotated[int, option("rank of the adapters; 0 trains the weights themselves", low=0)] = 0
    alpha: Annotated[float, option("adapters count alpha / rank; 0: as much as the rank", low=0)] = 0.0
    targets: Annotated[
        tuple[str, ...], option("layers that get adapters, as patterns of their names; * also matches slashes")
    ] = ("unet/*/attn/*", "unet/*/*conv")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return (self.alpha or self.rank) / self.rank

    def layers(self, params: Params) -> dict[_Path, tuple[int, ...]]:
        """Paths of the layers with adapters, and the shapes of their kernels.

        Args:
            params: (abstract) parameters of the model.

        Raises:
            GlideError: a target that no layer has, or a rank that no kernel of them has.
        """
        kernels = {path[:-1]: leaf.shape for path, leaf in flatten_dict(params).items() if path[-1] == "kernel"}
        chosen: dict[_Path, tuple[int, ...]] = {}
        for target in self.targets:
            found = {path: shape for path, shape in kernels.items() if fnmatchcase("/".join(path), target)}
            if not found:
                example = "/".join(next(iter(kernels)))
                raise GlideError(f"train.lora.targets: no layer is named like {target!r}; one is named {example}")
            chosen |= found
        full = max((min(math.prod(shape[:-1]), shape[-1]) for shape in chosen.values()), default=0)
        if self.rank > full:
            raise GlideError(f"train.lora.rank {self.rank} is more than any of the layers has: use at most {full}")
        return {path: chosen[path] for path in kernels if path in chosen}


def fresh_adapters(config: LoraConfig, params: Params, key: PRNGKeyArray) -> Params:
    """Adapters that change nothing yet: `down` uniform in +-1/sqrt(fan_in), `up` zero.

    Args:
        config: which layers.
        params: (abstract) parameters of the model.
        key: of the numbers, which come from one draw.
    """
    layers = config.layers(params)
    shapes = {path: (*shape[:-1], config.rank) for path, shape in layers.items()}
    numbers = jax.random.uniform(key, (sum(map(math.prod, shapes.values())),), jnp.float32, -1.0, 1.0)
    flat: dict[_Path, Array] = {}
    begin = 0
    for path, shape in shapes.items():
        end = begin + math.prod(shape)
        flat[*path, "down"] = numbers[begin:end].reshape(shape) / math.sqrt(math.prod(shape[:-1]))
        flat[*path, "up"] = jnp.zeros((config.rank, layers[path][-1]))
        begin = end
    return unflatten_dict(flat)


def abstract_adapters(config: LoraConfig, params: Params) -> Params:
    """Shapes and types of the adapters."""
    return jax.eval_shape(lambda key: fresh_adapters(config, params, key), jax.random.key(0))


def with_adapters(params: Params, adapters: Params, scale: float) -> Params:
    """The parameters with `scale` times the product of each adapter added to its kernel, in float32."""
    flat: dict[_Path, Any] = flatten_dict(params)
    thin = flatten_dict(adapters)
    for path in {path[:-1] for path in thin}:
        flat[*path, "kernel"] = _adapted(flat[*path, "kernel"], thin[*path, "down"], thin[*path, "up"], scale)
    return unflatten_dict(flat)


def _adapted(
    kernel: Float[Array, "*fan_in out"], down: Float[Array, "*fan_in rank"], up: Float[Array, "rank out"], scale: float
) -> Float[Array, "*fan_in out"]:
    return kernel.astype(jnp.float32) + scale * jnp.tensordot(down, up, 1)


def fingerprint(params: Params) -> str:
    """What tells the weights of a model from others': the SHA-256 of its kernels, rounded to bfloat16.

    It is the same in whatever type of at least eight bits of mantissa they are stored. Adapters have no part in it.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params).items()):
        if path[-1] == "kernel":
            digest.update("/".join(path).encode())
            digest.update(np.asarray(leaf).astype(jnp.bfloat16).tobytes())
    return digest.hexdigest()


def stored_type(path: tuple[str, ...], frozen_in: DTypeLike) -> DTypeLike:
    """The type of a frozen parameter: `frozen_in` for kernels that layers round to it before every use."""
    rounded = path[-1] == "kernel" and path[:2] in _IN_COMPUTE_TYPE
    return frozen_in if rounded else jnp.float32
