"""The data to train on, which samples to leave out, and how image files become training images."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from glide_jax.data.shards.presets import PRESETS, caption_keys, endings
from glide_jax.data.source import SOURCES, source_type
from glide_jax.data.transforms import Size
from glide_jax.errors import GlideError
from glide_jax.options import Options, fields, option

Words = tuple[str, ...]
Crop = Literal["center", "random", "squash"]


@dataclass(frozen=True, slots=True)
class FilterConfig(Options):
    """Bounds on a sample's metadata, caption and image size; the defaults accept everything without reading it.

    Sizes come from `original_width` and `original_height`, as written by img2dataset, or else from the image; languages
    from `lc`, `LANGUAGE`, `language` or `lang`; LAION's `NSFW` is UNLIKELY, UNSURE or NSFW.
    """

    min_size: Annotated[int, option("minimum shorter side in pixels", low=0)] = 0
    min_aspect: Annotated[float, option("minimum width / height")] = 0.0
    max_aspect: Annotated[float, option("maximum width / height")] = math.inf
    min_similarity: Annotated[float, option("minimum cosine of image and caption (`similarity`)")] = -1.0
    max_similarity: Annotated[float, option("maximum cosine of image and caption")] = 1.0
    nsfw_labels: Annotated[Words, option("values of `NSFW` to leave out, ignoring case", metavar="LABEL")] = ()
    languages: Annotated[Words, option("the only languages to keep, ignoring case", metavar="LANGUAGE")] = ()
    skip_words: Annotated[Words, option("words and phrases of captions to leave out", metavar="WORD")] = ()
    min_caption_length: Annotated[int, option("minimum characters in a caption")] = 0
    max_caption_length: Annotated[float, option("maximum characters in a caption")] = math.inf

    PREFIX: ClassVar[str] = "data.filters."

    def __post_init__(self) -> None:
        Options.__post_init__(self)
        for name in ("aspect", "similarity", "caption_length"):
            lower, upper = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if not lower < upper:
                raise GlideError(f"data.filters.min_{name} {lower} must be below max_{name} {upper}")
        for name in ("nsfw_labels", "languages", "skip_words"):
            if not all(word.strip() for word in getattr(self, name)):
                raise GlideError(f"data.filters.{name} holds an empty word; remove it")

    @property
    def changed(self) -> dict[str, Any]:
        """The bounds that differ from their defaults, by name."""
        values = {name: (getattr(self, name), field.default) for name, field in fields(FilterConfig).items()}
        return {name: value for name, (value, default) in values.items() if value != default}

    def over(self, base: Mapping[str, Any]) -> "FilterConfig":
        """These bounds where they differ from the defaults, otherwise those of `base`."""
        return FilterConfig(**{**base, **self.changed})


@dataclass(frozen=True, slots=True)
class DataConfig(Options):
    """A data set and its transforms; invalid values raise `GlideError` immediately.

    `path` for each `source`:

    - webdataset: a folder of tar shards, a file, a glob, a brace list (`{00000..00099}.tar`), or a `.txt` file with
      such patterns; several are joined by `::` or given as a tuple; `~` is expanded.
    - folder: folders of image files.
    - tfds: a prepared folder or a name, then `@SPLIT` (`mnist@train`).
    - stream: shards as above, `pipe:COMMAND` and URLs.

    `image_key` and `caption_key` list endings of members in a shard, as alternatives joined by `;`, the best first;
    `json:FIELD` is a field of the JSON member, `jsonl:FIELD` one of `captions_jsonl`. A folder's caption key is `txt`,
    `jsonl:FIELD` or `filename`; for TFDS, both are features, as `captions/text`. Empty keys, and filters that are not
    set, come from the preset. A random crop is torch's `RandomResizedCrop`, with `resize_ratio` as a fraction of the
    largest box of the wanted shape; `bicubic` is how the inputs of GLIDE's upsampler were made.

    With `buckets` (height x width), each image is brought to the size of nearest aspect ratio, and a batch holds images
    of one size; see `glide_jax.data.buckets`.
    """

    source: Annotated[str, option("kind of data set", choices=tuple(SOURCES))] = "webdataset"
    path: Annotated[str | Words, option("the data set; its form depends on the source")] = ""
    validation_path: Annotated[str | Words, option("the same for held-out samples; empty means no validation")] = ""
    preset: Annotated[str, option("layout and filters of a known WebDataset", choices=tuple(PRESETS))] = "simple"
    image_key: Annotated[str, option("where images are in a sample, as `jpg;png`")] = ""
    caption_key: Annotated[str, option("where captions are in a sample, as `txt;json:caption`")] = ""
    captions_jsonl: Annotated[
        str, option("file with a JSON object per line, whose `key` is a sample's key (in folders: `file_name`)")
    ] = ""
    label_templates: Annotated[Words, option("captions of TFDS class labels")] = ("a photo of a {label}",)
    filters: FilterConfig = FilterConfig()
    revalidate: Annotated[bool, option("check every shard again instead of trusting the cached check")] = False
    resampled: Annotated[bool, option("draw samples with replacement instead of in epochs")] = False
    crop: Annotated[
        Crop, option("the largest centred square (or bucket's shape), a random one, or the whole image squeezed")
    ] = "center"
    buckets: Annotated[
        Words, option("sizes of training images by aspect ratio, as 64x64 48x80 80x48; empty: squares", metavar="HxW")
    ] = ()
    resize_ratio: Annotated[float, option("minimum area of a random crop, the largest being 1", above=0, high=1)] = 0.8
    trim_white: Annotated[bool, option("cut a white border off first")] = False
    low_res_filter: Annotated[Literal["bicubic", "area"], option("how an upsampler's input is made")] = "bicubic"
    hflip_p: Annotated[float, option("probability of a mirrored image", low=0, high=1)] = 0.0
    uncond_p: Annotated[float, option("probability of an empty caption, for guidance", low=0, high=1)] = 0.2
    bad_share: Annotated[float, option("share of unreadable samples that stops training", low=0, high=1)] = 0.1
    workers: Annotated[int, option("decoding threads; 0 means one for each core, at most 16", low=0)] = 0
    cache_mb: Annotated[int, option("MB (10^6 bytes) for a cache of all decoded images, if they fit", low=0)] = 512
    shuffle_buffer: Annotated[int, option("samples in a stream's shuffle buffer", low=1)] = 1000
    stall_seconds: Annotated[float, option("seconds to wait for a batch before giving up", above=0)] = 300.0

    PREFIX: ClassVar[str] = "data."

    def __post_init__(self) -> None:
        Options.__post_init__(self)
        if self.image_key:
            endings(self.image_key)
        if self.caption_key:
            caption_keys(self.caption_key)
        if not self.label_templates or not all("{label}" in template for template in self.label_templates):
            raise GlideError("data.label_templates must each hold {label}, as in 'a photo of a {label}'")

        aspects: dict[float, Size] = {}
        for size in self.sizes:
            if (other := aspects.setdefault(size.aspect, size)) is not size:
                raise GlideError(f"data.buckets {other} and {size} have one aspect ratio: leave one of them out")
        if len(self.buckets) > 1 and not source_type(self.source).resumable:
            raise GlideError("data.buckets needs the sizes of all images, which a stream does not know: give one size")
        if len(self.buckets) > 1 and self.trim_white:
            raise GlideError("data.trim_white changes the shapes that data.buckets goes by: leave out one of the two")

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes in `buckets`; raises `GlideError` for an invalid one."""
        return tuple(map(_size, self.buckets))

    def plain(self) -> "DataConfig":
        """The same data without augmentation: centred squares, never mirrored, always with captions."""
        return replace(self, crop="center", buckets=(), hflip_p=0.0, uncond_p=0.0)


def _size(text: str) -> Size:
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise GlideError(f"data.buckets are HEIGHTxWIDTH in pixels, as 48x80, not {text!r}")
    return Size(int(match[1]), int(match[2]))
