"""Full forward passes: all four kinds tiny, two at the published widths, against the PyTorch reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.models import Conditioning, Glide
from tests.parity.recipe import (
    KINDS,
    draw_image,
    golden_arrays,
    golden_params,
    inpaint_mask,
    model_config,
    relative_error,
)

TOLERANCE = 1e-5


def conditioning_inputs(model: Glide, size: str, kind: str, batch: int) -> dict[str, np.ndarray]:
    side = model.config.image_size
    inputs = {}
    if model.config.super_res:
        inputs["low_res"] = np.tanh(draw_image(f"forward/{size}/{kind}/low_res", (batch, 3, 64, 64)))
    if model.config.inpaint:
        inputs["inpaint_image"] = np.tanh(draw_image(f"forward/{size}/{kind}/inpaint_image", (batch, 3, side, side)))
        inputs["inpaint_mask"] = inpaint_mask(batch, side)
    return inputs


def check_forward(size: str, kind: str, batch: int) -> None:
    golden = golden_arrays(f"forward_{size}_{kind}")
    model = Glide(model_config(size, kind))
    params = golden_params(model, f"{size}/{kind}")
    side = model.config.image_size
    x = draw_image(f"forward/{size}/{kind}/x", (batch, 3, side, side))
    inputs = conditioning_inputs(model, size, kind, batch)

    features = jax.jit(model.text_features)(params, golden["tokens"], golden["mask"])
    assert relative_error(features.summary, golden["xf_proj"]) < TOLERANCE
    assert relative_error(features.tokens.transpose(0, 2, 1), golden["xf_out"]) < TOLERANCE

    @jax.jit
    def forward(params, x, t, tokens, mask, inputs):
        return model(params, x, t, Conditioning(model.encode_text(params, tokens, mask), **inputs))

    y = forward(params, x, jnp.asarray(golden["timesteps"], jnp.float32), golden["tokens"], golden["mask"], inputs)
    stride = int(golden["stride"])
    assert relative_error(y.transpose(0, 3, 1, 2)[:, :, ::stride, ::stride], golden["y"]) < TOLERANCE
    y = np.asarray(y, np.float64)
    assert relative_error(y.mean((1, 2)), golden["y_mean"]) < TOLERANCE
    assert relative_error(y.std((1, 2)), golden["y_std"]) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_tiny_forward_equals_the_reference(kind):
    check_forward("tiny", kind, batch=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["base", "upsample-inpaint"])  # the other two have no part that these have not
def test_full_forward_equals_the_reference(kind):
    check_forward("full", kind, batch=1)
