"""The noise-aware CLIP of glide-text2im: texts and noisy images embedded in one space, and a gradient for guidance."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from glide_jax.compute import arrays_and_products
from glide_jax.errors import GlideError
from glide_jax.models.attention import attention
from glide_jax.models.functional import Functional, Params, in_turn, with_its_products
from glide_jax.models.layers import layer_norm, linear, normal
from glide_jax.randomness import fold

# CLIP's channel statistics over pixels in [0, 255].
_PIXEL_MEANS = np.array([122.77093945, 116.74601272, 104.09373519], np.float32).reshape(1, 1, 1, 3)
_PIXEL_STDS = np.array([68.50053285, 66.63215831, 70.32316309], np.float32).reshape(1, 1, 1, 3)
_NORM_FLOOR = 1e-12
# exp(logit_scale): a constant of the reference's config, not a parameter.
_LOGIT_SCALE = 100.0


@dataclass(frozen=True, slots=True)
class ClipTextConfig:
    """Options of the text tower, under the reference's names; the defaults are the published model's.

    Attributes:
        n_vocab: rows of the token table; more than the tokenizer has ids.
        max_text_len: tokens of a text, start, end and padding included.
        n_embd: width of the space shared with images.
        n_head_text, n_head_state_text: attention heads and their width.
        n_xf_blocks_text: transformer blocks.
    """

    n_vocab: int = 65536
    max_text_len: int = 77
    n_embd: int = 512
    n_head_text: int = 8
    n_head_state_text: int = 64
    n_xf_blocks_text: int = 12

    def __post_init__(self) -> None:
        _require_positive(self)

    @property
    def blocks(self) -> dict[str, int]:
        """As of a `ModelConfig`."""
        return {"text/blocks": self.n_xf_blocks_text}


@dataclass(frozen=True, slots=True)
class ClipImageConfig:
    """Options of the image tower, under the reference's names; the defaults are the published model's.

    Attributes:
        image_size, patch_size: sides of the square image and of its square patches, in pixels.
        n_timesteps: rows of the timestep table.
        n_embd: width of the space shared with texts.
        n_head_image, n_head_state_image: attention heads and their width.
        n_xf_blocks_image: transformer blocks.
    """

    image_size: int = 64
    patch_size: int = 4
    n_timesteps: int = 1000
    n_embd: int = 512
    n_head_image: int = 12
    n_head_state_image: int = 64
    n_xf_blocks_image: int = 12

    def __post_init__(self) -> None:
        _require_positive(self)
        if self.image_size % self.patch_size:
            raise GlideError(f"clip.image_size {self.image_size} must be divisible by patch_size {self.patch_size}")

    @property
    def blocks(self) -> dict[str, int]:
        """As of a `ModelConfig`."""
        return {"image/blocks": self.n_xf_blocks_image}


def _require_positive(config: ClipTextConfig | ClipImageConfig) -> None:
    for name in config.__slots__:
        if getattr(config, name) < 1:
            raise GlideError(f"clip.{name} must be at least 1, not {getattr(config, name)}")


class NoisedClip:
    """Both towers as stateless functions of `params` = {"text": ..., "image": ...}; each reads only its own half.

    Args:
        text, image: the architectures; None leaves that tower out.
        dtype: compute type of the blocks, a `ComputeType`; parameters and embeddings are always float32.

    Raises:
        GlideError: an unknown `dtype`, or towers of different embedding widths.
    """

    def __init__(
        self,
        text: ClipTextConfig | None = ClipTextConfig(),
        image: ClipImageConfig | None = ClipImageConfig(),
        dtype: DTypeLike = "float32",
    ) -> None:
        arrays, self.products = arrays_and_products(dtype)
        if text is not None and image is not None and text.n_embd != image.n_embd:
            raise GlideError(f"clip: the text tower's n_embd {text.n_embd} is not the image tower's {image.n_embd}")
        self.text, self.image = text, image
        self._towers: dict[str, Functional] = {}
        if text is not None:
            self._towers["text"] = Functional(_TextTower, text, arrays)
        if image is not None:
            self._towers["image"] = Functional(_ImageTower, image, arrays)

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters with the reference's scales."""
        return {name: tower.init(fold(key, i)) for i, (name, tower) in enumerate(self._towers.items())}

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters, with nothing allocated."""
        return {name: tower.abstract_params() for name, tower in self._towers.items()}

    @with_its_products
    def encode_text(
        self, params: Params, tokens: Int[Array, "batch ctx"], lengths: Int[Array, " batch"]
    ) -> Float[Array, "batch n_embd"]:
        """Unit vectors of texts (torch: CLIPModel.text_embeddings).

        Args:
            params: at least {"text": ...}.
            tokens, lengths: as from `ClipTokenizer.padded`: lengths count the start and end tokens.
        """
        return _normalized(self._towers["text"].bind(params["text"])(tokens, lengths))

    @with_its_products
    def encode_image(
        self,
        params: Params,
        x: Float[Array, "batch height width 3"],
        t: Float[Array, " batch"] | Int[Array, " batch"],
    ) -> Float[Array, "batch n_embd"]:
        """Unit vectors of noisy images (torch: CLIPModel.image_embeddings).

        Args:
            params: at least {"image": ...}.
            x: noisy images whose clean range is [-1, 1], `image_size` pixels square.
            t: original timesteps; the table has a row for each integer, so a fractional one is rounded.
        """
        return _normalized(self._towers["image"].bind(params["image"])(x, t))

    def guidance(
        self,
        params: Params,
        x: Float[Array, "batch height width 3"],
        t: Float[Array, " batch"] | Int[Array, " batch"],
        text: Float[Array, "batch n_embd"],
        scale: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "batch height width 3"]:
        """scale times the gradient in x of 100 <text, encode_image(x, t)>, row by row (torch: cond_fn).

        Args:
            params: at least {"image": ...}.
            x, t: as in `encode_image`.
            text: as from `encode_text`.
            scale: strength of the guidance (torch: grad_scale).
        """

        def similarity(x: Float[Array, "batch height width 3"]) -> Float[Array, ""]:
            return _LOGIT_SCALE * jnp.sum(text * self.encode_image(params, x, t))

        return scale * jax.grad(similarity)(x)


def _normalized(z: Float[Array, "batch n_embd"]) -> Float[Array, "batch n_embd"]:
    return z / (jnp.linalg.norm(z, axis=-1, keepdims=True) + _NORM_FLOOR)


class _Attention(nnx.Module):
    """Self-attention with separate projections, the keys without a bias (torch: AttentionResblock)."""

    def __init__(self, width: int, heads: int, layers: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.heads = heads
        init = normal(width**-0.5)
        self.q = linear(width, width, dtype, rngs, init)
        self.k = _bias_free(width, width, dtype, rngs, init)
        self.v = linear(width, width, dtype, rngs, init)
        self.proj = linear(width, width, dtype, rngs, _residual_init(width, layers))

    def __call__(self, x: Float[Array, "batch ctx width"], causal: bool) -> Float[Array, "batch ctx width"]:
        q, k, v = (part(x).reshape(*x.shape[:2], self.heads, -1) for part in (self.q, self.k, self.v))
        return self.proj(attention(q, k, v, causal=causal).reshape(x.shape))


class _Block(nnx.Module):
    """A pre-norm transformer block with an exact (erf) GELU (torch: TransformerBlock)."""

    def __init__(self, width: int, heads: int, layers: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.attn_norm = layer_norm(width, dtype, rngs)
        self.attn = _Attention(width, heads, layers, dtype, rngs)
        self.mlp_norm = layer_norm(width, dtype, rngs)
        self.mlp_in = linear(width, 4 * width, dtype, rngs, normal((2 * width) ** -0.5))
        self.mlp_out = linear(4 * width, width, dtype, rngs, _residual_init(width, layers))

    def __call__(self, x: Float[Array, "batch ctx width"], causal: bool) -> Float[Array, "batch ctx width"]:
        x = x + self.attn(self.attn_norm(x), causal)
        return x + self.mlp_out(jax.nn.gelu(self.mlp_in(self.mlp_norm(x)), approximate=False))


class _TextTower(nnx.Module):
    """Causal transformer; the feature is read at the end token (torch: TextEncoder)."""

    def __init__(self, config: ClipTextConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        width, layers = config.n_head_text * config.n_head_state_text, config.n_xf_blocks_text
        self.dtype = dtype
        self.token_embedding = _table(config.n_vocab, width, 0.02, rngs)
        self.positional_embedding = _table(config.max_text_len, width, 0.01, rngs)
        self.blocks = nnx.List([_Block(width, config.n_head_text, layers, dtype, rngs) for _ in range(layers)])
        self.final_norm = layer_norm(width, jnp.float32, rngs)
        self.proj = _bias_free(width, config.n_embd, jnp.float32, rngs, normal(math.sqrt(2 / (width + config.n_embd))))

    def __call__(self, tokens: Int[Array, "batch ctx"], lengths: Int[Array, " batch"]) -> Float[Array, "batch n_embd"]:
        x = (self.token_embedding[tokens] + self.positional_embedding[...][None]).astype(self.dtype)
        x = in_turn(self.blocks, x, causal=True)
        last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
        return self.proj(self.final_norm(last))


class _ImageTower(nnx.Module):
    """Vision transformer; its first token tells the timestep and gives the feature (torch: ImageEncoder)."""

    def __init__(self, config: ClipImageConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        width, layers = config.n_head_image * config.n_head_state_image, config.n_xf_blocks_image
        patches = (config.image_size // config.patch_size) ** 2
        self.dtype, self.image_size = dtype, config.image_size
        self.timestep_embedding = _table(config.n_timesteps, width, width**-0.5, rngs)
        self.positional_embedding = _table(1 + patches, width, width**-0.5, rngs)
        self.patch = nnx.Conv(
            3,
            width,
            (config.patch_size, config.patch_size),
            strides=config.patch_size,
            padding="VALID",
            use_bias=False,
            param_dtype=jnp.float32,
            kernel_init=normal((2 / width) ** 0.5 / config.patch_size),
            rngs=rngs,
        )
        self.in_norm = layer_norm(width, dtype, rngs)
        self.blocks = nnx.List([_Block(width, config.n_head_image, layers, dtype, rngs) for _ in range(layers)])
        self.final_norm = layer_norm(width, jnp.float32, rngs)
        self.proj = _bias_free(width, config.n_embd, jnp.float32, rngs, normal(math.sqrt(2 / (width + config.n_embd))))

    def __call__(
        self, x: Float[Array, "batch height width 3"], t: Float[Array, " batch"] | Int[Array, " batch"]
    ) -> Float[Array, "batch n_embd"]:
        if x.shape[1:3] != (self.image_size, self.image_size):
            raise GlideError(f"clip reads {self.image_size} px images, not {x.shape[1]} x {x.shape[2]}")
        patches = self.patch(((x + 1) * 127.5 - _PIXEL_MEANS) / _PIXEL_STDS)
        patches = patches.reshape(x.shape[0], -1, patches.shape[-1])
        timestep = self.timestep_embedding[jnp.rint(t).astype(jnp.int32)]
        h = jnp.concatenate([timestep[:, None], patches], axis=1) + self.positional_embedding[...][None]
        h = self.in_norm(h).astype(self.dtype)
        h = in_turn(self.blocks, h, causal=False)
        return self.proj(self.final_norm(h[:, 0]))


def _table(rows: int, width: int, std: float, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(normal(std)(rngs.params(), (rows, width), jnp.float32))


def _bias_free(features_in: int, features_out: int, dtype: DTypeLike, rngs: nnx.Rngs, init: Any) -> nnx.Linear:
    return nnx.Linear(
        features_in,
        features_out,
        use_bias=False,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=init,
        rngs=rngs,
    )


def _residual_init(width: int, layers: int) -> nnx.Initializer:
    """The reference's scale for the last layer of a branch, with two branches per layer."""
    return normal(width**-0.5 / (2 * layers))
