"""An NNX module as pure functions of a plain nested dict of arrays."""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial, wraps
from typing import Any, Generic, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PRNGKeyArray

Params = dict[str, Any]
Method = TypeVar("Method", bound=Callable[..., Any])
Module = TypeVar("Module", bound=nnx.Module)


def with_its_products(method: Method) -> Method:
    """Decorates a model's method: float32 products inside have the precision given by `self.products`."""

    @wraps(method)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        with jax.default_matmul_precision(self.products):
            return method(self, *args, **options)

    return cast(Method, call)


class Draws:
    """Replaces `nnx.Rngs`: the random numbers of all initial weights are cut from one draw, in the order requested.

    A draw for each of hundreds of weights would take XLA minutes to compile for a GPU. Without numbers, it counts how
    many are needed.
    """

    def __init__(self, numbers: Float[Array, " count"] | None = None) -> None:
        self._numbers, self.count = numbers, 0

    def params(self) -> "Draws":
        """Passed to the initializers of `layers` as their key."""
        return self

    def take(self, shape: Sequence[int]) -> Float[Array, "..."]:
        """The next random numbers, uniform over (-1, 1)."""
        begin, self.count = self.count, self.count + math.prod(shape)
        if self._numbers is None:
            return jnp.zeros(shape)
        return jax.lax.slice(self._numbers, (begin,), (self.count,)).reshape(shape)


def fresh(build: Callable[[nnx.Rngs], Module], key: PRNGKeyArray) -> Module:
    """The module that `build` makes, with initial weights from `key`."""
    counted = Draws()
    nnx.eval_shape(lambda: build(cast(nnx.Rngs, counted)))
    return _drawn(build, counted.count, key)


def _drawn(build: Callable[[nnx.Rngs], Module], count: int, key: PRNGKeyArray) -> Module:
    above = np.nextafter(np.float32(-1), np.float32(0))  # -1 would become an infinite normal number
    numbers = jax.random.uniform(key, (count,), jnp.float32, above, 1.0)
    # Otherwise XLA would repeat the draw in the kernel of every weight.
    return build(cast(nnx.Rngs, Draws(jax.lax.optimization_barrier(numbers))))


class Functional(Generic[Module]):
    """Splits a module once, and merges it with the given parameters at each call.

    Args:
        build: makes the module from `options` and random numbers, with initializers from `layers`.
        *options: everything that decides the module's structure.
    """

    def __init__(self, build: Callable[..., Module], *options: Hashable) -> None:
        self._build = partial(build, *options)
        self._graphdef, self._abstract, self._numbers = _structure(build, *options)
        self._paths = [path for path, _ in nnx.to_flat_state(self._abstract)]

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters; jit it (with `out_shardings`) for a large model."""
        return _nested(nnx.state(_drawn(self._build, self._numbers, key)))

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters; nothing is allocated."""
        return _nested(self._abstract)

    def bind(self, params: Params) -> Module:
        """The module with these parameters, for use inside a single traced function."""
        leaves = flatten_dict(params)
        flat = [(path, nnx.Param(leaves[tuple(map(str, path))])) for path in self._paths]
        return nnx.merge(self._graphdef, nnx.from_flat_state(flat))


@lru_cache(maxsize=64)
def _structure(build: Callable[..., nnx.Module], *options: Hashable) -> tuple[nnx.GraphDef, nnx.State, int]:
    """A module's structure and shapes, and how many random numbers its weights need; slow for a published model."""
    counted = Draws()
    return *nnx.split(nnx.eval_shape(lambda: build(*options, cast(nnx.Rngs, counted)))), counted.count


def in_turn(
    blocks: Sequence[nnx.Module], x: Float[Array, "batch ctx width"], **options: Any
) -> Float[Array, "batch ctx width"]:
    """Passes `x` through modules of the same kind one after another, compiled as a single one.

    For the gradient only the results of their linear layers are kept: the rest, of all modules at once, would take more
    time to write and to read again than to compute once more.
    """
    graphdef = nnx.graphdef(blocks[0])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[nnx.state(block) for block in blocks])

    def call(x: Array, state: nnx.State) -> tuple[Array, None]:
        return nnx.merge(graphdef, state)(x, **options), None

    linear = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.lax.scan(jax.checkpoint(call, policy=linear, prevent_cse=False), x, stacked)[0]


def _nested(state: nnx.State) -> Params:
    flat = nnx.to_flat_state(state)
    return unflatten_dict({tuple(map(str, path)): variable.get_value() for path, variable in flat})
