"""Parameters as a training step holds them: all small arrays packed into one.

Two thirds of a model's arrays hold a thousandth of its numbers. Updated one by one, each is a kernel to compile and to
launch: half of a GPU's program for the published base model.
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
    """A nested dict of parameters, or of one thing for each parameter (gradients, Adam's moments, shardings), packed.

    Attributes:
        small: the small trained arrays, concatenated; `optax.MaskedNode` if there are none.
        large: the other trained arrays; likewise.
        frozen: arrays that are not trained; only the weights themselves have them.
    """

    small: Any
    large: list[Any]
    frozen: list[Any]

    @property
    def trained(self) -> "Packed":
        """Without what is frozen."""
        return self._replace(frozen=[])


def initial_state(params: Packed, optimizer: optax.GradientTransformation) -> State:
    """The packed state for training given weights; call it under jit, with the shardings the state is to have."""
    # A copy, because no two entries of a donated state may share a buffer.
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
    """Packs and unpacks nested dicts like `params`, of which only shapes matter; works inside jit and outside.

    A checkpoint holds the frozen parameters with both the weights and the EMA weights; when adapters are trained, it
    holds the adapters alone.

    Args:
        params: all parameters of a model.
        trainable: which of them are trained.
        small: arrays of fewer bytes than this, in float32, are small.
        muon: whether the optimizer is Muon; parameters it is used for never count as small.

    Attributes:
        matrices: true for the parameters that Muon is used for.
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
        """Packs all parameters, the trained ones, or one thing for each parameter."""
        flat = flatten_dict(tree)
        parts = [flat[path] for path in self._shapes if path in flat]
        small = self._concatenate(parts) if parts else optax.MaskedNode()
        return Packed(small, [flat.get(path, optax.MaskedNode()) for path in self._large], self.frozen(tree))

    def frozen(self, tree: Params) -> list[Any]:
        """The parameters that are not trained, as far as `tree` has them."""
        flat = flatten_dict(tree)
        return [flat[path] for path in self._frozen if path in flat]

    def unpack(self, packed: Packed) -> Params:
        """The nested dict that was packed."""
        flat = {} if _is_masked(packed.small) else dict(zip(self._shapes, self._split(packed.small), strict=True))
        flat |= {path: x for path, x in zip(self._large, packed.large, strict=True) if not _is_masked(x)}
        return unflatten_dict(flat | dict(zip(self._frozen, packed.frozen, strict=bool(packed.frozen))))

    def pack_state(self, state: State, base: Params | None = None) -> State:
        """The training state with every part that is structured like the parameters packed.

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
        """The training state as a checkpoint holds it."""
        weights = {"params": state["params"], "ema": averaged(state)}
        if not self._keeps_frozen:
            weights = {name: packed.trained for name, packed in weights.items()}
        whole = state | weights
        return jax.tree.map(lambda x: self.unpack(x) if _is_packed(x) else x, whole, is_leaf=_is_packed)

    def _is_unpacked(self, x: Any) -> bool:
        # The states of optax.partition are dicts as well.
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
