"""Random masks for training a model to complete pictures: 1 where a pixel is known, 0 where it is to be drawn."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from glide_jax.errors import GlideError

_RECTANGLES = 3
_STROKES, _CORNERS = 3, 5


@dataclass(frozen=True, slots=True)
class MaskConfig:
    """Shares of the kinds of masks; they are scaled to sum to 1.

    Attributes:
        rectangles: one to three rectangles of 1/8 to 5/8 of the side are to be drawn.
        strokes: thick broken lines are.
        everything: the whole picture is, so that the model keeps drawing from text alone.
        nothing: no pixel is.
    """

    rectangles: float = 0.4
    strokes: float = 0.4
    everything: float = 0.15
    nothing: float = 0.05

    def __post_init__(self) -> None:
        shares = self.shares
        if min(shares) < 0 or sum(shares) <= 0:
            raise GlideError(f"masks: shares must not be negative, nor all 0, got {shares}")

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """In the order of the attributes."""
        return (self.rectangles, self.strokes, self.everything, self.nothing)


def random_masks(config: MaskConfig, keys: Key[Array, " batch"], side: int) -> Float[Array, "batch side side 1"]:
    """A mask for each key alone."""
    weights = jnp.asarray(config.shares, jnp.float32)

    def mask(key: Key[Array, ""]) -> Bool[Array, "side side"]:
        kind_key, key = jax.random.split(key)
        kind = jax.random.categorical(kind_key, jnp.log(weights))
        holes = jnp.stack(
            [_rectangles(key, side), _strokes(key, side), jnp.ones((side, side), bool), jnp.zeros((side, side), bool)]
        )
        return ~holes[kind]

    return jax.vmap(mask)(keys)[..., None].astype(jnp.float32)


def _rectangles(key: Key[Array, ""], side: int) -> Bool[Array, "side side"]:
    size_key, place_key, count_key = jax.random.split(key, 3)
    sizes = jax.random.uniform(size_key, (_RECTANGLES, 2), minval=1 / 8, maxval=5 / 8)
    corners = jax.random.uniform(place_key, (_RECTANGLES, 2)) * (1 - sizes)
    y, x = _centres(side)
    inside = (
        (y > corners[:, 0, None, None])
        & (y < (corners + sizes)[:, 0, None, None])
        & (x > corners[:, 1, None, None])
        & (x < (corners + sizes)[:, 1, None, None])
    )
    count = jax.random.randint(count_key, (), 1, _RECTANGLES + 1)
    return (inside & (jnp.arange(_RECTANGLES) < count)[:, None, None]).any(axis=0)


def _strokes(key: Key[Array, ""], side: int) -> Bool[Array, "side side"]:
    """Pixels nearer to a broken line than half its width."""
    corner_key, width_key, count_key = jax.random.split(key, 3)
    corners = jax.random.uniform(corner_key, (_STROKES, _CORNERS, 2))
    half_widths = jax.random.uniform(width_key, (_STROKES, 1), minval=0.03, maxval=0.1)
    starts, ends = corners[:, :-1, :, None, None], corners[:, 1:, :, None, None]
    points = jnp.stack(_centres(side))[:, 0][None, None]
    along = ends - starts
    share = ((points - starts) * along).sum(2, keepdims=True) / jnp.maximum((along**2).sum(2, keepdims=True), 1e-8)
    distance = jnp.linalg.norm(points - starts - jnp.clip(share, 0, 1) * along, axis=2)
    count = jax.random.randint(count_key, (), 1, _STROKES + 1)
    drawn = (jnp.arange(_STROKES) < count)[:, None]
    return ((distance < half_widths[..., None, None]) & drawn[..., None, None]).any(axis=(0, 1))


def _centres(side: int) -> tuple[Float[Array, "1 side side"], Float[Array, "1 side side"]]:
    """Rows and columns of the pixels' centres, in [0, 1]."""
    middle = (jnp.arange(side, dtype=jnp.float32) + 0.5) / side
    y, x = jnp.meshgrid(middle, middle, indexing="ij")
    return y[None], x[None]
