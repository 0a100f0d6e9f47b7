"""What happens to a predicted clean image before it is used: thresholds, known pixels."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from glide_jax.diffusion.forward import Image
from glide_jax.diffusion.options import ThresholdingOptions

_AS_GLIDE = ThresholdingOptions()


def threshold(x_0: Image, options: ThresholdingOptions = _AS_GLIDE) -> Image:
    """Brings x_0 into the range of images."""
    if options.thresholding == "none":
        return x_0
    if options.thresholding == "static":
        return jnp.clip(x_0, -1.0, 1.0)
    size = jnp.quantile(jnp.abs(x_0), options.dynamic_thresholding_ratio, axis=(1, 2, 3), keepdims=True)
    limit = jnp.maximum(size, 1.0)
    return jnp.clip(x_0, -limit, limit) / limit


def paste(x_0: Image, known: Image, mask: Float[Array, "batch height width 1"]) -> Image:
    """Puts known pixels (mask 1) in place of predicted ones (torch: the inpainting notebook's denoised_fn)."""
    return mask * known + (1 - mask) * x_0
