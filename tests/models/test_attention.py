"""The attention function against the textbook in float64, and cuDNN's kernel against XLA's where there is a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from glide_jax.models import attention as attention_module
from glide_jax.models.attention import attention, attention_weights

# Queries, keys and channels of the published base model: 128 text tokens before 32x32, 16x16 and 8x8 pixels.
PUBLISHED = [(1024, 128 + 1024, 64), (256, 128 + 256, 64), (64, 128 + 64, 64)]


def draw(queries, keys, channels, dtype):
    random = np.random.RandomState(0)
    shapes = [(2, length, 3, channels) for length in (queries, keys, keys)]
    return [jnp.asarray(random.standard_normal(shape), dtype) for shape in shapes]


def textbook(q, k, v, causal):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bqhc,bkhc->bhqk", q, k) / np.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bhqk,bkhc->bqhc", weights / weights.sum(axis=-1, keepdims=True), v)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_it_is_the_textbooks_attention(dtype, tolerance, causal):
    q, k, v = draw(12, 12 if causal else 20, 8, dtype)
    out = attention(q, k, v, causal=causal)
    assert out.dtype == dtype
    np.testing.assert_allclose(np.asarray(out, np.float64), textbook(q, k, v, causal), atol=tolerance)


@pytest.fixture
def lowered(monkeypatch):
    """The gradient's program as JAX writes it for an H100, or for the CPU of a process with one."""
    monkeypatch.setattr(attention_module, "cuda_capability", lambda: 9.0)
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    gradient = jax.jit(jax.grad(lambda q, k, v: attention(q, k, v).sum().astype(jnp.float32)))
    return lambda platform, *shape: (
        gradient.trace(*draw(*shape, "bfloat16")).lower(lowering_platforms=(platform,)).as_text()
    )


@pytest.mark.parametrize("platform", ["cuda", "cpu"])
def test_where_it_is_computed_decides_on_the_kernel(platform, lowered):
    assert ("__cudnn$fmhaSoftmaxBackward" in lowered(platform, 64, 192, 64)) == (platform == "cuda")


@pytest.mark.parametrize(
    ("shape", "flash"),
    [
        ((64, 64, 256), True),
        ((64, 64, 264), False),
        ((64, 64, 20), False),
        ((81, 209, 64), False),
        ((64, 77, 64), False),
    ],
)
def test_shapes_that_cudnn_refuses_are_left_to_xla(shape, flash, lowered):
    """Such as 9 x 9 pixels, or 77 tokens: cuDNN has no gradient of odd lengths."""
    assert ("__cudnn$fmhaSoftmaxBackward" in lowered("cuda", *shape)) == flash


@pytest.mark.gpu
@pytest.mark.parametrize("shape", PUBLISHED)
def test_cudnn_agrees_with_xla_in_pictures_and_gradients(shape):
    arrays = draw(*shape, "bfloat16")

    def run(q, k, v):
        out, back = jax.vjp(attention, q, k, v)
        return out, *back(jnp.ones_like(out))

    flash = jax.jit(run)
    assert "__cudnn$fmhaSoftmax" in flash.lower(*arrays).compile().as_text()
    exact = jax.jit(run)(*(x.astype(jnp.float32) for x in arrays))
    for mine, theirs in zip(flash(*arrays), exact, strict=True):
        scale = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(np.asarray(mine, np.float32), theirs, atol=0.02 * scale)


def test_its_weights_are_those_that_it_weights_values_by():
    q, k, _ = draw(12, 20, 8, "float32")
    identity = jnp.broadcast_to(jnp.eye(20)[None, :, None, :], (2, 20, 3, 20))
    np.testing.assert_allclose(attention_weights(q, k), attention(*padded(q, k), identity).mean(axis=2), atol=2e-6)


def padded(q, k):
    """Channels for `attention`, which takes as many of values: those added are zero, and its scale is undone."""
    more = [(0, 0), (0, 0), (0, 0), (0, 20 - q.shape[-1])]
    return jnp.pad(q, more) * (20 / q.shape[-1]) ** 0.5, jnp.pad(k, more)
