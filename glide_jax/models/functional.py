"""An NNX module as pure functions of a plain nested dict of arrays."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PRNGKeyArray

from glide_jax.randomness import fold

Params = dict[str, Any]
Module = TypeVar("Module", bound=nnx.Module)


class _Keys:
    """Stands in for `nnx.Rngs`, whose counters are Variables: tracing a full model's takes them 15 s."""

    def __init__(self, key: PRNGKeyArray) -> None:
        self._key, self._count = key, 0

    def params(self) -> PRNGKeyArray:
        self._count += 1
        return fold(self._key, self._count)


class Functional(Generic[Module]):
    """Splits a module once and merges it with given parameters at each call.

    Args:
        build: makes the module from a source of keys; it is traced for its shapes alone.
    """

    def __init__(self, build: Callable[[nnx.Rngs], Module]) -> None:
        self._build: Callable[[PRNGKeyArray], Module] = lambda key: build(_Keys(key))
        self._graphdef, self._abstract = nnx.split(nnx.eval_shape(self._build, jax.random.key(0)))
        self._paths = [path for path, _ in nnx.to_flat_state(self._abstract)]

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters; jit it (with `out_shardings`) for a large model."""
        return _nested(nnx.state(self._build(key)))

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters, with nothing allocated."""
        return _nested(self._abstract)

    def bind(self, params: Params) -> Module:
        """The module with these parameters, for use inside one traced function."""
        leaves = flatten_dict(params)
        flat = [(path, nnx.Param(leaves[tuple(map(str, path))])) for path in self._paths]
        return nnx.merge(self._graphdef, nnx.from_flat_state(flat))


def _nested(state: nnx.State) -> Params:
    flat = nnx.to_flat_state(state)
    return unflatten_dict({tuple(map(str, path)): variable.get_value() for path, variable in flat})
