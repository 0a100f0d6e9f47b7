"""Parameters as a training step holds them: the small arrays as one.

Two thirds of a model's arrays hold a thousandth of its numbers. An update of each alone is a kernel to compile and to
launch; of a GPU's program for the published base model it was half.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree

from glide_jax.models import Params
from glide_jax.train.config import Trained
from glide_jax.train.optimizer import is_for_muon
from glide_jax.train.state import State, is_trained, no_skips


class Packed(NamedTuple):
    """A nested dict of parameters, or of what there is of each (gradients, Adam's moments, shardings).

    Attributes:
        small: the trained arrays of few bytes, one after another; `optax.MaskedNode` where there is none of them.
        large: the other trained arrays; likewise.
        frozen: those that are not trained; only the weights themselves have them.
    """

    small: Any
    large: list[Any]
    frozen: list[Any]

    @property
    def trained(self) -> "Packed":
        """Without what is frozen."""
        return self._replace(frozen=[])


def initial_state(params: Packed, optimizer: optax.GradientTransformation) -> State:
    """The packed state that starts from given weights; to be called under jit with the shardings it is to live in."""
    # A copy, because two entries of a donated state must not share a buffer.
    ema = jax.tree.map(jnp.copy, params.trained)
    return {
        "step": jnp.int32(0),
        "params": params,
        "ema": ema,
        "opt": optimizer.init(params.trained),
        "skips": no_skips(),
    }


def averaged(state: State) -> Packed:
    """The EMA weights of a packed state, with what is frozen."""
    ema: Packed = state["ema"]._replace(frozen=state["params"].frozen)
    return ema


class Packing:
    """Packs nested dicts like `params`, in which only shapes matter, and unpacks them; inside jit or outside.

    A checkpoint has what is frozen beside weights and EMA weights alike; that of a training of adapters has them alone.

    Args:
        params: all parameters of a model.
        trainable: which of them are trained.
        small: an array of fewer bytes in float32 is small.
        muon: the optimizer is Muon: what it takes is never small.

    Attributes:
        matrices: whether Muon takes a parameter.
    """

    def __init__(self, params: PyTree[Any], trainable: Trained, small: int, muon: bool = False) -> None:
        flat = flatten_dict(params)
        paths = sorted(path for path in flat if is_trained("/".join(path), trainable))
        matrices = {path for path in paths if muon and is_for_muon("/".join(path))}
        self._shapes = {
            path: flat[path].shape for path in paths if path not in matrices and 4 * math.prod(flat[path].shape) < small
        }
        self._large = [path for path in paths if path not in self._shapes]
        self.matrices = Packed(False, [path in matrices for path in self._large], [])
        self._frozen = sorted(flat.keys() - set(paths))
        self._groups = params.keys()
        self._keeps_frozen = trainable != "lora"
        self._concatenate, self._split = jax.jit(_concatenate), jax.jit(self._split_impl)

    def pack(self, tree: Params) -> Packed:
        """All parameters, or the trained ones, or what there is of each."""
        flat = flatten_dict(tree)
        parts = [flat[path] for path in self._shapes if path in flat]
        small = self._concatenate(parts) if parts else optax.MaskedNode()
        return Packed(small, [flat.get(path, optax.MaskedNode()) for path in self._large], self.frozen(tree))

    def frozen(self, tree: Params) -> list[Any]:
        """Those of the parameters that are not trained, as far as they are there."""
        flat = flatten_dict(tree)
        return [flat[path] for path in self._frozen if path in flat]

    def unpack(self, packed: Packed) -> Params:
        """What was packed."""
        flat = {} if _is_masked(packed.small) else dict(zip(self._shapes, self._split(packed.small), strict=True))
        flat |= {path: x for path, x in zip(self._large, packed.large, strict=True) if not _is_masked(x)}
        return unflatten_dict(flat | dict(zip(self._frozen, packed.frozen, strict=bool(packed.frozen))))

    def pack_state(self, state: State, base: Params | None = None) -> State:
        """A training state with everything packed that is like the parameters.

        Args:
            state: as a checkpoint holds it.
            base: the weights that adapters belong to.
        """
        opt = jax.tree.map(
            lambda x: self.pack(x) if self._is_unpacked(x) else x, state["opt"], is_leaf=self._is_unpacked
        )
        params = self.pack(state["params"])
        if base is not None:
            params = params._replace(frozen=self.frozen(base))
        return state | {"params": params, "ema": self.pack(state["ema"]).trained, "opt": opt}

    def unpack_state(self, state: State) -> State:
        """A training state as a checkpoint holds it."""
        weights = {"params": state["params"], "ema": averaged(state)}
        if not self._keeps_frozen:
            weights = {name: packed.trained for name, packed in weights.items()}
        whole = state | weights
        return jax.tree.map(lambda x: self.unpack(x) if _is_packed(x) else x, whole, is_leaf=_is_packed)

    def _is_unpacked(self, x: Any) -> bool:
        # optax.partition's states are dicts too.
        return isinstance(x, dict) and x.keys() <= self._groups

    def _split_impl(self, small: Float[Array, " count"]) -> list[Array]:
        parts, begin = [], 0
        for shape in self._shapes.values():
            end = begin + math.prod(shape)
            parts.append(small[begin:end].reshape(shape))
            begin = end
        return parts


def _concatenate(leaves: list[Array]) -> Float[Array, " count"]:
    return jnp.concatenate([leaf.reshape(-1) for leaf in leaves])


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _is_packed(x: Any) -> bool:
    return isinstance(x, Packed)
