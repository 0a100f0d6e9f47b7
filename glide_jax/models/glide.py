"""The GLIDE model as pure functions over a plain nested dict of arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from glide_jax.errors import GlideError
from glide_jax.models.config import ModelConfig
from glide_jax.models.layers import resize_bilinear
from glide_jax.models.text import TextEncoder, TextFeatures
from glide_jax.models.unet import KeysValues, RematPolicy, UNet
from glide_jax.randomness import fold

Params = dict[str, Any]

VOCAB_SIZE = 50257


class EncodedText(NamedTuple):
    """All that the UNet needs of a text, computed once per prompt.

    Attributes:
        embedding: added to the time embedding.
        keys_values: per attention block in running order.
    """

    embedding: Float[Array, "batch features"]
    keys_values: tuple[KeysValues, ...]


class Conditioning(NamedTuple):
    """What a model is conditioned on; each variant uses its fields.

    Attributes:
        text: encoded prompts, or None for a model without text.
        low_res: the small picture an upsampler enlarges, in [-1, 1].
        inpaint_image: picture whose masked part is kept, in [-1, 1].
        inpaint_mask: 1 where the picture is known, 0 where it is to be drawn.
    """

    text: EncodedText | None = None
    low_res: Float[Array, "batch low_height low_width 3"] | None = None
    inpaint_image: Float[Array, "batch height width 3"] | None = None
    inpaint_mask: Float[Array, "batch height width 1"] | None = None


class _Keys:
    """Stands in for `nnx.Rngs`, whose counters are Variables: tracing the full model's takes them 15 s."""

    def __init__(self, key: PRNGKeyArray) -> None:
        self._key, self._count = key, 0

    def params(self) -> PRNGKeyArray:
        self._count += 1
        return fold(self._key, self._count)


class _Net(nnx.Module):
    """Text transformer and UNet side by side, so that parameters fall into the groups "text" and "unet"."""

    def __init__(self, config: ModelConfig, dtype: DTypeLike, remat: RematPolicy, rngs: nnx.Rngs) -> None:
        self.unet = UNet(config, dtype, remat, rngs)
        self.text = TextEncoder(config, VOCAB_SIZE, dtype, rngs) if config.xf_width else None


class Glide:
    """A GLIDE network of one architecture: stateless functions of `params`, float32 in and out.

    Args:
        config: the architecture.
        dtype: compute type of the torso, float32 or bfloat16; parameters are float32 always.
        remat: what the backward pass recomputes: "none", "full" (everything inside a stage) or "dots"
            (all but matrix products).

    Raises:
        GlideError: an unknown `dtype` or `remat`.
    """

    def __init__(self, config: ModelConfig, dtype: DTypeLike = "float32", remat: RematPolicy = "none") -> None:
        if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
            raise GlideError(f"dtype {dtype} is not supported: use float32 or bfloat16")
        if remat not in ("none", "full", "dots"):
            raise GlideError(f"remat {remat!r} is unknown: use none, full or dots")
        self.config = config
        self._build: Callable[[PRNGKeyArray], _Net] = lambda key: _Net(config, jnp.dtype(dtype), remat, _Keys(key))
        self._graphdef, self._abstract = nnx.split(nnx.eval_shape(self._build, jax.random.key(0)))
        self._paths = [path for path, _ in nnx.to_flat_state(self._abstract)]

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters; jit it (with `out_shardings`) for a large model."""
        return self._to_dict(nnx.state(self._build(key)))

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters, with nothing allocated."""
        return self._to_dict(self._abstract)

    def text_features(self, params: Params, tokens: Int[Array, "batch ctx"], mask: Bool[Array, "batch ctx"]) -> TextFeatures:
        """The text transformer's output (torch: Text2ImUNet.get_text_emb)."""
        return self._merge(params).text(tokens, mask)

    def encode_text(self, params: Params, tokens: Int[Array, "batch ctx"], mask: Bool[Array, "batch ctx"]) -> EncodedText | None:
        """Encodes prompts once, down to each attention block's keys and values; None for a model without text."""
        net = self._merge(params)
        if net.text is None:
            return None
        features = net.text(tokens, mask)
        return EncodedText(features.summary, net.unet.text_keys_values(features.tokens))

    def __call__(
        self,
        params: Params,
        x: Float[Array, "batch height width 3"],
        t: Float[Array, " batch"],
        conditioning: Conditioning,
        dropout_keys: PRNGKeyArray | None = None,
    ) -> Float[Array, "batch height width 6"]:
        """Predicts noise (channels 0..2) and the variance fraction in [-1, 1] (channels 3..5).

        Args:
            params: as from `init`.
            x: noisy pictures.
            t: original timesteps in [0, 1000), possibly fractional.
            conditioning: text and pictures; a missing inpainting picture means that nothing is known.
            dropout_keys: one key an example while training, None for evaluation.
        """
        net = self._merge(params)
        text = conditioning.text
        return net.unet(
            self._network_input(x, conditioning),
            t,
            None if text is None else text.embedding,
            None if text is None else text.keys_values,
            dropout_keys,
        )

    def _network_input(self, x: Float[Array, "batch height width 3"], given: Conditioning) -> Float[Array, "..."]:
        parts = [x]
        if self.config.inpaint:
            mask = jnp.zeros_like(x[..., :1]) if given.inpaint_mask is None else given.inpaint_mask
            image = jnp.zeros_like(x) if given.inpaint_image is None else given.inpaint_image
            parts += [image * mask, mask]
        if self.config.super_res:
            if given.low_res is None:
                raise ValueError("an upsampler needs Conditioning.low_res")
            parts.append(resize_bilinear(given.low_res, x.shape[1:3]))
        return jnp.concatenate(parts, axis=-1)

    def _to_dict(self, state: nnx.State) -> Params:
        tree: Params = {}
        for path, variable in nnx.to_flat_state(state):
            node = tree
            for name in path[:-1]:
                node = node.setdefault(str(name), {})
            node[str(path[-1])] = variable.get_value()
        return tree

    def _merge(self, params: Params) -> _Net:
        flat = []
        for path in self._paths:
            leaf: Any = params
            for name in path:
                leaf = leaf[str(name)]
            flat.append((path, nnx.Param(leaf)))
        return nnx.merge(self._graphdef, nnx.from_flat_state(flat))
