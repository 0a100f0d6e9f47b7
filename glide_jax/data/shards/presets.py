"""Layouts of known kinds of WebDataset: a table, and the syntax of its image and caption keys."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from glide_jax.errors import GlideError
from glide_jax.images import SUFFIXES

_ANY_IMAGE = ";".join(ending.removeprefix(".") for ending in SUFFIXES)


class Preset(NamedTuple):
    """Where captions and images are, and the filters that users of the data set usually apply."""

    caption_key: str
    filters: Mapping[str, Any] = MappingProxyType({})
    image_key: str = _ANY_IMAGE


PRESETS = {
    "simple": Preset("txt"),
    "laion": Preset("txt", {"min_size": 256, "min_aspect": 0.5, "max_aspect": 2.0, "nsfw_labels": ("NSFW", "LIKELY")}),
    "alamy": Preset("txt", {"languages": ("en",)}),
    "synthetic": Preset("json:short_caption;json:long_caption"),
    "datacomp-real": Preset("txt"),
    "datacomp-synthetic": Preset("jsonl:caption"),
    "datacomp-clip": Preset(
        "jsonl:caption@generated_caption_clip_score;jsonl:original_caption@original_caption_clip_score"
    ),
}


class CaptionKey(NamedTuple):
    """A place to find a caption.

    Attributes:
        member: the member's ending, or `jsonl` for the line of `captions_jsonl` with the sample's key.
        field: the field in a JSON member or line; empty for a plain-text member.
        score: the field with this caption's score; the highest wins, the first of equal ones.
    """

    member: str
    field: str = ""
    score: str = ""


def caption_keys(key: str) -> tuple[CaptionKey, ...]:
    """The places that a key such as `txt;json:caption` names, the best first.

    Each is `ENDING`, `ENDING:FIELD` or `ENDING:FIELD@SCORE`.

    Raises:
        GlideError: it names no place, or `jsonl` without a field.
    """
    keys = []
    for part in key.split(";"):
        place, _, score = part.strip().partition("@")
        member, _, field = place.partition(":")
        if member.strip(" ."):
            keys.append(CaptionKey(member.strip().lstrip(".").lower(), field.strip(), score.strip()))
    if not keys or any((key.member == "jsonl" or key.score) and not key.field for key in keys):
        raise GlideError(f"data.caption_key {key!r} names no caption; give one such as 'txt' or 'json:caption'")
    return tuple(keys)


def endings(key: str) -> tuple[str, ...]:
    """The member endings that a key such as `jpg;.PNG` names, in order, lower-cased and without the dot."""
    found = tuple(part.strip().lstrip(".").lower() for part in key.split(";") if part.strip(" ."))
    if not found:
        raise GlideError(f"data.image_key {key!r} names no member ending; give one such as 'jpg;png'")
    return found
