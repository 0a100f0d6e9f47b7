"""The noised CLIP against the live PyTorch reference: tokens, towers, blocks, and the guiding gradient."""

import jax
import numpy as np
import pytest

from glide_jax.tokenizer import ClipTokenizer
from tests.parity.live import SKIP, clip_pair
from tests.parity.recipe import draw

pytest.importorskip("glide_text2im", reason=SKIP)
torch = pytest.importorskip("torch", reason=SKIP)

TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
PROMPTS = ["a corgi in a hat", "Déjà vu &amp; café", "", "word " * 100]


@pytest.fixture(scope="module", params=["tiny", pytest.param("full", marks=pytest.mark.slow)])
def pair(request, tmp_path_factory):
    return clip_pair(request.param, tmp_path_factory.mktemp("live"))


def noisy(pair):
    x = np.tanh(draw(f"live/clip/{pair.size}", (len(PROMPTS), 3, 64, 64)))
    return torch.from_numpy(x), x.transpose(0, 2, 3, 1), np.array([0, 1, 500, 999])


def test_tokens_and_text_embeddings(pair, comparison):
    tokens, lengths = ClipTokenizer().padded(PROMPTS)
    for ours, theirs in zip((tokens, lengths), pair.theirs.encode_prompts(PROMPTS), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with torch.no_grad():
        theirs = pair.theirs.text_embeddings(PROMPTS)
    ours = jax.jit(pair.ours.encode_text)(pair.params, tokens, lengths)
    comparison.check("clip, text embedding", pair.size, ours, theirs, TOLERANCE)


def test_image_embeddings(pair, comparison):
    images, x, t = noisy(pair)
    with torch.no_grad():
        theirs = pair.theirs.image_embeddings(images, torch.from_numpy(t))
    ours = jax.jit(pair.ours.encode_image)(pair.params, x, t)
    comparison.check("clip, image embedding", pair.size, ours, theirs, TOLERANCE)


def test_the_guiding_gradient(pair, comparison):
    images, x, t = noisy(pair)
    theirs = pair.theirs.cond_fn(PROMPTS, 3.0)(images, torch.from_numpy(t))
    text = jax.jit(pair.ours.encode_text)(pair.params, *ClipTokenizer().padded(PROMPTS))
    ours = jax.jit(pair.ours.guidance)(pair.params, x, t, text, 3.0)
    comparison.check("clip, gradient", pair.size, ours.transpose(0, 3, 1, 2), theirs, GRADIENT_TOLERANCE)
