import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from glide_jax.data.config import DataConfig
from glide_jax.data.loader import open_data
from glide_jax.errors import GlideError
from glide_jax.tokenizer import GlideTokenizer
from tests.data.streams import AUGMENTED, CONTEXT, assert_same, take


def test_a_batch_has_the_stated_arrays(open_stream):
    batch = next(open_stream(batch_size=4, image_size=16, low_res_size=4, uncond_p=0.0))
    described = {name: (array.dtype.name, array.shape) for name, array in batch.arrays.items()}
    assert described == {
        "image": ("uint8", (4, 16, 16, 3)),
        "low_res": ("uint8", (4, 4, 4, 3)),
        "tokens": ("int32", (4, CONTEXT)),
        "mask": ("bool", (4, CONTEXT)),
        "index": ("int32", (4,)),
        "weight": ("float32", (4,)),
    }
    tokens, mask = GlideTokenizer().padded(batch.captions, CONTEXT)
    np.testing.assert_array_equal(batch.arrays["tokens"], tokens)
    np.testing.assert_array_equal(batch.arrays["mask"], mask)
    np.testing.assert_array_equal(batch.arrays["index"], range(4))
    np.testing.assert_array_equal(batch.arrays["weight"], 1.0)


def test_images_and_captions_stay_together(open_stream):
    for batch in take(open_stream(**AUGMENTED), 10):
        numbers = [int(caption.removeprefix("number ")) for caption in batch.captions]
        np.testing.assert_array_equal(batch.arrays["image"][:, 3, 3], [(i, 255 - i, 7) for i in numbers])


def test_every_epoch_is_another_permutation_of_all_samples(open_stream):
    stream = open_stream(batch_size=10)
    assert stream.examples_per_epoch == 37
    captions = [caption for batch in take(stream, 12) for caption in batch.captions]
    epochs = [captions[start : start + 37] for start in (0, 37, 74)]
    everything = {f"number {i}" for i in range(37)}
    assert all(set(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert (stream.position, stream.epoch) == (120, 120 / 37)
    figures = stream.figures()
    assert figures.pop("data/read") >= 120
    assert figures == {"examples": 120, "epoch": 120 / 37, "data/usable": 37}


def test_resampling_is_with_replacement_by_position(open_stream):
    captions = [caption for batch in take(open_stream(batch_size=37, resampled=True), 10) for caption in batch.captions]
    assert all(len(set(captions[start : start + 37])) < 37 for start in range(0, 370, 37))
    assert set(captions) == {f"number {i}" for i in range(37)}
    resumed = take(open_stream(batch_size=37, resampled=True, position=185), 2)
    assert [caption for batch in resumed for caption in batch.captions] == captions[185 : 185 + 74]


def test_the_seed_fixes_everything_and_another_seed_changes_it(open_stream):
    first, again, other = (take(open_stream(seed=seed, **AUGMENTED), 5) for seed in (3, 3, 4))
    for a, b in zip(first, again, strict=True):
        assert_same(a, b)
    assert first[0].captions != other[0].captions


@pytest.mark.parametrize("consumed", [0, 1, 4, 9])
def test_a_stream_goes_on_bit_for_bit_from_its_position(open_stream, consumed):
    whole = open_stream(**AUGMENTED)
    take(whole, consumed)
    assert whole.position == 8 * consumed
    resumed = open_stream(position=whole.position, **AUGMENTED)
    for a, b in zip(take(whole, 6), take(resumed, 6), strict=True):
        assert_same(a, b)


def test_a_far_position_opens_as_fast_as_the_first(open_stream):
    far = 10**12 + 5
    batch = next(open_stream(position=far))
    np.testing.assert_array_equal(batch.arrays["index"], (far + np.arange(8)) % 2**31)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_batch_without_overlap(open_stream, processes):
    whole = take(open_stream(**AUGMENTED), 6)
    parts = [take(open_stream(processes=(p, processes), **AUGMENTED), 6) for p in range(processes)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert batch.captions == [caption for share in shares for caption in share.captions]
        for name, array in batch.arrays.items():
            np.testing.assert_array_equal(array, np.concatenate([share.arrays[name] for share in shares]))


def test_positions_are_global(open_stream):
    stream = open_stream(processes=(1, 2))
    take(stream, 3)
    assert stream.position == 24


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 5}, {"cache_mb": 0}])
def test_threads_and_memory_change_nothing(open_stream, options):
    for crop in ("center", "random"):
        expected = take(open_stream(**AUGMENTED | {"crop": crop}), 10)
        for a, b in zip(expected, take(open_stream(**AUGMENTED | {"crop": crop} | options), 10), strict=True):
            assert_same(a, b)


