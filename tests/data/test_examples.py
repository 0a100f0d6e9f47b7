import numpy as np
import pytest
from PIL import Image

from glide_jax.data.config import DataConfig
from glide_jax.data.examples import Images
from glide_jax.data.source import BadSample
from glide_jax.data.sources.webdataset import WebDataset
from glide_jax.data.transforms import Size
from glide_jax.errors import GlideError

SQUARE = Size.square(8)


class CountedSource:
    """A source that notes every read."""

    resumable = True

    def __init__(self, source):
        self.source, self.counts, self.reads = source, source.counts, []

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        self.reads.append(index)
        return self.source[index]

    def named(self, index):
        return self.source.named(index)


@pytest.fixture
def open_images(numbered_shards):
    def open_images(**options):
        config = DataConfig(path=numbered_shards, **options)
        source = CountedSource(WebDataset(config))
        return Images(source, config), source.reads

    return open_images


def test_centred_images_are_finished_and_random_ones_whole(open_images):
    centred, whole = (open_images(crop=crop)[0].read(3, SQUARE) for crop in ("center", "random"))
    assert (centred.image.size, whole.image.size) == ((8, 8), (16, 16))
    assert centred.captions == whole.captions == ("number 3",)
    np.testing.assert_array_equal(np.asarray(centred.image), np.asarray(whole.image)[:8, :8])


def test_squashing_and_trimming_are_done_before_the_size(write_shard, encode):
    image = Image.new("RGB", (40, 20), "white")
    image.paste((200, 0, 0), (0, 0, 20, 10))
    path = str(write_shard("a.tar", [{"png": encode(image), "txt": "a red field"}]))

    def corner(**options):
        config = DataConfig(path=path, **options)
        return np.asarray(Images(WebDataset(config), config).read(0, SQUARE).image)[-1, -1].tolist()

    assert corner(crop="squash") == [255, 255, 255]
    assert corner(crop="squash", trim_white=True) == corner(trim_white=True) == [200, 0, 0]
    config = DataConfig(path=path, crop="random", trim_white=True)
    assert Images(WebDataset(config), config).read(0, SQUARE).image.size == (20, 10)


@pytest.mark.parametrize("error", [OSError("stale file handle"), MemoryError(), ValueError("from a library")])
def test_whatever_a_read_raises_costs_one_sample(numbered_shards, error):
    config = DataConfig(path=numbered_shards)
    source = CountedSource(WebDataset(config))
    images = Images(source, config)

    class Failing:
        def __getitem__(self, index):
            raise error

        def named(self, index):
            return f"sample {index}"

    source.source = Failing()
    with pytest.raises(BadSample, match=f"^failed with {type(error).__name__}$"):
        images.read(0, SQUARE)
    assert images.counts == {"read": 1, f"failed with {type(error).__name__}": 1}


@pytest.mark.parametrize("crop", ["center", "random"])
def test_a_set_that_fits_is_read_once(open_images, crop):
    images, reads = open_images(crop=crop)
    first = [images.read(i, SQUARE) for i in range(37)]
    again = [images.read(i, SQUARE) for i in range(37)]
    assert reads == list(range(37))
    for a, b in zip(first, again, strict=True):
        assert a.captions == b.captions
        np.testing.assert_array_equal(np.asarray(a.image), np.asarray(b.image))


def test_a_set_that_does_not_fit_is_not_kept_at_all(write_shard, encode, numbered):
    big = {"png": encode(Image.effect_noise((700, 700), 50).convert("RGB")), "txt": "1.47 MB decoded"}
    path = write_shard("a.tar", [big, numbered(1), big])
    config = DataConfig(path=str(path), crop="random", cache_mb=2)
    source = CountedSource(WebDataset(config))
    images = Images(source, config)
    for i in (0, 1, 0, 1, 2, 0, 1, 1):
        assert images.read(i, SQUARE).image.width == (16 if i == 1 else 700)
    assert source.reads == [0, 1, 2, 0, 1, 1]


def test_no_memory_when_switched_off(open_images):
    images, reads = open_images(cache_mb=0)
    assert [images.read(5, SQUARE).captions for _ in range(3)] == [("number 5",)] * 3
    assert reads == [5, 5, 5]


@pytest.fixture
def half_bad(write_shard, numbered):
    samples = [numbered(i) | ({"png": b"damaged"} if i % 2 else {}) for i in range(10)]
    return str(write_shard("half.tar", [*samples, {"png": b"0", "txt": ""}]))


def read_all(images, times=1):
    for i in list(range(len(images))) * times:
        try:
            images.read(i, SQUARE)
        except BadSample:
            continue


def test_bad_samples_are_counted_beside_those_left_out(half_bad):
    config = DataConfig(path=half_bad)
    images = Images(WebDataset(config), config)
    read_all(images)
    assert images.report() == {"usable": 10, "read": 10, "corrupt image": 5, "empty caption": 1}


@pytest.mark.parametrize(("bad_share", "stops"), [(0.0, True), (0.49, True), (0.5, False), (1.0, False)])
def test_training_stops_above_the_configured_share(half_bad, bad_share, stops):
    config = DataConfig(path=half_bad, bad_share=bad_share)
    images = Images(WebDataset(config), config)
    images.check_bad_share()
    read_all(images, times=20)
    if stops:
        with pytest.raises(
            GlideError, match=r"100 of 200 samples were unusable \(corrupt image: 100, as .*/half\.tar, sample 1\)"
        ):
            images.check_bad_share()
    else:
        images.check_bad_share()


def test_a_few_early_bad_samples_do_not_stop(half_bad):
    config = DataConfig(path=half_bad, bad_share=0.1)
    images = Images(WebDataset(config), config)
    read_all(images)
    images.check_bad_share()
