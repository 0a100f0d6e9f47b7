"""Architecture of a GLIDE model: the reference's options under the reference's names."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, Self

from glide_jax.errors import GlideError
from glide_jax.images import MOST_SIDE
from glide_jax.options import Options, option

Kind = Literal["base", "upsample", "base-inpaint", "upsample-inpaint"]

_MOST_LEVELS = MOST_SIDE.bit_length()
_CHANNEL_MULT = {64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}


@dataclass(frozen=True, slots=True)
class ModelConfig(Options):
    """Options of a UNet with its text transformer; the defaults are the published 64 px base model."""

    PREFIX: ClassVar[str] = "model."

    image_size: Annotated[int, option("side of the square output in pixels", low=1, high=MOST_SIDE)] = 64
    num_channels: Annotated[
        int, option("width of the first level; times each channel_mult, a multiple of norm_groups", low=1)
    ] = 192
    num_res_blocks: Annotated[int, option("residual blocks per level", low=1)] = 3
    channel_mult: Annotated[
        tuple[int, ...], option("width of each level as a multiple of num_channels; empty: as published", low=1)
    ] = ()
    attention_resolutions: Annotated[
        tuple[int, ...], option("sides (in pixels) of the feature maps that get attention")
    ] = (32, 16, 8)
    num_heads: Annotated[int, option("attention heads if num_head_channels is -1")] = 1
    num_head_channels: Annotated[int, option("channels per attention head; -1: num_heads decides")] = 64
    num_heads_upsample: Annotated[int, option("attention heads in the up path, likewise; -1: num_heads")] = -1
    norm_groups: Annotated[
        int,
        option("groups of group norms (PyTorch: 32); with few channels per group, colours are lost", low=1),
    ] = 32
    dropout: Annotated[float, option("dropout rate in residual blocks during training", low=0, below=1)] = 0.1
    use_scale_shift_norm: Annotated[
        bool, option("the embedding scales and shifts the second norm; otherwise it is added before it")
    ] = True
    resblock_updown: Annotated[
        bool, option("residual blocks change the resolution; else strided and upsampling convolutions do")
    ] = True
    text_ctx: Annotated[int, option("length of texts in tokens", low=1)] = 128
    xf_width: Annotated[int, option("width of the text transformer; 0: no text", low=0)] = 512
    xf_layers: Annotated[int, option("layers of the text transformer")] = 16
    xf_heads: Annotated[int, option("attention heads of the text transformer")] = 8
    xf_final_ln: Annotated[bool, option("final LayerNorm of the text transformer")] = True
    xf_padding: Annotated[bool, option("a learned embedding instead of padding tokens")] = True
    inpaint: Annotated[bool, option("takes a masked image and its mask as further input channels")] = False
    super_res: Annotated[bool, option("takes a low-resolution image as further input channels")] = False
    low_res_size: Annotated[int, option("side of the low-resolution image in pixels", low=1, high=MOST_SIDE)] = 64

    def __post_init__(self) -> None:
        if not self.channel_mult:
            if self.image_size not in _CHANNEL_MULT:
                known = ", ".join(map(str, _CHANNEL_MULT))
                raise GlideError(f"model.channel_mult must be given for image_size {self.image_size} (known: {known})")
            object.__setattr__(self, "channel_mult", _CHANNEL_MULT[self.image_size])
        Options.__post_init__(self)
        self._check_divisibility()

    def _check_divisibility(self) -> None:
        levels = len(self.channel_mult)
        if levels > _MOST_LEVELS:
            raise GlideError(f"model.channel_mult must have at most {_MOST_LEVELS} levels, not {levels}")
        if self.image_size % self.unit:
            raise GlideError(f"model.image_size {self.image_size} must be divisible by {self.unit} for {levels} levels")
        for level, mult in enumerate(self.channel_mult):
            channels = mult * self.num_channels
            if channels % self.norm_groups:
                raise GlideError(
                    f"model.num_channels {self.num_channels} times {mult} must be a multiple of"
                    f" norm_groups {self.norm_groups}"
                )
            side = self.image_size >> level
            ways = (False, True) if side in self.attention_resolutions else ()
            # The middle block, at the last level, always has attention.
            for upward in ways or ((False,) if level == levels - 1 else ()):
                option = self._head_option(upward)
                if (value := getattr(self, option)) < 1 or channels % value:
                    raise GlideError(f"model.{option} {value} does not divide the {channels} channels at {side} px")
        if self.xf_width and (self.xf_heads < 1 or self.xf_width % self.xf_heads):
            raise GlideError(f"model.xf_width {self.xf_width} must be divisible by xf_heads {self.xf_heads}")
        if self.xf_width and self.xf_layers < 1:
            raise GlideError(f"model.xf_layers must be at least 1, not {self.xf_layers}")

    @property
    def kind(self) -> Kind:
        """Which of the four published variants this is."""
        kind = "upsample" if self.super_res else "base"
        return f"{kind}-inpaint" if self.inpaint else kind  # type: ignore[return-value]

    @property
    def unit(self) -> int:
        """An image's height and width must be multiples of this, because every level but the first halves them."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def blocks(self) -> dict[str, int]:
        """The number of blocks of each kind, by the name their parameters share."""
        upward = {"unet/up": (self.num_res_blocks + 1) * len(self.channel_mult)}
        return upward | ({"text/blocks": self.xf_layers} if self.xf_width else {})

    @property
    def in_channels(self) -> int:
        """Input channels: noisy image, then masked image and mask, then low-resolution image."""
        return 3 + 4 * self.inpaint + 3 * self.super_res

    @property
    def out_channels(self) -> int:
        """Output channels: three of noise, three of learned variance."""
        return 6

    def heads(self, channels: int, upward: bool = False) -> int:
        """Attention heads of a block with that many channels."""
        option = self._head_option(upward)
        value: int = getattr(self, option)
        return channels // value if option == "num_head_channels" else value

    def _head_option(self, upward: bool) -> str:
        if self.num_head_channels != -1:
            return "num_head_channels"
        return "num_heads_upsample" if upward and self.num_heads_upsample != -1 else "num_heads"

    @classmethod
    def published(cls, kind: Kind) -> Self:
        """The architecture of one of the four published checkpoints."""
        config = cls() if kind.startswith("base") else cls(image_size=256, num_res_blocks=2, super_res=True)
        return replace(config, inpaint=kind.endswith("inpaint"))
