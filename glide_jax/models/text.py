"""The text transformer of glide-text2im: not causal, no attention mask, learned vectors for padding."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from glide_jax.models.attention import attention
from glide_jax.models.config import ModelConfig
from glide_jax.models.functional import in_turn
from glide_jax.models.layers import layer_norm, linear, normal


class TextFeatures(NamedTuple):
    """The transformer's output for a text.

    Attributes:
        summary: projection of the last position, added to the time embedding (torch: xf_proj).
        tokens: one vector per position, for cross-attention (torch: xf_out, transposed).
    """

    summary: Float[Array, "batch embedding"]
    tokens: Float[Array, "batch ctx width"]


class TextAttention(nnx.Module):
    """Self-attention over the positions of a text; qkv laid out per head as [head, (q, k, v), channels]."""

    def __init__(self, width: int, heads: int, layers: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.qkv = linear(width, 3 * width, dtype, rngs, normal(width**-0.5))
        self.proj = linear(width, width, dtype, rngs, normal((2 * layers * width) ** -0.5))

    def __call__(self, x: Float[Array, "batch ctx width"], *, causal: bool = False) -> Float[Array, "batch ctx width"]:
        q, k, v = jnp.split(self.qkv(x).reshape(*x.shape[:2], self.heads, -1), 3, axis=-1)
        return self.proj(attention(q, k, v, causal=causal).reshape(x.shape))


class TextBlock(nnx.Module):
    """A pre-norm transformer block with an exact (erf) GELU (torch: ResidualAttentionBlock)."""

    def __init__(self, width: int, heads: int, layers: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.attn_norm = layer_norm(width, dtype, rngs)
        self.attn = TextAttention(width, heads, layers, dtype, rngs)
        self.mlp_norm = layer_norm(width, dtype, rngs)
        self.mlp_in = linear(width, 4 * width, dtype, rngs, normal((2 * width) ** -0.5))
        self.mlp_out = linear(4 * width, width, dtype, rngs, normal((2 * layers * width) ** -0.5))

    def __call__(self, x: Float[Array, "batch ctx width"]) -> Float[Array, "batch ctx width"]:
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp_out(jax.nn.gelu(self.mlp_in(self.mlp_norm(x)), approximate=False))


class TextEncoder(nnx.Module):
    """Tokens to `TextFeatures` (torch: Text2ImUNet.get_text_emb)."""

    def __init__(self, config: ModelConfig, vocab_size: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        width, layers = config.xf_width, config.xf_layers
        self.dtype = dtype
        # The reference leaves both position tables uninitialised; these are CLIP's scales.
        tokens, positions = normal(0.02), normal(0.01)
        self.token_embedding = nnx.Param(tokens(rngs.params(), (vocab_size, width), jnp.float32))
        self.positional_embedding = nnx.Param(positions(rngs.params(), (config.text_ctx, width), jnp.float32))
        if config.xf_padding:
            self.padding_embedding = nnx.Param(positions(rngs.params(), (config.text_ctx, width), jnp.float32))
        self.use_padding = config.xf_padding
        self.blocks = nnx.List([TextBlock(width, config.xf_heads, layers, dtype, rngs) for _ in range(layers)])
        self.final_norm = layer_norm(width, dtype, rngs) if config.xf_final_ln else None
        self.proj = linear(width, 4 * config.num_channels, jnp.float32, rngs)

    def __call__(self, tokens: Int[Array, "batch ctx"], mask: Bool[Array, "batch ctx"]) -> TextFeatures:
        x = self.token_embedding[tokens] + self.positional_embedding[...][None]
        if self.use_padding:
            x = jnp.where(mask[..., None], x, self.padding_embedding[...][None])
        x = x.astype(self.dtype)
        x = in_turn(self.blocks, x)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return TextFeatures(summary=self.proj(x[:, -1]), tokens=x)
