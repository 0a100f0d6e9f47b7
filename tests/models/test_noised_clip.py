"""The noised CLIP against the PyTorch reference: embeddings and the guiding gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.keymap import clip_keymap
from glide_jax.errors import GlideError
from glide_jax.models import ClipImageConfig, ClipTextConfig, NoisedClip
from glide_jax.tokenizer import ClipTokenizer
from tests.parity.recipe import clip_manifest, clip_model, clip_params, draw, golden_arrays, relative_error

TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
PROMPTS = ["an oil painting of a corgi", "a red bicycle"]


def noisy_images(size):
    return np.tanh(draw(f"clip/{size}/x", (2, 3, 64, 64))).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("size", ["tiny", "full"])
@pytest.mark.parametrize("tower", ["text", "image"])
def test_keys_and_shapes_equal_the_manifest(size, tower):
    abstract = clip_model(size).abstract_params()[tower]
    entries = clip_keymap({tower: abstract})
    assert {e.torch: list(e.torch_shape(leaf_at({tower: abstract}, e.path).shape)) for e in entries} == clip_manifest()[
        size
    ][tower]
    assert [e.torch for e in entries] == list(clip_manifest()[size][tower])
    assert len({e.path for e in entries}) == len(entries) == len(jax.tree.leaves(abstract))


def leaf_at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


@pytest.fixture(scope="module")
def tiny():
    model = clip_model("tiny")
    return model, clip_params(model, "tiny"), golden_arrays("clip_tiny")


def check_golden(model, params, size):
    golden = golden_arrays(f"clip_{size}")
    text = jax.jit(model.encode_text)(params, golden["tokens"], golden["lengths"])
    assert relative_error(text, golden["text_embeddings"]) < TOLERANCE
    x, t = noisy_images(size), jnp.asarray(golden["t"], jnp.float32)
    assert relative_error(jax.jit(model.encode_image)(params, x, t), golden["image_embeddings"]) < TOLERANCE
    gradient = jax.jit(model.guidance)(params, x, t, text, 3.0)
    assert relative_error(gradient.transpose(0, 3, 1, 2), golden["grad"]) < GRADIENT_TOLERANCE


def test_tiny_model_equals_the_reference(tiny):
    check_golden(tiny[0], tiny[1], "tiny")


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_full_model_equals_the_reference():
    model = clip_model("full")
    check_golden(model, clip_params(model, "full"), "full")


def test_prompts_tokenise_to_the_reference_ids(tiny):
    tokens, lengths = ClipTokenizer().padded(PROMPTS)
    np.testing.assert_array_equal(tokens, tiny[2]["tokens"])
    np.testing.assert_array_equal(lengths, tiny[2]["lengths"])


def test_padding_after_the_end_token_is_never_seen(tiny):
    model, params, golden = tiny
    other = np.where(np.arange(77) < golden["lengths"][:, None], golden["tokens"], 1234)
    encode = jax.jit(model.encode_text)
    np.testing.assert_array_equal(
        encode(params, other, golden["lengths"]), encode(params, golden["tokens"], golden["lengths"])
    )


def test_fractional_timesteps_take_the_nearest_row(tiny):
    model, params, _ = tiny
    encode = jax.jit(model.encode_image)
    x = noisy_images("tiny")
    near = encode(params, x, jnp.array([0.4, 699.6]))
    np.testing.assert_array_equal(near, encode(params, x, jnp.array([0, 700])))
    assert not np.allclose(near, encode(params, x, jnp.array([1, 699])), atol=1e-3)


def test_guidance_of_a_row_depends_on_that_row_alone(tiny):
    model, params, golden = tiny
    x, t, text = noisy_images("tiny"), jnp.array([0.0, 700.0]), golden["text_embeddings"]
    both = jax.jit(model.guidance)(params, x, t, text)
    one = jax.jit(model.guidance)(params, x[1:], t[1:], text[1:])
    assert relative_error(one[0], np.asarray(both[1])) < 1e-5


def test_bfloat16_compute_stays_close(tiny):
    _, params, golden = tiny
    half = clip_model("tiny", "bfloat16")
    image = jax.jit(half.encode_image)(params, noisy_images("tiny"), jnp.asarray(golden["t"]))
    text = jax.jit(half.encode_text)(params, golden["tokens"], golden["lengths"])
    assert image.dtype == text.dtype == jnp.float32
    for ours, reference in ((image, golden["image_embeddings"]), (text, golden["text_embeddings"])):
        cosine = np.sum(ours * reference, axis=-1)
        assert np.all(cosine > 0.999)
        assert np.any(cosine < 1 - 1e-7), "computed in float32"


def test_init_has_the_abstract_shapes():
    model = clip_model("tiny")
    params = jax.jit(model.init)(jax.random.key(0))
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
    assert described == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), model.abstract_params())
    assert 0.015 < float(params["text"]["token_embedding"].std()) < 0.025


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NoisedClip(dtype="float16"), "'float16' is not supported"),
        (lambda: NoisedClip(ClipTextConfig(n_embd=8)), "n_embd 8 is not the image tower's 512"),
        (lambda: ClipImageConfig(patch_size=5), "must be divisible by patch_size 5"),
        (lambda: ClipTextConfig(n_xf_blocks_text=0), "n_xf_blocks_text must be at least 1, not 0"),
    ],
)
def test_bad_options_get_one_line(build, message):
    with pytest.raises(GlideError, match=message):
        build()


def test_a_picture_of_another_size_is_refused(tiny):
    model, params, _ = tiny
    with pytest.raises(GlideError, match="reads 64 px images, not 32 x 32"):
        model.encode_image(params, jnp.zeros((1, 32, 32, 3)), jnp.zeros(1))