def test_captions_are_dropped_at_the_stated_rate(open_stream):
    stream = open_stream(batch_size=100, uncond_p=0.2)
    masks = np.concatenate([batch.arrays["mask"] for batch in take(stream, 20)])
    assert abs((~masks.any(-1)).mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / len(masks))


@pytest.mark.parametrize(("uncond_p", "dropped"), [(0.0, False), (1.0, True)])
def test_captions_are_never_or_always_dropped_at_the_ends(open_stream, uncond_p, dropped):
    batch = next(open_stream(batch_size=64, uncond_p=uncond_p))
    assert (~batch.arrays["mask"].any(-1) == dropped).all()
    assert all(batch.captions)
    if dropped:
        np.testing.assert_array_equal(batch.arrays["tokens"], GlideTokenizer.end_token)


@pytest.fixture
def stripes(write_shard, encode):
    """A shard with one 64-pixel image, dark on the left and bright on the right, with a fine pattern."""
    x = np.arange(64)[None, :, None]
    pixels = np.broadcast_to(x * 3 + 40 * (x % 2), (64, 64, 3)).astype(np.uint8)
    return str(write_shard("stripes.tar", [{"png": encode(pixels), "txt": "stripes"}]))


def test_flips_happen_at_the_stated_rate(open_stream, stripes):
    images = next(open_stream(batch_size=400, path=stripes, hflip_p=0.25)).arrays["image"].astype(int)
    flipped = images[:, 0, 0, 0] > images[:, 0, -1, 0]
    assert abs(flipped.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)
    np.testing.assert_array_equal(images[flipped][0], images[~flipped][0][:, ::-1])


def test_random_crops_differ_and_stay_inside(open_stream, stripes):
    batch = next(open_stream(batch_size=64, path=stripes, crop="random", resize_ratio=0.25))
    assert len(np.unique(batch.arrays["image"], axis=0)) > 50


def test_the_low_resolution_image_is_of_the_same_crop(open_stream, stripes):
    options = {"crop": "random", "resize_ratio": 0.25, "hflip_p": 0.5}
    batch = next(open_stream(batch_size=32, path=stripes, image_size=32, low_res_size=8, **options))
    high = batch.arrays["image"].astype(float)
    averaged = high.reshape(32, 8, 4, 8, 4, 3).mean((2, 4))
    np.testing.assert_allclose(batch.arrays["low_res"], averaged, atol=12)
    errors = np.abs(batch.arrays["low_res"] - averaged).mean((1, 2, 3))
    assert (np.abs(np.roll(batch.arrays["low_res"], 1, 0) - averaged).mean((1, 2, 3)) > 2 * errors).mean() > 0.9


@pytest.fixture
def with_faults(write_shard, numbered):
    """Twelve samples of which 3 and 7 are damaged and 5 has a blank caption."""
    faults = {3: {"png": b"damaged"}, 5: {"txt": "  \n"}, 7: {"png": numbered(7)["png"][:40]}}
    return str(write_shard("faults.tar", [numbered(i) | faults.get(i, {}) for i in range(12)]))


