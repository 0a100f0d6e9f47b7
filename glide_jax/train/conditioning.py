"""What a training example is conditioned on beside its text: small pictures, known parts."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from glide_jax.diffusion.forward import Image
from glide_jax.errors import GlideError
from glide_jax.models import Conditioning, EncodedText, ModelConfig
from glide_jax.randomness import fold
from glide_jax.train.masks import MaskConfig, random_masks

SmallImage = Float[Array, "batch low_height low_width channels"]

_BLUR_RADIUS = 3


@dataclass(frozen=True, slots=True)
class ConditioningConfig:
    """How inputs are spoilt or hidden while training; each strength is drawn evenly from 0 up to its greatest.

    Attributes:
        low_res_blur: greatest standard deviation, in its pixels, of a blur of an upsampler's input; 0 is off.
        low_res_noise: greatest standard deviation of noise added to it, on [-1, 1] (Ho et al. 2021, arXiv:2106.15282:
            conditioning augmentation); 0 is off.
        masks: what an inpainting model is to draw.
    """

    low_res_blur: float = 0.0
    low_res_noise: float = 0.0
    masks: MaskConfig = field(default_factory=MaskConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.low_res_blur <= _BLUR_RADIUS / 2:
            raise GlideError(f"conditioning.low_res_blur must be in [0, {_BLUR_RADIUS / 2}], not {self.low_res_blur}")
        if self.low_res_noise < 0:
            raise GlideError(f"conditioning.low_res_noise must not be negative, got {self.low_res_noise}")


def condition(
    config: ConditioningConfig,
    model: ModelConfig,
    text: EncodedText | None,
    x_0: Image,
    low_res: SmallImage | None,
    keys: Key[Array, " batch"],
) -> Conditioning:
    """The conditioning of a batch.

    Args:
        config: how to spoil and hide.
        model: which inputs there are.
        text: encoded captions.
        x_0: the clean pictures, which an inpainting model sees the known part of.
        low_res: their small twins, for an upsampler.
        keys: one a picture: the same key gives the same masks and noise.
    """
    if low_res is not None:
        low_res = _spoil(config, low_res, keys)
    if not model.inpaint:
        return Conditioning(text, low_res)
    masks = random_masks(config.masks, jax.vmap(lambda key: fold(key, 0))(keys), x_0.shape[1])
    return Conditioning(text, low_res, x_0, masks)


def _spoil(config: ConditioningConfig, low_res: SmallImage, keys: Key[Array, " batch"]) -> SmallImage:
    def strength(stream: int, greatest: float) -> Float[Array, "batch 1 1 1"]:
        uniform = jax.vmap(lambda key: jax.random.uniform(fold(key, stream)))(keys)
        return greatest * uniform[:, None, None, None]

    if config.low_res_blur:
        low_res = _blur(low_res, strength(1, config.low_res_blur))
    if config.low_res_noise:
        noise = jax.vmap(lambda key: jax.random.normal(fold(key, 2), low_res.shape[1:]))(keys)
        low_res = low_res + strength(3, config.low_res_noise) * noise
    return low_res


def _blur(images: SmallImage, sigma: Float[Array, "batch 1 1 1"]) -> SmallImage:
    """A Gaussian blur with a standard deviation for each picture, edges repeated."""
    offsets = jnp.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * jnp.square(offsets[None] / jnp.maximum(sigma[:, :, 0, 0], 1e-3)))
    weights = weights / weights.sum(axis=1, keepdims=True)
    for axis in (1, 2):
        size = images.shape[axis]
        padding = [(_BLUR_RADIUS, _BLUR_RADIUS) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(images, padding, mode="edge")
        shifted = [jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k in range(2 * _BLUR_RADIUS + 1)]
        images = sum((weights[:, k, None, None, None] * shift for k, shift in enumerate(shifted)), jnp.float32(0))
    return images
