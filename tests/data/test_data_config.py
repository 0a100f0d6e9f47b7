import pytest

from glide_jax.data.config import DataConfig, endings
from glide_jax.data.filters import FilterConfig
from glide_jax.errors import GlideError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop", "squash"),
        ("resize_ratio", 0.0),
        ("resize_ratio", 1.01),
        ("hflip_p", -0.1),
        ("uncond_p", 1.5),
        ("uncond_p", float("nan")),
        ("bad_share", 2.0),
        ("workers", -1),
        ("cache_mb", -1),
        ("image_key", " ; ."),
        ("caption_key", ""),
        ("stall_seconds", 0.0),
    ],
)
def test_impossible_values_are_refused_by_name(field, value):
    with pytest.raises(GlideError, match=f"^data.{field} ") as caught:
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
    ],
)
def test_impossible_filter_bounds_are_refused(bounds):
    with pytest.raises(GlideError, match=r"^data\.filters\.min_"):
        FilterConfig(**bounds)


def test_endings_are_alternatives_in_order():
    assert endings("jpg; .PNG;;webp") == ("jpg", "png", "webp")