def test_bad_samples_are_replaced_by_whole_good_ones(open_stream, with_faults):
    stream = open_stream(batch_size=12, path=with_faults, bad_share=0.5)
    captions = Counter()
    for batch in take(stream, 20):
        numbers = [int(caption.removeprefix("number ")) for caption in batch.captions]
        np.testing.assert_array_equal(batch.arrays["image"][:, 3, 3], [(i, 255 - i, 7) for i in numbers])
        captions.update(numbers)
    assert set(captions) == set(range(12)) - {3, 5, 7}
    assert min(captions.values()) >= 20
    report = stream.report()
    assert report["usable"] == 12
    assert report["corrupt image"] >= 40
    assert report["empty caption"] >= 20
    assert report["read"] >= 240 + 60


def test_replacements_are_the_same_for_every_process_and_after_resuming(open_stream, with_faults):
    options = {"batch_size": 12, "path": with_faults, "bad_share": 0.5}
    whole = take(open_stream(**options), 6)
    parts = [take(open_stream(processes=(p, 2), **options), 6) for p in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert batch.captions == first.captions + second.captions
    assert next(open_stream(position=48, **options)).captions == whole[4].captions


def test_too_many_bad_samples_end_training_with_the_counts(open_stream, with_faults):
    stream = open_stream(batch_size=12, path=with_faults, bad_share=0.1)
    with pytest.raises(GlideError, match=r"unusable \(corrupt image: \d+, as .*; empty caption: \d+, as .*\)"):
        take(stream, 50)


def test_nothing_readable_ends_training_whatever_the_share(open_stream, write_shard):
    path = str(write_shard("bad.tar", [{"png": b"damaged", "txt": "a"}] * 3))
    with pytest.raises(GlideError, match=r"32 samples in a row were unusable .*corrupt image: "):
        next(open_stream(path=path, bad_share=1.0))


def test_a_shard_that_vanishes_while_training_costs_its_samples(open_stream, tmp_path):
    stream = open_stream(bad_share=0.6, batch_size=37, cache_mb=0)
    take(stream, 2)
    (tmp_path / "set-001.tar").unlink()
    later = take(stream, 10)[5:]
    lost = {f"number {i}" for i in range(10, 25)}
    assert not lost & {caption for batch in later for caption in batch.captions}
    assert stream.report()["missing shard"] > 50


def test_waiting_is_measured(open_stream):
    stream = open_stream()
    assert stream.wait_seconds == 0.0
    next(stream)
    assert 0.0 < stream.wait_seconds < 10.0


def test_leaving_the_block_ends_the_threads(open_stream):
    with open_stream() as stream:
        next(stream)
        assert [thread for thread in threading.enumerate() if thread.name.startswith("data-")]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("data-")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": ""}, "no data path given: add --config.data.path="),
        ({"batch_size": 9, "processes": (0, 2)}, "batch_size 9 must be a positive multiple of 2 processes"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"processes": (2, 2)}, "process 2 is not one of 2"),
        ({"position": -1}, "position must not be negative"),
        ({"image_size": 8, "low_res_size": 3}, "image_size 8 must be a positive multiple of low_res_size 3"),
    ],
)
def test_impossible_arguments_are_refused_before_work(open_stream, arguments, message):
    with pytest.raises(GlideError, match=message):
        open_stream(**arguments)


def test_a_few_images_are_all_read_before_anything_is_made_of_them(tmp_path, encode):
    for number in range(12):
        image = encode(Image.new("RGB", (16, 16)))
        (tmp_path / f"{number:02}.png").write_bytes(b"damaged" if number < 3 else image)
        (tmp_path / f"{number:02}.txt").write_text("a cat")
    config = DataConfig(source="folder", path=(str(tmp_path),) * 2, workers=1)
    with pytest.raises(GlideError, match=r"^3 of 12 samples were unusable \(corrupt image: 3, as .*/00\.png\), more"):
        open_data(config, batch_size=4, seed=0, image_size=8, text_ctx=16)
    with open_data(replace(config, bad_share=0.25), batch_size=4, seed=0, image_size=8, text_ctx=16) as stream:
        next(stream)
