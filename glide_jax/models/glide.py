"""The GLIDE model as pure functions over a plain nested dict of arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from glide_jax.compute import arrays_and_products
from glide_jax.errors import GlideError
from glide_jax.models.attention import attention_weights
from glide_jax.models.config import ModelConfig
from glide_jax.models.functional import Functional, Params, with_its_products
from glide_jax.models.layers import resize_bilinear
from glide_jax.models.lora import GROUP, LoraConfig, abstract_adapters, fresh_adapters, with_adapters
from glide_jax.models.text import TextEncoder, TextFeatures
from glide_jax.models.unet import KeysValues, QueriesKeys, RematPolicy, UNet

VOCAB_SIZE = 50257


class EncodedText(NamedTuple):
    """Everything the UNet needs from a text, computed once per prompt.

    Attributes:
        embedding: added to the time embedding.
        keys_values: of each attention block, in the order they run.
    """

    embedding: Float[Array, "batch features"]
    keys_values: tuple[KeysValues, ...]


class Conditioning(NamedTuple):
    """What a model is conditioned on; each variant uses its own fields.

    Attributes:
        text: encoded prompts, or None for a model without text.
        low_res: the small image for an upsampler to enlarge, in [-1, 1].
        inpaint_image: image of which the part with mask 1 is kept, in [-1, 1].
        inpaint_mask: 1 where the image is known, 0 where it is to be inpainted.
    """

    text: EncodedText | None = None
    low_res: Float[Array, "batch low_height low_width 3"] | None = None
    inpaint_image: Float[Array, "batch height width 3"] | None = None
    inpaint_mask: Float[Array, "batch height width 1"] | None = None


class _Net(nnx.Module):
    """Text transformer and UNet side by side, so that parameters have the groups "text" and "unet"."""

    def __init__(self, config: ModelConfig, dtype: DTypeLike, remat: RematPolicy, rngs: nnx.Rngs) -> None:
        self.unet = UNet(config, dtype, remat, rngs)
        self.text = TextEncoder(config, VOCAB_SIZE, dtype, rngs) if config.xf_width else None


class Glide(Functional[_Net]):
    """A GLIDE network of one architecture: stateless functions of `params`, float32 in and out.

    Args:
        config: the architecture.
        dtype: compute type of the torso, a `ComputeType`; parameters are always float32.
        remat: what the backward pass recomputes: "none", "full" (everything inside a block) or "dots" (there, all but
            convolutions, linear layers and the sums of norms). In text layers it is always "dots".
        lora: with a rank above 0, parameters get a third group, "lora", of adapters.

    Raises:
        GlideError: an unknown `dtype` or `remat`.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: DTypeLike = "float32",
        remat: RematPolicy = "none",
        lora: LoraConfig = LoraConfig(),  # noqa: B008
    ) -> None:
        arrays, self.products = arrays_and_products(dtype)
        if remat not in ("none", "full", "dots"):
            raise GlideError(f"remat {remat!r} is unknown: use none, full or dots")
        self.config, self.lora = config, lora
        super().__init__(_Net, config, arrays, remat)

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters; jit it (with `out_shardings`) for a large model."""
        return self.adapt(super().init(key), key)

    def adapt(self, params: Params, key: PRNGKeyArray) -> Params:
        """Parameters with fresh adapters, if the model has any."""
        if not self.lora.rank:
            return params
        return params | {GROUP: fresh_adapters(self.lora, params, jax.random.fold_in(key, 1))}

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters, with nothing allocated.

        Raises:
            GlideError: adapters for layers that do not exist, or of a rank above that of all of them.
        """
        params = super().abstract_params()
        return params | {GROUP: abstract_adapters(self.lora, params)} if self.lora.rank else params

    def bind(self, params: Params) -> _Net:
        """The network with these parameters, for use inside a single traced function."""
        if self.lora.rank:
            base = {name: group for name, group in params.items() if name != GROUP}
            params = with_adapters(base, params[GROUP], self.lora.scale)
        return super().bind(params)

    @with_its_products
    def text_features(
        self, params: Params, tokens: Int[Array, "batch ctx"], mask: Bool[Array, "batch ctx"]
    ) -> TextFeatures:
        """The text transformer's output (torch: Text2ImUNet.get_text_emb)."""
        text = self.bind(params).text
        assert text is not None, "a model of xf_width 0 has no text transformer"
        return text(tokens, mask)

    @with_its_products
    def encode_text(
        self, params: Params, tokens: Int[Array, "batch ctx"], mask: Bool[Array, "batch ctx"]
    ) -> EncodedText | None:
        """Encodes prompts once, including every block's keys and values; None for a model without text."""
        net = self.bind(params)
        if net.text is None:
            return None
        features = net.text(tokens, mask)
        return EncodedText(features.summary, net.unet.text_keys_values(features.tokens))

    @with_its_products
    def __call__(
        self,
        params: Params,
        x: Float[Array, "batch height width 3"],
        t: Float[Array, " batch"],
        conditioning: Conditioning,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width 6"]:
        """Predicts noise or v, as it was trained to (channels 0..2), and the variance in [-1, 1] (channels 3..5).

        Args:
            params: as from `init`.
            x: noisy images.
            t: original timesteps in [0, T), possibly fractional.
            conditioning: text and images; a missing inpainting image means that nothing is known.
            dropout_keys: one key per example for training, None for evaluation.
        """
        return self._predict(self.bind(params), x, t, conditioning, dropout_keys)

    @with_its_products
    def text_attention(
        self,
        params: Params,
        x: Float[Array, "batch height width 3"],
        t: Float[Array, " batch"],
        conditioning: Conditioning,
    ) -> Float[Array, "batch height width ctx"]:
        """The share of each pixel's attention that goes to each position of the text, in [0, 1].

        The mean over heads and over all attention blocks, enlarged to the size of the image (DAAM, Tang et al. 2022,
        arXiv:2210.04885). Arguments as for a call.

        Raises:
            GlideError: the model or the conditioning has no text.
        """
        if conditioning.text is None:
            raise GlideError("this model attends to no text")
        net, shares = self.bind(params), list[Array]()
        height, width = x.shape[1:3]

        def keep(queries_keys: QueriesKeys) -> None:
            share = attention_weights(*queries_keys)[..., : self.config.text_ctx]
            factor = round((height * width / share.shape[1]) ** 0.5)
            share = share.reshape(-1, height // factor, width // factor, share.shape[-1])
            shares.append(jax.image.resize(share, (len(x), height, width, share.shape[-1]), "cubic"))

        for block in net.unet.blocks:
            if block.attn is not None:
                block.attn.on_attention = keep
        self._predict(net, x, t, conditioning)
        return jnp.clip(sum(shares[1:], start=shares[0]) / len(shares), 0.0, 1.0)

    def _predict(
        self, net: _Net, x: Array, t: Array, given: Conditioning, dropout_keys: Key[Array, " batch"] | None = None
    ) -> Array:
        text = given.text
        return net.unet(
            self._network_input(x, given),
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
            parts.append(resize_bilinear(given.low_res, (x.shape[1], x.shape[2])))
        return jnp.concatenate(parts, axis=-1)
