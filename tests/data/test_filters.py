import json

import pytest

from glide_jax.data.filters import FilterConfig, Filters

LAION = FilterConfig(
    min_size=256,
    min_aspect=0.5,
    max_aspect=2.0,
    min_similarity=0.3,
    max_similarity=0.9,
    nsfw_labels=("NSFW", "LIKELY"),
)
GOOD = {"original_width": 512, "original_height": 512, "similarity": 0.31, "NSFW": "UNLIKELY"}


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
        ({"original_height": 0, "original_width": 300}, "too small"),
        ({"similarity": 0.3}, None),
        ({"similarity": 0.2999}, "similarity"),
        ({"similarity": 0.9001}, "similarity"),
        ({"similarity": "0.5"}, None),
        ({"similarity": float("nan")}, "similarity"),
        ({"similarity": None}, "missing metadata"),
        ({"original_width": "wide"}, "missing metadata"),
        ({"NSFW": "NSFW"}, "nsfw"),
        ({"NSFW": "likely"}, "nsfw"),
        ({"NSFW": "UNSURE"}, None),
    ],
)
def test_laion_rules_accept_and_reject(change, reason):
    assert Filters(LAION).rejection(json.dumps(GOOD | change).encode()) == reason


def test_an_absent_nsfw_label_passes_and_an_absent_number_does_not():
    without_label = {name: value for name, value in GOOD.items() if name != "NSFW"}
    without_score = {name: value for name, value in GOOD.items() if name != "similarity"}
    assert Filters(LAION).rejection(json.dumps(without_label).encode()) is None
    assert Filters(LAION).rejection(json.dumps(without_score).encode()) == "missing metadata"


@pytest.mark.parametrize("metadata", [b"{", b"[1]", b"\xff\xfe\x00"])
def test_metadata_that_is_no_object_is_unreadable(metadata):
    assert Filters(LAION).rejection(metadata) == "unreadable metadata"


def test_a_sample_without_metadata_is_rejected_only_if_a_filter_needs_it():
    assert Filters(LAION).rejection(None) == "missing metadata"
    assert Filters(FilterConfig()).rejection(None) is None
    assert not Filters(FilterConfig())


def test_each_rule_stands_alone():
    low_score = json.dumps({"similarity": 0.1}).encode()
    assert Filters(FilterConfig(min_similarity=0.2)).rejection(low_score) == "similarity"
    assert Filters(FilterConfig(max_similarity=0.2)).rejection(low_score) is None
    assert Filters(FilterConfig(nsfw_labels=("NSFW",))).rejection(low_score) is None
    assert Filters(FilterConfig(min_size=1)).rejection(low_score) == "missing metadata"
    flat = json.dumps({"original_width": 300, "original_height": 0}).encode()
    assert Filters(FilterConfig(max_aspect=2.0)).rejection(flat) == "missing metadata"
