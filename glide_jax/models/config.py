"""Architecture of a GLIDE model: the reference's options under the reference's names."""

from dataclasses import dataclass, replace
from typing import Literal, Self

from glide_jax.errors import GlideError

Kind = Literal["base", "upsample", "base-inpaint", "upsample-inpaint"]

_CHANNEL_MULT = {64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}
_NUM_GROUPS = 32


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Options of one UNet with its text transformer; the defaults are the published 64 px base model.

    Attributes:
        image_size: side of the square output in pixels.
        num_channels: width of the first level; a multiple of 32 times `channel_mult[0]`.
        num_res_blocks: residual blocks a level.
        channel_mult: width of each level as a multiple of `num_channels`; empty: the published one.
        attention_resolutions: sides (in pixels) of the feature maps that get attention.
        num_heads, num_head_channels: attention heads; `num_head_channels` wins where it is not -1.
        num_heads_upsample: heads in the upward path where `num_head_channels` is -1; -1 means `num_heads`.
        dropout: rate inside residual blocks while training, in [0, 1).
        use_scale_shift_norm: the embedding scales and shifts the second norm (else it is added before it).
        resblock_updown: residual blocks change the resolution; else strided or upsampling convolutions do.
        text_ctx, xf_width, xf_layers, xf_heads: text length and transformer size; width 0 means no text.
        xf_final_ln, xf_padding: final LayerNorm of the text; a learned embedding in place of padding.
        inpaint: takes a masked picture and its mask as further input channels.
        super_res: takes a low-resolution picture as further input channels.
        low_res_size: side of that picture in pixels.
    """

    image_size: int = 64
    num_channels: int = 192
    num_res_blocks: int = 3
    channel_mult: tuple[int, ...] = ()
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    num_heads: int = 1
    num_head_channels: int = 64
    num_heads_upsample: int = -1
    dropout: float = 0.1
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    text_ctx: int = 128
    xf_width: int = 512
    xf_layers: int = 16
    xf_heads: int = 8
    xf_final_ln: bool = True
    xf_padding: bool = True
    inpaint: bool = False
    super_res: bool = False
    low_res_size: int = 64

    def __post_init__(self) -> None:
        if not self.channel_mult:
            if self.image_size not in _CHANNEL_MULT:
                known = ", ".join(map(str, _CHANNEL_MULT))
                raise GlideError(f"model.channel_mult must be given for image_size {self.image_size} (known: {known})")
            object.__setattr__(self, "channel_mult", _CHANNEL_MULT[self.image_size])
        self._validate()

    def _validate(self) -> None:
        levels = len(self.channel_mult)
        scale = 2 ** (levels - 1)
        if self.image_size < 1 or self.image_size % scale:
            raise GlideError(f"model.image_size {self.image_size} must be divisible by {scale} for {levels} levels")
        for mult in self.channel_mult:
            if mult < 1 or self.num_channels < 1 or (mult * self.num_channels) % _NUM_GROUPS:
                raise GlideError(
                    f"model.num_channels {self.num_channels} times {mult} must be a multiple of {_NUM_GROUPS}"
                )
        if not 0.0 <= self.dropout < 1.0:
            raise GlideError(f"model.dropout must be in [0, 1), not {self.dropout}")
        if self.xf_width and (self.xf_heads < 1 or self.xf_width % self.xf_heads):
            raise GlideError(f"model.xf_width {self.xf_width} must be divisible by xf_heads {self.xf_heads}")
        for channels in {mult * self.num_channels for mult in self.channel_mult}:
            per_head = self.num_head_channels if self.num_head_channels != -1 else self.num_heads
            if per_head < 1 or channels % per_head:
                raise GlideError(f"model: {channels} channels cannot be split into heads by {per_head}")
        if self.num_res_blocks < 1 or self.text_ctx < 1 or (self.xf_width and self.xf_layers < 1):
            raise GlideError("model.num_res_blocks, text_ctx and xf_layers must be at least 1")

    @property
    def kind(self) -> Kind:
        """Which of the four published variants this is."""
        kind = "upsample" if self.super_res else "base"
        return f"{kind}-inpaint" if self.inpaint else kind  # type: ignore[return-value]

    @property
    def in_channels(self) -> int:
        """Input channels: noisy picture, then masked picture and mask, then low-resolution picture."""
        return 3 + 4 * self.inpaint + 3 * self.super_res

    @property
    def out_channels(self) -> int:
        """Output channels: three of noise, three of learned variance."""
        return 6

    def heads(self, channels: int, upward: bool = False) -> int:
        """Attention heads of a block with that many channels."""
        if self.num_head_channels != -1:
            return channels // self.num_head_channels
        return self.num_heads_upsample if upward and self.num_heads_upsample != -1 else self.num_heads

    @classmethod
    def published(cls, kind: Kind) -> Self:
        """The architecture of one of the four published checkpoints."""
        config = cls() if kind.startswith("base") else cls(image_size=256, num_res_blocks=2, super_res=True)
        return replace(config, inpaint=kind.endswith("inpaint"))
