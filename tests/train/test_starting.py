"""Starting a model from another: one that inpaints from a plain one, one of another size."""

from dataclasses import asdict, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.checkpoint import save_weights
from glide_jax.errors import GlideError
from glide_jax.models import Conditioning, Glide, ModelConfig
from glide_jax.train.starting import load_starting_weights
from tests.tiny.models import BASE, random_weights

SIDE = BASE.image_size
UPSAMPLER = replace(BASE, super_res=True, low_res_size=SIDE // 2)


@pytest.mark.parametrize("plain", [BASE, UPSAMPLER], ids=["base", "upsampler"])
def test_update_0_equals_the_plain_model(plain, tmp_path):
    weights = random_weights(Glide(plain).abstract_params())
    save_weights(tmp_path / "plain", weights, {"model": asdict(plain)})
    wide = Glide(replace(plain, inpaint=True))
    params = load_starting_weights(str(tmp_path / "plain"), wide.config, wide.abstract_params())
    random = np.random.RandomState(0)
    x, image = (jnp.asarray(random.standard_normal((2, SIDE, SIDE, 3)), jnp.float32) for _ in range(2))
    low_res = (
        jnp.asarray(random.standard_normal((2, SIDE // 2, SIDE // 2, 3)), jnp.float32) if plain.super_res else None
    )
    mask = jnp.asarray(random.randint(0, 2, (2, SIDE, SIDE, 1)), jnp.float32)
    t = jnp.array([7.0, 700.0])

    @partial(jax.jit, static_argnums=0)
    def output(model, params, *known):
        text = model.encode_text(params, jnp.ones((2, 8), jnp.int32), jnp.ones((2, 8), bool))
        return model(params, x, t, Conditioning(text, low_res, *known))

    expected = output(Glide(plain), weights)
    np.testing.assert_allclose(output(wide, params, image, mask), expected, atol=1e-5)
    changed = jax.tree.map(jnp.asarray, params)
    kernel = changed["unet"]["input_conv"]["kernel"]
    changed["unet"]["input_conv"]["kernel"] = kernel.at[:, :, 3:7].set(0.1)
    assert np.abs(output(wide, changed, image, mask) - expected).max() > 1e-3


def test_a_model_of_another_size_starts_from_the_same_weights(tmp_path):
    weights = random_weights(Glide(UPSAMPLER).abstract_params())
    save_weights(tmp_path / "small", weights, {"model": asdict(UPSAMPLER)})
    doubled = tuple(2 * side for side in UPSAMPLER.attention_resolutions)
    large = Glide(replace(UPSAMPLER, image_size=2 * SIDE, low_res_size=SIDE, attention_resolutions=doubled))
    params = load_starting_weights(str(tmp_path / "small"), large.config, large.abstract_params())
    jax.tree.map(np.testing.assert_array_equal, params, weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low_res_size": 8}, r"it needs attention_resolutions \(16,\), not \(8,\)$"),
        ({"attention_resolutions": (16,)}, "it needs low_res_size 8, not 4$"),
    ],
    ids=["attention at another level", "another factor"],
)
def test_another_size_has_the_same_fractions(change, message, tmp_path):
    save_weights(tmp_path / "small", random_weights(Glide(UPSAMPLER).abstract_params()), {"model": asdict(UPSAMPLER)})
    large = Glide(replace(UPSAMPLER, image_size=2 * SIDE, **change))
    with pytest.raises(GlideError, match=message):
        load_starting_weights(str(tmp_path / "small"), large.config, large.abstract_params())


def test_other_differences_are_refused(tmp_path):
    save_weights(tmp_path / "plain", random_weights(Glide(BASE).abstract_params()), {"model": asdict(BASE)})
    deeper = Glide(replace(BASE, inpaint=True, xf_layers=2))
    with pytest.raises(GlideError, match="xf_layers: 1 there, 2 here"):
        load_starting_weights(str(tmp_path / "plain"), deeper.config, deeper.abstract_params())


def test_an_inpainting_checkpoint_starts_no_plain_model(tmp_path):
    wide: ModelConfig = replace(BASE, inpaint=True)
    save_weights(tmp_path / "wide", random_weights(Glide(wide).abstract_params()), {"model": asdict(wide)})
    with pytest.raises(GlideError, match="inpaint: True there, False here"):
        load_starting_weights(str(tmp_path / "wide"), BASE, Glide(BASE).abstract_params())
