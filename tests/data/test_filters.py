import io
import json
import math
from functools import partial

import pytest
from PIL import Image

from glide_jax.data.config import FilterConfig
from glide_jax.data.filters import Facts, Filters
from glide_jax.data.shards.captions import parse_metadata
from glide_jax.data.source import image_size

LAION = FilterConfig(
    min_size=256,
    min_aspect=0.5,
    max_aspect=2.0,
    min_similarity=0.3,
    max_similarity=0.9,
    nsfw_labels=("NSFW", "LIKELY"),
)
GOOD = {"original_width": 512, "original_height": 512, "similarity": 0.31, "NSFW": "UNLIKELY"}


def facts(metadata=None, caption="a caption", image=b""):
    data = json.dumps(metadata).encode() if isinstance(metadata, dict) else metadata
    return Facts(dict if data is None else partial(parse_metadata, data), lambda: (caption,), lambda: image_size(image))


def image(width, height, orientation=1):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height)).save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"original_width": 256, "original_height": 256}, None),
        ({"original_width": 255}, "too small"),
        ({"original_height": 255}, "too small"),
        ({"original_width": 1024}, None),
        ({"original_width": 1025}, "aspect ratio"),
        ({"original_height": 1025}, "aspect ratio"),
        # What is no size falls back on the file, which is none here.
        *(({"original_width": size}, "corrupt image") for size in (0, -1, None, "unknown", math.nan, 10**400, [])),
        ({"similarity": 0.3}, None),
        ({"similarity": 0.2999}, "similarity"),
        ({"similarity": 0.9001}, "similarity"),
        ({"similarity": "0.5"}, None),
        ({"similarity": math.nan}, "missing metadata"),
        ({"similarity": None}, "missing metadata"),
        ({"NSFW": "NSFW"}, "nsfw"),
        ({"NSFW": "likely"}, "nsfw"),
        ({"NSFW": "UNSURE"}, None),
        ({"NSFW": "3f0a"}, None),
    ],
)
def test_laion_rules_accept_and_reject(change, reason):
    assert Filters(LAION).rejection(facts(GOOD | change)) == reason


@pytest.mark.parametrize(
    ("bounds", "caption", "reason"),
    [
        ({"min_caption_length": 5}, "four", "caption length"),
        ({"min_caption_length": 5}, "fives", None),
        ({"max_caption_length": 5}, "fives", None),
        ({"max_caption_length": 5}, "sixsix", "caption length"),
        ({"skip_words": ("logo", "stock photo")}, "The LOGO.", "words"),
        ({"skip_words": ("logo", "stock photo")}, "a stock photo of a cat", "words"),
        ({"skip_words": ("logo", "stock photo")}, "logos and photos", None),
        ({"skip_words": ("logo",)}, "un catalogo", None),
        ({"skip_words": ("c++",)}, "learn C++ now", "words"),
    ],
)
def test_caption_rules_accept_and_reject(bounds, caption, reason):
    assert Filters(FilterConfig(**bounds)).rejection(facts(caption=caption)) == reason


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"lc": "en"}, None),
        ({"LANGUAGE": "EN"}, None),
        ({"lang": "de"}, None),
        ({"lc": "fr"}, "language"),
        ({"lc": None, "language": "fr"}, "language"),
        ({}, "missing metadata"),
        (None, "missing metadata"),
    ],
)
def test_languages_accept_and_reject(metadata, reason):
    assert Filters(FilterConfig(languages=("en", "DE"))).rejection(facts(metadata)) == reason


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (image(64, 40), None),
        (image(64, 39), "too small"),
        (image(82, 40), "aspect ratio"),
        (image(40, 82), None),
        (image(82, 40, orientation=6), None),
        (image(40, 82, orientation=6), "aspect ratio"),
        (b"no image", "corrupt image"),
    ],
)
def test_without_metadata_the_image_is_measured(image, reason):
    assert Filters(FilterConfig(min_size=40, max_aspect=2.0)).rejection(facts(image=image)) == reason


def test_an_absent_nsfw_label_passes_and_an_absent_number_does_not():
    without_label = {name: value for name, value in GOOD.items() if name != "NSFW"}
    without_score = {name: value for name, value in GOOD.items() if name != "similarity"}
    assert Filters(LAION).rejection(facts(without_label)) is None
    assert Filters(LAION).rejection(facts(without_score)) == "missing metadata"


@pytest.mark.parametrize("metadata", [b"{", b"[1]", b"\xff\xfe\x00"])
def test_metadata_that_is_no_object_is_unreadable(metadata):
    assert Filters(LAION).rejection(facts(metadata)) == "unreadable metadata"


def test_a_sample_without_metadata_is_rejected_only_if_a_filter_needs_it():
    assert Filters(LAION).rejection(facts()) == "missing metadata"
    assert Filters(FilterConfig()).rejection(facts()) is None
    assert not Filters(FilterConfig())


def test_each_rule_stands_alone():
    low_score = facts({"similarity": 0.1})
    assert Filters(FilterConfig(min_similarity=0.2)).rejection(low_score) == "similarity"
    assert Filters(FilterConfig(max_similarity=0.2)).rejection(low_score) is None
    assert Filters(FilterConfig(nsfw_labels=("NSFW",))).rejection(low_score) is None
    flat = facts({"original_width": 300, "original_height": 1})
    assert Filters(FilterConfig(max_aspect=2.0)).rejection(flat) == "aspect ratio"
