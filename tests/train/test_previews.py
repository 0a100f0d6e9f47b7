"""Preview grids: drawn pictures for captions; given, drawn and true ones side by side where pictures are given."""

from dataclasses import replace

import numpy as np
import pytest

from glide_jax.data.batch import Shapes, empty_batch
from glide_jax.sample import SampleOptions
from glide_jax.train.config import PreviewConfig
from glide_jax.train.previews import Previews
from tests.sample.models import BASE, random_model

OPTIONS = SampleOptions(num_steps=2, guidance_scale=1.0)


def examples(low_res):
    batch = empty_batch(Shapes(16, low_res, 8), 2)
    batch.arrays["image"][:] = np.random.RandomState(0).randint(0, 256, (2, 16, 16, 3))
    if low_res:
        batch.arrays["low_res"][:] = batch.arrays["image"][:, ::2, ::2]
    return batch._replace(captions=["a cat", "a dog"])


@pytest.mark.parametrize(
    ("changes", "columns"),
    [({}, 1), ({"super_res": True, "low_res_size": 8}, 3), ({"inpaint": True}, 3),
     ({"super_res": True, "low_res_size": 8, "inpaint": True}, 4)],
)  # fmt: skip
def test_what_was_given_drawn_and_true(changes, columns):
    model = random_model(replace(BASE, **changes))
    batch = examples(8 if "super_res" in changes else None)
    previews = Previews(model.stage, PreviewConfig(options=OPTIONS), batch)
    sheet = previews.draw(model.params)
    cell = sheet[4:, 4:]
    factor = 96 // 16
    first = cell[: 16 * factor : factor, : 16 * columns * factor : factor]
    assert first.shape == (16, 16 * columns, 3)
    if columns > 1:
        np.testing.assert_array_equal(first[:, -16:], batch.arrays["image"][0])
    if "inpaint" in changes:
        seen, drawn = first[:, -48:-32], first[:, -32:-16]
        known = (seen == batch.arrays["image"][0]).all(axis=-1)
        assert 0.1 < known.mean() < 1
        assert (np.abs(drawn[known].astype(int) - seen[known]) <= 1).all()
        assert (seen[~known] == 128).all()
    assert (previews.draw(model.params) == sheet).all()
