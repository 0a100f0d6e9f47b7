from dataclasses import replace

import numpy as np
import pytest

from glide_jax.data.config import DataConfig
from glide_jax.data.loader import fixed_examples, open_validation
from glide_jax.errors import GlideError

SHAPES = {"image_size": 8, "text_ctx": 6}
AUGMENTED = {"crop": "random", "resize_ratio": 0.3, "hflip_p": 0.5, "uncond_p": 0.9, "workers": 2}


@pytest.fixture
def config(numbered_shards):
    return DataConfig(validation_path=numbered_shards, **AUGMENTED)


def rows(batches):
    """The rows of weight 1 as (index, caption, colour, has text)."""
    return [
        (
            int(batch.arrays["index"][i]),
            caption,
            tuple(batch.arrays["image"][i, 3, 3]),
            batch.arrays["mask"][i].any(),
        )
        for batch in batches
        for i, caption in enumerate(batch.captions)
        if batch.arrays["weight"][i]
    ]


EXPECTED = [(i, f"number {i}", (i, 255 - i, 7), True) for i in range(37)]


@pytest.mark.parametrize("batch_size", [1, 8, 37, 50])
def test_each_sample_comes_once_in_order_with_its_caption(config, batch_size):
    data = open_validation(config, batch_size=batch_size, **SHAPES)
    batches = list(data)
    assert len(batches) == len(data) == -(-37 // batch_size)
    assert {batch.arrays["image"].shape for batch in batches} == {(batch_size, 8, 8, 3)}
    assert rows(batches) == EXPECTED


def test_rows_that_fill_up_are_empty(config):
    last = list(open_validation(config, batch_size=8, **SHAPES))[-1]
    np.testing.assert_array_equal(last.arrays["weight"], [1] * 5 + [0] * 3)
    assert last.captions[5:] == [""] * 3
    assert not last.arrays["image"][5:].any()
    assert not last.arrays["mask"][5:].any()


def test_every_pass_is_the_same(config):
    data = open_validation(config, batch_size=8, **SHAPES)
    next(iter(data))
    for a, b in zip(data, data, strict=True):
        for name, array in a.arrays.items():
            np.testing.assert_array_equal(array, b.arrays[name])


def test_processes_share_the_pass(config):
    parts = [open_validation(config, batch_size=8, process_index=p, process_count=2, **SHAPES) for p in range(2)]
    assert len(parts[0]) == len(parts[1]) == 5
    shares = [list(part) for part in parts]
    assert sorted(rows(shares[0]) + rows(shares[1])) == EXPECTED
    assert len(shares[0]) == len(shares[1]) == 5


def test_an_unusable_sample_has_no_weight_and_is_counted(write_shard, numbered):
    samples = [numbered(i) | ({"png": b"damaged"} if i == 2 else {}) for i in range(5)]
    config = DataConfig(validation_path=str(write_shard("a.tar", samples)), workers=1)
    (batch,) = open_validation(config, batch_size=5, **SHAPES)
    np.testing.assert_array_equal(batch.arrays["weight"], [1, 1, 0, 1, 1])
    with pytest.raises(GlideError, match=r"1 of 5 samples were unusable \(corrupt image: 1, as .*, sample 2\)"):
        list(open_validation(replace(config, bad_share=0.0), batch_size=5, **SHAPES))


def test_no_validation_path_is_refused(numbered_shards):
    with pytest.raises(GlideError, match=r"--config\.data\.validation_path="):
        open_validation(DataConfig(path=numbered_shards), batch_size=4, **SHAPES)


def test_fixed_examples_are_different_true_samples(config, numbered_shards):
    config = replace(config, path=numbered_shards)
    batch = fixed_examples(config, 12, low_res_size=4, **SHAPES)
    found = rows([batch])
    assert len({row[0] for row in found}) == 12
    assert all(row == EXPECTED[row[0]] for row in found)
    assert batch.arrays["low_res"].shape == (12, 4, 4, 3)
    assert fixed_examples(config, 12, **SHAPES).captions == batch.captions
    assert fixed_examples(config, 12, seed=1, **SHAPES).captions != batch.captions


def test_fixed_examples_pass_over_unusable_samples(write_shard, numbered):
    samples = [numbered(i) | ({"png": b"damaged"} if i % 2 else {}) for i in range(10)]
    config = DataConfig(path=str(write_shard("a.tar", samples)))
    batch = fixed_examples(config, 8, **SHAPES)
    assert sorted(row[0] for row in rows([batch])) == [0, 2, 4, 6, 8]
    assert len(batch.captions) == len(batch.arrays["image"]) == 5
