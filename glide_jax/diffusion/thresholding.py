"""What happens to a predicted clean picture before it is used: thresholds, known pixels."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from glide_jax.diffusion.forward import Image
from glide_jax.errors import GlideError


@dataclass(frozen=True)
class Thresholding:
    """How x_0 is kept within the range of pictures.

    Attributes:
        thresholding: "static" clips to [-1, 1], as GLIDE does; "dynamic" clips each picture at its own quantile s
            of |x_0|, at least 1, and divides by s (Saharia et al. 2022, arXiv:2205.11487, sec. 2.3); "none".
        dynamic_thresholding_ratio: that quantile.
    """

    thresholding: Literal["static", "dynamic", "none"] = "static"
    dynamic_thresholding_ratio: float = 0.995

    def __post_init__(self) -> None:
        if self.thresholding not in ("static", "dynamic", "none"):
            raise GlideError(f"thresholding {self.thresholding!r} is unknown: use static, dynamic or none")
        if not 0 < self.dynamic_thresholding_ratio <= 1:
            raise GlideError(f"dynamic_thresholding_ratio must be in (0, 1], not {self.dynamic_thresholding_ratio}")

    def __call__(self, x_0: Image) -> Image:
        """Applies it."""
        if self.thresholding == "none":
            return x_0
        if self.thresholding == "static":
            return jnp.clip(x_0, -1.0, 1.0)
        size = jnp.quantile(jnp.abs(x_0), self.dynamic_thresholding_ratio, axis=(1, 2, 3), keepdims=True)
        limit = jnp.maximum(size, 1.0)
        return jnp.clip(x_0, -limit, limit) / limit


def paste(x_0: Image, known: Image, mask: Float[Array, "batch height width 1"]) -> Image:
    """Puts known pixels (mask 1) in place of predicted ones (torch: the inpainting notebook's denoised_fn)."""
    return mask * known + (1 - mask) * x_0
