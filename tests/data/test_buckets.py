"""Aspect-ratio buckets: which image goes where, and batches that are a function of seed and position all the same."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from glide_jax.data.buckets import Buckets, measured, nearest
from glide_jax.data.config import DataConfig, FilterConfig
from glide_jax.data.loader import fixed_examples, open_data, open_indexed
from glide_jax.data.shards import spans as spans_module
from glide_jax.data.source import Unavailable
from glide_jax.data.sources.folder import Folder
from glide_jax.data.transforms import Size
from glide_jax.errors import GlideError
from tests.data.streams import AUGMENTED, CONTEXT, assert_same, take

BUCKETS = ("8x8", "8x12", "12x6")
# Height and width of the samples, and how many are so: 20 squares, 10 wide ones, 7 high ones.
SHAPES = [(16, 16)] * 20 + [(16, 24)] * 6 + [(20, 36)] * 4 + [(24, 12)] * 7


def coloured(i, height, width):
    return np.broadcast_to(np.array([i, 255 - i, 7], np.uint8), (height, width, 3)).copy()


@pytest.fixture
def shapes(write_shard, encode, tmp_path):
    """A pattern for two shards: sample i has shape i of `SHAPES`, colour (i, 255 - i, 7) and the text "number i"."""
    samples = [{"png": encode(coloured(i, *SHAPES[i])), "txt": f"number {i}"} for i in range(37)]
    write_shard("shape-0.tar", samples[::2])
    write_shard("shape-1.tar", samples[1::2])
    return str(tmp_path / "shape-{0..1}.tar")


@pytest.fixture
def open_buckets(open_stream, shapes):
    def open_buckets(**options):
        return open_stream(**{"path": shapes, "buckets": BUCKETS, "batch_size": 4} | options)

    return open_buckets


def numbers(batch):
    return [int(caption.removeprefix("number ")) for caption in batch.captions]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(64, 64, "8x8"), (100, 219, "8x32"), (100, 181, "8x8"), (999, 1, "16x4"), (1, 999, "8x32")],
)
def test_an_image_goes_to_the_nearest_ratio_by_its_logarithm(height, width, expected):
    sizes = [Size(16, 4), Size(8, 8), Size(8, 32)]
    (found,) = nearest(sizes, np.array([(height, width)], np.int32))
    assert str(sizes[found]) == expected


def test_of_two_sizes_equally_near_it_is_the_higher_and_what_has_no_size_is_left_out():
    for wide, high in ((Size(48, 80), Size(80, 48)), (Size(3, 7), Size(7, 3)), (Size(48, 64), Size(64, 48))):
        images = np.array([(side, side) for side in range(1, 2000, 7)] + [(0, 0)], np.int32)
        assert set(nearest([high, wide], images)[:-1]) == {0}
        assert nearest([high, wide], images)[-1] == 2


@pytest.mark.parametrize(("counts", "batch_size"), [((20, 10, 7), 4), ((1, 5, 0, 13), 16), ((3, 2), 1), ((90, 1), 8)])
def test_batches_of_every_bucket_come_once_and_in_proportion(counts, batch_size):
    sizes = [Size(8, 8 * k) for k in range(1, len(counts) + 1)]
    buckets = Buckets(sizes, np.repeat(np.arange(len(counts)), counts).astype(np.uint16), sum(counts), seed=1)
    epochs = 48
    before = [epochs * count // batch_size for count in counts]
    found, order = {size: [] for size in sizes}, []
    for position in range(0, sum(before) * batch_size, batch_size):
        bucket, shift, _ = buckets.turn(position, batch_size)
        found[bucket.size].append((position + shift) // batch_size)
        order.append(bucket.size)
    assert [sorted(each) for each in found.values()] == [list(range(end)) for end in before]
    if len(order) > 30:  # in each epoch they are mixed anew
        half = len(order) // 2
        assert order[:half] != order[half : 2 * half]
        assert sum(a != b for a, b in pairwise(order)) >= min(before)


def test_a_batch_far_away_is_found_at_once():
    assigned = np.repeat(np.arange(3), (7, 11, 13)).astype(np.uint16)
    buckets = Buckets([Size(8, 8), Size(8, 12), Size(12, 6)], assigned, 31, seed=0)
    far = 10**15
    shares = Counter(str(buckets.turn(far + 4 * k, 4).bucket.size) for k in range(31 * 4))
    for size, count in (("8x8", 7), ("8x12", 11), ("12x6", 13)):
        assert abs(shares[size] - 4 * count) <= count


def test_a_batch_holds_the_images_of_one_size_and_an_epoch_all_of_them(open_buckets):
    stream = open_buckets()
    assert {str(size): count for size, count in stream.buckets.counts.items()} == {"12x6": 7, "8x8": 20, "8x12": 10}
    wanted, seen = {(16, 16): (8, 8), (16, 24): (8, 12), (20, 36): (8, 12), (24, 12): (12, 6)}, Counter()
    for number, batch in enumerate(take(stream, 37)):
        assert {wanted[SHAPES[i]] for i in numbers(batch)} == {batch.size} == {batch.arrays["image"].shape[1:3]}
        np.testing.assert_array_equal(batch.arrays["image"][:, 3, 3], [(i, 255 - i, 7) for i in numbers(batch)])
        np.testing.assert_array_equal(batch.arrays["index"], 4 * number + np.arange(4))
        seen.update(numbers(batch))
        if number == 7:  # an epoch: 5 batches of squares, 2 of wide images, 1 of high ones, and some left over
            assert max(seen.values()) == 1
            assert [sum(SHAPES[i] in each for i in seen) for each in ([SHAPES[0]], SHAPES[20:30], SHAPES[30:])] == [
                20, 8, 4
            ]  # fmt: skip
    assert seen == dict.fromkeys(range(37), 4)


@pytest.mark.parametrize("options", [{}, {"resampled": True}])
def test_a_stream_goes_on_from_any_position_and_processes_share_each_batch(open_buckets, options):
    options |= AUGMENTED
    whole = take(open_buckets(**options), 13)
    for consumed in (1, 7, 8):
        for a, b in zip(whole[consumed:], take(open_buckets(position=4 * consumed, **options), 5), strict=False):
            assert_same(a, b)
    parts = [take(open_buckets(processes=(p, 2), workers=3 - p, **options), 13) for p in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert batch.captions == [caption for share in shares for caption in share.captions]
        for name, array in batch.arrays.items():
            np.testing.assert_array_equal(array, np.concatenate([share.arrays[name] for share in shares]))
    other = take(open_buckets(seed=1, **options), 13)
    assert [batch.size for batch in other] != [batch.size for batch in whole]


def test_neither_memory_nor_the_order_of_the_option_changes_a_batch(open_buckets):
    whole = take(open_buckets(crop="random"), 12)
    for options in ({"cache_mb": 0}, {"buckets": BUCKETS[::-1]}):
        for a, b in zip(whole, take(open_buckets(crop="random", **options), 12), strict=True):
            assert_same(a, b)


def test_another_batch_size_goes_on_at_any_position(open_buckets):
    batches = take(open_buckets(batch_size=3, position=52), 100)
    np.testing.assert_array_equal(batches[1].arrays["index"], [55, 56, 57])
    seen = Counter(number for batch in batches for number in numbers(batch))
    assert max(seen.values()) - min(seen.values()) <= 4  # of 8


def test_resampling_draws_buckets_by_their_share(open_buckets):
    batches = take(open_buckets(resampled=True, batch_size=1), 400)
    shares = Counter(str(batch.size) for batch in batches)
    for size, count in (("8x8", 20), ("8x12", 10), ("12x6", 7)):
        share = count / 37
        assert abs(shares[size] / 400 - share) < 4 * np.sqrt(share * (1 - share) / 400)


def test_an_unusable_sample_is_replaced_by_one_of_its_bucket(open_buckets, write_shard, encode):
    data = [encode(coloured(i, *SHAPES[i])) for i in range(37)]
    for i in (3, 22, 31):  # a header that is whole, before a body that is not
        data[i] = data[i][:50]
    path = write_shard("faults.tar", [{"png": each, "txt": f"number {i}"} for i, each in enumerate(data)])
    stream = open_buckets(path=str(path), bad_share=1.0)
    for batch in take(stream, 37):
        assert len({str(batch.size), *("8x8" if i < 20 else "8x12" if i < 30 else "12x6" for i in numbers(batch))}) == 1
        assert not {3, 22, 31} & {*numbers(batch)}
    assert stream.report()["corrupt image"] >= 12


WIDE = [(8, 16)] * 59


@pytest.mark.parametrize(("kept", "buckets"), [(9, {"8x8": 0, "8x16": 59}), (50, {"8x8": 1, "8x16": 59})])
def test_a_damaged_image_alone_in_its_shape_ends_no_run(open_stream, write_shard, encode, capsys, kept, buckets):
    """The first has no readable header, and is in no bucket; the second is all that its bucket has."""
    images = [encode(coloured(i, *shape)) for i, shape in enumerate(WIDE)] + [encode(coloured(59, 8, 8))[:kept]]
    path = write_shard("a.tar", [{"png": image, "txt": f"number {i}"} for i, image in enumerate(images)])
    given = {"path": str(path), "buckets": ("8x8", "8x16")}
    stream = open_stream(**given)
    assert {str(size): count for size, count in stream.buckets.counts.items()} == buckets
    whole = take(stream, 63)
    assert sum(batch.size == (8, 8) for batch in whole) == (kept == 50)
    for batch in whole:
        np.testing.assert_array_equal(batch.arrays["image"][:, 3, 3], [(i, 255 - i, 7) for i in numbers(batch)])
    report = stream.report()
    assert report["usable"] == sum(buckets.values())
    assert report["corrupt image"] == (1 if kept == 9 else 8)  # by header once, else by example
    for a, b in zip(whole[50:], take(open_stream(**given, position=400), 13), strict=True):
        assert_same(a, b)


def test_images_cover_their_bucket_or_are_pressed_into_it(open_stream, write_shard, encode):
    pixels = np.zeros((16, 64, 3), np.uint8)
    pixels[:, :14], pixels[:, 50:] = 255, 128
    path = str(
        write_shard("wide.tar", [{"png": encode(pixels), "txt": "a"}, {"png": encode(pixels[:, 24:40]), "txt": "b"}])
    )

    def wide(crop):
        stream = open_stream(path=path, buckets=("8x8", "8x16"), batch_size=1, crop=crop)
        return next(batch.arrays["image"][0, :, :, 0] for batch in stream if batch.size == (8, 16))

    assert wide("center").max() == 0
    pressed = wide("squash")[4]
    assert (pressed[1], pressed[8], pressed[14]) == (255, 0, 128)


def test_an_upsampler_gets_its_input_in_the_same_shape(open_buckets):
    for batch in take(open_buckets(image_size=8, low_res_size=4), 8):
        high = batch.arrays["image"].astype(float)
        height, width = batch.size
        assert batch.arrays["low_res"].shape == (4, height // 2, width // 2, 3)
        averaged = high.reshape(4, height // 2, 2, width // 2, 2, 3).mean((2, 4))
        np.testing.assert_allclose(batch.arrays["low_res"], averaged, atol=1)


def test_held_out_and_fixed_examples_stay_square(shapes):
    batch = fixed_examples(DataConfig(path=shapes, buckets=BUCKETS), 9, image_size=8, text_ctx=CONTEXT)
    assert batch.arrays["image"].shape == (9, 8, 8, 3)


@pytest.mark.parametrize("source", ["webdataset", "folder"])
def test_sizes_are_read_once_from_headers(source, write_shard, encode, tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a long description " * 1000  # more than is read at first; upright it is 20 x 30
    noise = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    files = {"jpg": [encode(noise, "JPEG", exif=exif), encode(noise, "JPEG"), b"damaged"], "png": [encode(noise)]}
    images = [(ending, data) for ending, each in files.items() for data in each]
    if source == "folder":
        folder = tmp_path / "images"
        folder.mkdir()
        for i, (ending, data) in enumerate(images):
            (folder / f"{i}.{ending}").write_bytes(data)
        config = DataConfig(path=str(folder), source="folder", caption_key="filename")
    else:
        path = write_shard("a.tar", [{ending: data, "txt": "a"} for ending, data in images])
        config = DataConfig(path=str(path), image_key="jpg;png")
    opened, expected = open_indexed(config), [(20, 30), (30, 20), (0, 0), (30, 20)]

    def sizes(opened, **options):
        found, left_out = measured(opened, **options)
        return list(map(tuple, found.tolist())), dict(left_out)

    assert sizes(opened) == (expected, {"corrupt image": 1})
    monkeypatch.setattr(type(opened), "image_size", lambda self, index: (3, 4))
    assert sizes(opened) == (expected, {"corrupt image": 1})
    assert sizes(opened, revalidate=True) == ([(4, 3)] * 4, {})
    monkeypatch.undo()
    file = folder / "1.jpg" if source == "folder" else path
    file.write_bytes(file.read_bytes() + bytes(1024))
    assert sizes(open_indexed(config)) == (expected, {"corrupt image": 1})


def test_folders_given_again_are_read_once(encode, tmp_path, monkeypatch):
    """As prior preservation repeats them."""
    for name, count in (("mine", 3), ("prior", 5)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"a_{i}.png").write_bytes(encode(coloured(i, 8 + i, 12)) if i else b"damaged")
    asked = Counter()

    def counting(name):
        call = getattr(Folder, name)

        def counted(source, index):
            asked[name, source._pairs[index][0]] += 1
            return call(source, index)

        monkeypatch.setattr(Folder, name, counted)

    counting("image_size")
    counting("_facts")
    mine, prior = str(tmp_path / "mine"), str(tmp_path / "prior")
    filters = FilterConfig(min_caption_length=1)
    config = DataConfig(source="folder", caption_key="filename", path=(mine, mine, prior, mine), filters=filters)
    sizes, left_out = measured(open_indexed(config))
    assert [height for height, _ in sizes] == [0, 9, 10, 0, 9, 10, 0, 9, 10, 11, 12, 0, 9, 10]
    assert left_out == {"corrupt image": 4}
    assert len(asked) == 2 * (3 + 5)
    assert set(asked.values()) == {1}


def test_an_image_that_cannot_be_read_now_is_measured_another_time(tmp_path, encode, cache_folder, monkeypatch):
    monkeypatch.setattr("glide_jax.data.sources.folder.PART", 2)
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(encode(coloured(i, 8, 12)))
    opened = open_indexed(DataConfig(path=str(tmp_path), source="folder", caption_key="filename"))
    image_size = type(opened).image_size
    for error in (Unavailable("unreadable file"), MemoryError()):

        def failing(source, index, error=error):
            if index == 3:
                raise error
            return image_size(source, index)

        monkeypatch.setattr(type(opened), "image_size", failing)
        with pytest.raises(
            GlideError, match=r"^data.buckets: cannot read the size of image 3 now \(.+\); fix"
        ) as caught:
            measured(opened)
        assert "\n" not in str(caught.value)
        assert len([*cache_folder.rglob("sizes/*")]) == 1  # what was measured before
    monkeypatch.undo()
    monkeypatch.setenv("GLIDE_JAX_CACHE", str(cache_folder))
    assert measured(opened)[0].tolist() == [[8, 12]] * 6


def test_of_a_png_in_a_shard_no_byte_is_read_twice(write_shard, encode, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (90, 60, 3), np.uint8)
    opened = open_indexed(DataConfig(path=str(write_shard("a.tar", [{"png": encode(noise), "txt": "a"}]))))
    read = []

    def read_spans(path, *spans, stamp):
        read.extend(spans)
        return spans_module.read_spans(path, *spans, stamp=stamp)

    monkeypatch.setattr("glide_jax.data.sources.webdataset.read_spans", read_spans)
    assert opened.image_size(0) == (60, 90)
    assert sum(span.size for span in read) == len(encode(noise)) > 2**13


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        (("48",), "data.buckets are HEIGHTxWIDTH in pixels, as 48x80, not '48'"),
        (("48x80 ",), "data.buckets are HEIGHTxWIDTH in pixels, as 48x80, not '48x80 '"),
        (("0x8",), "data.buckets are HEIGHTxWIDTH in pixels, as 48x80, not '0x8'"),
        (("8x8", "16x16"), "data.buckets 8x8 and 16x16 have one aspect ratio: leave one of them out"),
        (("8x12", "8x12"), "data.buckets 8x12 and 8x12 have one aspect ratio: leave one of them out"),
    ],
)
def test_impossible_buckets_are_refused(buckets, message):
    with pytest.raises(GlideError) as caught:
        DataConfig(buckets=buckets)
    assert str(caught.value) == message


def test_what_cannot_have_buckets_refuses_them(shapes):
    with pytest.raises(GlideError, match=r"^data\.buckets needs the sizes of all images"):
        DataConfig(path=shapes, source="stream", buckets=BUCKETS)
    with pytest.raises(GlideError, match=r"^data\.trim_white changes the shapes that data\.buckets goes by"):
        DataConfig(path=shapes, trim_white=True, buckets=BUCKETS)
    config = DataConfig(path=shapes, buckets=("8x8", "8x12", "9x6"))
    with pytest.raises(GlideError, match=r"^data\.buckets: 9x6 cannot be divided by 2"):
        open_data(config, image_size=8, low_res_size=4, text_ctx=CONTEXT, batch_size=4, seed=0)


def test_one_size_needs_no_sizes_of_images(open_stream):
    """So a stream may have it, and a white border may be cut off first."""
    for options in ({"source": "stream"}, {"trim_white": True}):
        assert next(open_stream(buckets=("8x12",), **options)).arrays["image"].shape == (8, 8, 12, 3)


def test_an_image_without_a_size_is_in_no_bucket(open_stream, write_shard):
    path = str(write_shard("a.tar", [{"png": b"damaged", "txt": "a"}]))
    message = r"^no image has a size that can be read \(corrupt image: 1\); "
    with pytest.raises(GlideError, match=message):
        open_stream(path=path, buckets=BUCKETS)
