"""The UNet of glide-text2im: residual blocks modulated by the time embedding, with attention over image and text."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from glide_jax.models.attention import attention
from glide_jax.models.config import ModelConfig
from glide_jax.models.layers import (
    CONVOLUTION,
    GroupNorm,
    conv,
    downsample_average,
    dropout,
    kept_by_dropout,
    linear,
    timestep_embedding,
    upsample_nearest,
    zeros_linear,
)
from glide_jax.models.normalization import STATISTICS

Image = Float[Array, "batch height width channels"]
# An image whose size and channels may differ from those of the `Image` it was computed from.
NewImage = Float[Array, "batch new_height new_width new_channels"]
Resample = Literal["up", "down"]
# Per-head text keys and values of one attention block: each [batch, ctx, heads, channels].
KeysValues = tuple[Float[Array, "batch ctx _heads _channels"], Float[Array, "batch ctx _heads _channels"]]
# Queries and keys of one attention block, per head.
QueriesKeys = tuple[Float[Array, "batch pixels _heads _channels"], Float[Array, "batch keys _heads _channels"]]
# Where dropout keeps an example's values.
Kept = Bool[Array, "batch _height _width _channels"]
RematPolicy = Literal["none", "full", "dots"]

_RESAMPLE = {"up": upsample_nearest, "down": downsample_average}
_REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(CONVOLUTION, STATISTICS),
    ),
}


class ResBlock(nnx.Module):
    """Norm, swish, resample, conv, embedding, norm, swish, dropout, conv; plus the skip (torch: ResBlock)."""

    def __init__(
        self,
        config: ModelConfig,
        channels_in: int,
        channels_out: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        resample: Resample | None = None,
    ) -> None:
        self.resample, self.up = resample, resample == "up"
        self.channels = channels_out
        self.scale_shift = config.use_scale_shift_norm
        self.dropout_rate = config.dropout
        self.in_norm = GroupNorm(channels_in, config.norm_groups, dtype)
        self.in_conv = conv(channels_in, channels_out, 3, dtype, rngs)
        self.embed = linear(4 * config.num_channels, channels_out * (1 + self.scale_shift), dtype, rngs)
        self.out_norm = GroupNorm(channels_out, config.norm_groups, dtype)
        self.out_conv = conv(channels_out, channels_out, 3, dtype, rngs, init=nnx.initializers.zeros_init())
        self.skip = conv(channels_in, channels_out, 1, dtype, rngs) if channels_in != channels_out else None

    def __call__(self, x: Image, embedding: Float[Array, "batch features"], keep: Kept | None) -> NewImage:
        h = self.in_norm(x, swish=True)
        if self.resample is not None:
            h, x = _RESAMPLE[self.resample](h), _RESAMPLE[self.resample](x)
        h = self.in_conv(h)
        modulation = self.embed(jax.nn.silu(embedding))
        if self.scale_shift:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            h = self.out_norm(h, (scale, shift), swish=True)
        else:
            h = self.out_norm(h + modulation[:, None, None], swish=True)
        h = self.out_conv(dropout(h, self.dropout_rate, keep))
        return (x if self.skip is None else self.skip(x)) + h


class AttentionBlock(nnx.Module):
    """Pixels attend to the text, then to each other, in one softmax (torch: AttentionBlock).

    Attributes:
        on_attention: called with the queries and keys, text first, when attention maps are wanted.
    """

    def __init__(self, config: ModelConfig, channels: int, heads: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.on_attention: Callable[[QueriesKeys], object] | None = None
        text_width = config.xf_width
        self.norm = GroupNorm(channels, config.norm_groups, dtype)
        self.qkv = linear(channels, 3 * channels, dtype, rngs)
        self.text_kv = linear(text_width, 2 * channels, dtype, rngs) if text_width else None
        self.proj = zeros_linear(channels, channels, dtype, rngs)

    def text_keys_values(self, text: Float[Array, "batch ctx width"]) -> KeysValues:
        """Keys and values of a text, laid out per head as [head, (k, v), channels] (torch: encoder_kv)."""
        assert self.text_kv is not None, "a model of xf_width 0 takes no text"
        k, v = jnp.split(self.text_kv(text).reshape(*text.shape[:2], self.heads, -1), 2, axis=-1)
        return k, v

    def __call__(self, x: Image, text: KeysValues | None) -> Image:
        batch, height, width, channels = x.shape
        h = self.qkv(self.norm(x).reshape(batch, height * width, channels))
        q, k, v = jnp.split(h.reshape(batch, height * width, self.heads, -1), 3, axis=-1)
        if text is not None:
            k, v = jnp.concatenate([text[0], k], axis=1), jnp.concatenate([text[1], v], axis=1)
        if self.on_attention is not None:
            self.on_attention((q, k))
        h = self.proj(attention(q, k, v).reshape(batch, height * width, channels))
        return x + h.reshape(x.shape)


class Resampler(nnx.Module):
    """A convolution that changes the resolution, without `resblock_updown` (torch: Upsample, Downsample)."""

    def __init__(self, channels: int, resample: Resample, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.up = resample == "up"
        self.conv = conv(channels, channels, 3, dtype, rngs, stride=1 if self.up else 2)

    def __call__(self, x: Image) -> NewImage:
        return self.conv(upsample_nearest(x) if self.up else x)


class Block(nnx.Module):
    """One step down or up: a residual block, attention and a change of resolution, each optional, in that order."""

    def __init__(
        self,
        res: ResBlock | None,
        attn: AttentionBlock | None = None,
        resample: ResBlock | Resampler | None = None,
    ) -> None:
        self.res, self.attn, self.resample = res, attn, resample

    def sides(self, height: int, width: int) -> tuple[tuple[int, int], list[tuple[int, int, int]]]:
        """Height and width after this block, and the shapes its residual blocks apply dropout to."""
        shapes = [] if self.res is None else [(height, width, self.res.channels)]
        if self.resample is not None:
            height, width = (2 * height, 2 * width) if self.resample.up else (height // 2, width // 2)
            if isinstance(self.resample, ResBlock):
                shapes.append((height, width, self.resample.channels))
        return (height, width), shapes

    def __call__(
        self,
        x: Image,
        embedding: Float[Array, "batch features"],
        text: KeysValues | None,
        kept: Sequence[Kept],
    ) -> NewImage:
        masks = iter(kept)
        if self.res is not None:
            x = self.res(x, embedding, next(masks, None))
        if self.attn is not None:
            x = self.attn(x, text)
        if isinstance(self.resample, ResBlock):
            x = self.resample(x, embedding, next(masks, None))
        elif self.resample is not None:
            x = self.resample(x)
        return x


class UNet(nnx.Module):
    """Predicts noise or v, and variance, of an image at a timestep, given a text (torch: Text2ImUNet.forward)."""

    def __init__(self, config: ModelConfig, dtype: DTypeLike, remat: RematPolicy, rngs: nnx.Rngs) -> None:
        self.num_channels, self.dtype, self.remat = config.num_channels, dtype, remat
        self.dropout_rate = config.dropout
        width = 4 * config.num_channels
        self.time_in = linear(config.num_channels, width, jnp.float32, rngs)
        self.time_out = linear(width, width, jnp.float32, rngs)

        def res(channels_in: int, channels_out: int, resample: Resample | None = None) -> ResBlock:
            return ResBlock(config, channels_in, channels_out, dtype, rngs, resample)

        def attn(channels: int, *, upward: bool = False) -> AttentionBlock:
            return AttentionBlock(config, channels, config.heads(channels, upward), dtype, rngs)

        def resampler(channels: int, way: Resample) -> ResBlock | Resampler:
            return res(channels, channels, way) if config.resblock_updown else Resampler(channels, way, dtype, rngs)

        widths = [mult * config.num_channels for mult in config.channel_mult]
        channels, last = widths[0], len(widths) - 1
        self.input_conv = conv(config.in_channels, channels, 3, dtype, rngs)
        self.down = nnx.List([])
        skips = [channels]
        for level, level_width in enumerate(widths):
            attends = config.image_size >> level in config.attention_resolutions
            for _ in range(config.num_res_blocks):
                self.down.append(Block(res(channels, level_width), attn(level_width) if attends else None))
                channels = level_width
                skips.append(channels)
            if level != last:
                self.down.append(Block(None, None, resampler(channels, "down")))
                skips.append(channels)

        self.middle = nnx.List([Block(res(channels, channels), attn(channels)), Block(res(channels, channels))])

        self.up = nnx.List([])
        for level in range(last, -1, -1):
            attends = config.image_size >> level in config.attention_resolutions
            for i in range(config.num_res_blocks + 1):
                block = res(channels + skips.pop(), widths[level])
                channels = widths[level]
                rises = level > 0 and i == config.num_res_blocks
                self.up.append(
                    Block(
                        block,
                        attn(channels, upward=True) if attends else None,
                        resampler(channels, "up") if rises else None,
                    )
                )
        self.out_norm = GroupNorm(channels, config.norm_groups, jnp.float32)
        self.out_conv = conv(channels, config.out_channels, 3, jnp.float32, rngs, init=nnx.initializers.zeros_init())

    @property
    def blocks(self) -> list[Block]:
        """All blocks in the order they run."""
        return [*self.down, *self.middle, *self.up]

    def text_keys_values(self, text: Float[Array, "batch ctx width"]) -> tuple[KeysValues, ...]:
        """Keys and values of a text for every attention block, in the order they run; computed once per prompt."""
        return tuple(block.attn.text_keys_values(text) for block in self.blocks if block.attn is not None)

    def __call__(
        self,
        x: Image,
        t: Float[Array, " batch"],
        text_embedding: Float[Array, "batch features"] | None,
        text: tuple[KeysValues, ...] | None,
        dropout_keys: Key[Array, " batch"] | None,
    ) -> NewImage:
        embedding = self.time_out(jax.nn.silu(self.time_in(timestep_embedding(t, self.num_channels))))
        if text_embedding is not None:
            embedding = embedding + text_embedding
        texts, masks = iter(text or ()), iter(self._masks(x.shape[1], x.shape[2], dropout_keys))

        def run(block: Block, h: Image) -> NewImage:
            block_text = next(texts) if block.attn is not None and text is not None else None
            return self._call_block(block, h, embedding, block_text, next(masks))

        h = self.input_conv(x)
        skips = [h]
        for block in self.down:
            h = run(block, h)
            skips.append(h)
        for block in self.middle:
            h = run(block, h)
        for block in self.up:
            h = run(block, jnp.concatenate([h, skips.pop()], axis=-1))
        return self.out_conv(self.out_norm(h, swish=True))

    def _masks(self, height: int, width: int, keys: Key[Array, " batch"] | None) -> list[list[Kept]]:
        """What dropout keeps in each block, in the order they run."""
        if keys is None or not self.dropout_rate:
            return [[] for _ in self.blocks]
        size, shapes = (height, width), []
        for block in self.blocks:
            size, of_block = block.sides(*size)
            shapes.append(of_block)
        masks = iter(kept_by_dropout(keys, [shape for of_block in shapes for shape in of_block], self.dropout_rate))
        return [[next(masks) for _ in of_block] for of_block in shapes]

    def _call_block(
        self,
        block: Block,
        h: Image,
        embedding: Float[Array, "batch features"],
        text: KeysValues | None,
        kept: Sequence[Kept],
    ) -> NewImage:
        if self.remat == "none":
            return block(h, embedding, text, kept)
        graphdef, params = nnx.split(block)

        def call(params: nnx.State, *inputs: object) -> NewImage:
            return nnx.merge(graphdef, params)(*inputs)

        return jax.checkpoint(call, policy=_REMAT_POLICIES[self.remat])(params, h, embedding, text, kept)
