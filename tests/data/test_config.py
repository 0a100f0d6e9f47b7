import pytest

from glide_jax.data.config import DataConfig, FilterConfig
from glide_jax.data.shards.presets import CaptionKey, caption_keys, endings
from glide_jax.data.source import SOURCES, Source, source_type
from glide_jax.errors import GlideError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop", "middle"),
        ("source", "zip"),
        ("preset", "laion5b"),
        ("low_res_filter", "nearest"),
        ("resize_ratio", 0.0),
        ("resize_ratio", 1.01),
        ("hflip_p", -0.1),
        ("uncond_p", 1.5),
        ("uncond_p", float("nan")),
        ("bad_share", 2.0),
        ("workers", -1),
        ("cache_mb", -1),
        ("image_key", " ; ."),
        ("caption_key", ";"),
        ("caption_key", "jsonl"),
        ("caption_key", "json@score"),
        ("label_templates", ()),
        ("label_templates", ("a photo",)),
        ("shuffle_buffer", 0),
        ("stall_seconds", 0.0),
    ],
)
def test_impossible_values_are_refused_by_name(field, value):
    with pytest.raises(GlideError, match=rf"^data\.{field} ") as caught:
        DataConfig(**{field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bounds",
    [
        {"min_size": -1},
        {"min_aspect": 2.0, "max_aspect": 0.5},
        {"min_aspect": 1.0, "max_aspect": 1.0},
        {"min_similarity": 0.5, "max_similarity": 0.0},
        {"max_similarity": float("nan")},
        {"min_caption_length": 10, "max_caption_length": 10},
    ],
)
def test_impossible_filter_bounds_are_refused(bounds):
    with pytest.raises(GlideError, match=r"^data\.filters\.min_"):
        FilterConfig(**bounds)


@pytest.mark.parametrize("name", ["nsfw_labels", "languages", "skip_words"])
def test_empty_words_are_refused(name):
    with pytest.raises(GlideError, match=rf"^data\.filters\.{name} holds an empty word"):
        FilterConfig(**{name: ("a", " ")})


def test_bounds_take_precedence_over_a_preset_where_they_are_set():
    preset = {"min_size": 256, "max_aspect": 2.0}
    assert FilterConfig(min_size=64, languages=("en",)).over(preset) == FilterConfig(
        min_size=64, max_aspect=2.0, languages=("en",)
    )


def test_caption_keys_name_members_fields_and_scores():
    assert caption_keys("TXT; json:short;.jsonl:caption@score") == (
        CaptionKey("txt"),
        CaptionKey("json", "short"),
        CaptionKey("jsonl", "caption", "score"),
    )


def test_endings_are_alternatives_in_order():
    assert endings("jpg; .PNG;;webp") == ("jpg", "png", "webp")


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_of_the_registry_opens_by_its_name(name):
    assert issubclass(source_type(name), Source)
    assert DataConfig(source=name).source == name
    assert source_type(name).resumable or source_type(source_type(name).indexed).resumable
