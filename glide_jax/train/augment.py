"""What a training example is conditioned on besides its caption: low-resolution inputs, inpainting masks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from glide_jax.diffusion.forward import Image
from glide_jax.models import Conditioning, EncodedText, ModelConfig
from glide_jax.randomness import fold
from glide_jax.train.config import BLUR_RADIUS, ConditioningConfig, MaskConfig

LowResImage = Float[Array, "batch low_height low_width channels"]

_RECTANGLES = 3
_STROKES, _CORNERS = 3, 5


def condition(
    config: ConditioningConfig,
    model: ModelConfig,
    text: EncodedText | None,
    x_0: Image,
    low_res: LowResImage | None,
    keys: Key[Array, " batch"],
) -> Conditioning:
    """The conditioning of a batch.

    Args:
        config: strengths of the augmentation, kinds of masks.
        model: which inputs there are.
        text: encoded captions.
        x_0: clean images; an inpainting model sees their known parts.
        low_res: the low-resolution inputs of an upsampler.
        keys: one per image: the same key gives the same masks and noise.
    """
    if low_res is not None:
        low_res = _augment(config, low_res, keys)
    if not model.inpaint:
        return Conditioning(text, low_res)
    _, height, width, _ = x_0.shape
    masks = random_masks(config.masks, jax.vmap(lambda key: fold(key, 0))(keys), (height, width))
    return Conditioning(text, low_res, x_0, masks)


def _augment(config: ConditioningConfig, low_res: LowResImage, keys: Key[Array, " batch"]) -> LowResImage:
    def strength(stream: int, greatest: float) -> Float[Array, "batch 1 1 1"]:
        uniform = jax.vmap(lambda key: jax.random.uniform(fold(key, stream)))(keys)
        return greatest * uniform[:, None, None, None]

    if config.low_res_blur:
        low_res = _blur(low_res, strength(1, config.low_res_blur))
    if config.low_res_noise:
        noise = jax.vmap(lambda key: jax.random.normal(fold(key, 2), low_res.shape[1:]))(keys)
        low_res = low_res + strength(3, config.low_res_noise) * noise
    return low_res


def _blur(images: LowResImage, sigma: Float[Array, "batch 1 1 1"]) -> LowResImage:
    """A Gaussian blur with a standard deviation for each image, edges repeated."""
    offsets = jnp.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * jnp.square(offsets[None] / jnp.maximum(sigma[:, :, 0, 0], 1e-3)))
    weights = weights / weights.sum(axis=1, keepdims=True)
    for axis in (1, 2):
        size = images.shape[axis]
        padding = [(BLUR_RADIUS, BLUR_RADIUS) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(images, padding, mode="edge")
        shifted = [jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k in range(2 * BLUR_RADIUS + 1)]
        images = sum((weights[:, k, None, None, None] * shift for k, shift in enumerate(shifted)), jnp.float32(0))
    return images


def random_masks(
    config: MaskConfig, keys: Key[Array, " batch"], size: tuple[int, int]
) -> Float[Array, "batch height width 1"]:
    """An inpainting mask for each key alone: 1 where a pixel is known, 0 where it is to be inpainted.

    For an image that is not square, the mask of the square is stretched.
    """
    weights = jnp.asarray(config.shares, jnp.float32)

    def mask(key: Key[Array, ""]) -> Bool[Array, "height width"]:
        kind_key, key = jax.random.split(key)
        kind = jax.random.categorical(kind_key, jnp.log(weights))
        holes = jnp.stack([_rectangles(key, size), _strokes(key, size), jnp.ones(size, bool), jnp.zeros(size, bool)])
        return ~holes[kind]

    return jax.vmap(mask)(keys)[..., None].astype(jnp.float32)


def _rectangles(key: Key[Array, ""], size: tuple[int, int]) -> Bool[Array, "height width"]:
    size_key, place_key, count_key = jax.random.split(key, 3)
    sizes = jax.random.uniform(size_key, (_RECTANGLES, 2), minval=1 / 8, maxval=5 / 8)
    corners = jax.random.uniform(place_key, (_RECTANGLES, 2)) * (1 - sizes)
    points, low, high = _centres(size)[None], corners[..., None, None], (corners + sizes)[..., None, None]
    inside = ((points > low) & (points < high)).all(axis=1)
    count = jax.random.randint(count_key, (), 1, _RECTANGLES + 1)
    return (inside & (jnp.arange(_RECTANGLES) < count)[:, None, None]).any(axis=0)


def _strokes(key: Key[Array, ""], size: tuple[int, int]) -> Bool[Array, "height width"]:
    """The pixels that a polyline of a given width covers."""
    corner_key, width_key, count_key = jax.random.split(key, 3)
    corners = jax.random.uniform(corner_key, (_STROKES, _CORNERS, 2))
    half_widths = jax.random.uniform(width_key, (_STROKES, 1), minval=0.03, maxval=0.1)
    starts, ends = corners[:, :-1, :, None, None], corners[:, 1:, :, None, None]
    points = _centres(size)[None, None]
    along = ends - starts
    share = ((points - starts) * along).sum(2, keepdims=True) / jnp.maximum((along**2).sum(2, keepdims=True), 1e-8)
    distance = jnp.linalg.norm(points - starts - jnp.clip(share, 0, 1) * along, axis=2)
    count = jax.random.randint(count_key, (), 1, _STROKES + 1)
    used = (jnp.arange(_STROKES) < count)[:, None]
    return ((distance < half_widths[..., None, None]) & used[..., None, None]).any(axis=(0, 1))


def _centres(size: tuple[int, int]) -> Float[Array, "2 height width"]:
    """Rows and columns of the pixels' centres, in [0, 1]."""
    middles = [(jnp.arange(edge, dtype=jnp.float32) + 0.5) / edge for edge in size]
    return jnp.stack(jnp.meshgrid(*middles, indexing="ij"))
