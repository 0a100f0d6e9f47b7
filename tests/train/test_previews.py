"""Sample grids: images for captions; what was given, the sample and the ground truth where images are given."""

from dataclasses import replace

import numpy as np
import pytest

from glide_jax.data.examples import Shapes, empty_batch
from glide_jax.errors import GlideError
from glide_jax.sample import Pipeline, SampleOptions
from glide_jax.train.config import PreviewConfig
from glide_jax.train.previews import Previews, load_preview_upsampler
from tests.tiny.models import BASE, UPSAMPLER, random_model, save_model

SIDE = BASE.image_size
OPTIONS = SampleOptions.of(num_steps=2, guidance_scale=1.0)


def examples(low_res):
    batch = empty_batch(Shapes(SIDE, 8, low_res), 2)
    batch.arrays["image"][:] = np.random.RandomState(0).randint(0, 256, (2, SIDE, SIDE, 3))
    if low_res:
        batch.arrays["low_res"][:] = batch.arrays["image"][:, ::2, ::2]
    return batch._replace(captions=["a cat", "a dog"])


def test_levels_that_make_no_sample_are_refused_at_once():
    options = SampleOptions.of(num_steps=1)
    with pytest.raises(GlideError, match="take more steps, or schedule trailing"):
        Previews(random_model().stage, PreviewConfig(options=options), examples(None))


@pytest.mark.parametrize(
    ("changes", "columns"),
    [({}, 1), ({"inpaint": True}, 3), ({"super_res": True, "low_res_size": 4, "inpaint": True}, 4)],
)  # fmt: skip
def test_what_was_given_the_sample_and_the_ground_truth(changes, columns):
    model = random_model(replace(BASE, **changes))
    batch = examples(4 if "super_res" in changes else None)
    previews = Previews(model.stage, PreviewConfig(options=OPTIONS), batch)
    sheet = previews.sample(model.params)
    cell = sheet[4:, 4:]
    factor = 96 // SIDE
    first = cell[: SIDE * factor : factor, : SIDE * columns * factor : factor]
    assert first.shape == (SIDE, SIDE * columns, 3)
    if columns > 1:
        np.testing.assert_array_equal(first[:, -SIDE:], batch.arrays["image"][0])
    if "inpaint" in changes:
        seen, sample = first[:, -3 * SIDE : -2 * SIDE], first[:, -2 * SIDE : -SIDE]
        known = (seen == batch.arrays["image"][0]).all(axis=-1)
        assert 0.1 < known.mean() < 1
        assert (np.abs(sample[known].astype(int) - seen[known]) <= 1).all()
        assert (seen[~known] == 128).all()
    assert (previews.sample(model.params) == sheet).all()


def test_a_base_model_is_shown_through_a_given_upsampler_too(tmp_path):
    strength = 0.5
    config = PreviewConfig(
        upsampler=save_model(tmp_path / "up", UPSAMPLER), upsampler_strength=strength, options=OPTIONS
    )
    base = random_model()
    sheet = Previews(base.stage, config, examples(None), load_preview_upsampler(config, BASE)).sample(base.params)
    pipeline, options = Pipeline(base, random_model(UPSAMPLER)), {"strength": strength}
    expected = pipeline(["a cat", "a dog"], num_steps=2, guidance_scale=1.0, upsampler_options=options)
    first = sheet[4:, 4:][:96:6, :192:6]
    np.testing.assert_array_equal(first[::2, : 2 * SIDE : 2], expected.small[0])
    assert (np.abs(first[:, 2 * SIDE :].astype(int) - expected.images[0]) <= 1).all()


@pytest.mark.parametrize(
    ("upsampler", "model", "message"),
    [
        (BASE, BASE, "is a base model"),
        (UPSAMPLER, replace(BASE, image_size=16), "enlarges images of 8 pixels; the base generates 16"),
        (UPSAMPLER, UPSAMPLER, "needs a base model"),
        (replace(UPSAMPLER, inpaint=True), BASE, "must not be an inpainting one"),
    ],
)
def test_an_upsampler_that_does_not_fit_is_refused(tmp_path, upsampler, model, message):
    config = PreviewConfig(upsampler=save_model(tmp_path / "up", upsampler))
    with pytest.raises(GlideError, match=message):
        load_preview_upsampler(config, model)


def test_an_impossible_strength_is_refused_before_training():
    with pytest.raises(GlideError, match=r"upsampler_strength must be in \[0, 1\], not 1.5"):
        PreviewConfig(upsampler_strength=1.5)


@pytest.mark.parametrize("count", [0, -1])
def test_an_impossible_count_is_refused_before_training(count):
    with pytest.raises(GlideError, match=f"preview.count must be at least 1, not {count}$"):
        PreviewConfig(count=count, prompts=("a cat",))
