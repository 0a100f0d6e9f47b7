"""What to train on, and how a picture file becomes a training picture."""

from dataclasses import dataclass, field
from typing import Literal

from glide_jax.data.filters import FilterConfig
from glide_jax.data.presets import PRESETS, caption_keys, endings
from glide_jax.errors import GlideError


@dataclass(frozen=True, slots=True)
class DataConfig:
    """A data set and its transforms; impossible values raise `GlideError` at once.

    Attributes:
        source: `webdataset` for tar shards, `folder` for picture files, `tfds` for a prepared TensorFlow data set,
            `stream` for shards that can only be read from front to end.
        path: WebDataset shards: a folder, a file, a glob, a brace list (`{00000..00099}.tar`), or a `.txt`
            file that lists such patterns; several are joined by `::` or given as a tuple; `~` is expanded.
            A folder source takes folders, a TFDS source a prepared folder or a name, then `@SPLIT` (`mnist@train`),
            a stream shards as above, `pipe:COMMAND` and URLs.
        validation_path: the same for held-out samples; empty means no validation.
        preset: layout of a WebDataset, see `presets.PRESETS`; what is set below takes precedence.
        image_key, caption_key: member endings inside a shard, alternatives joined by `;`, the best first;
            `json:FIELD` is a field of the JSON member, `jsonl:FIELD` one of `captions_jsonl`. A folder's caption key
            is `txt` or `filename`; a TFDS's are features, as `captions/text`. Empty means the usual ones.
        captions_jsonl: file with a JSON object a line, whose `key` is that of a sample.
        label_templates: captions of TFDS class labels, one drawn at a time.
        filters: which samples to leave out, on top of the preset's.
        revalidate: check every shard anew instead of trusting the cached check.
        resampled: draw samples with replacement instead of in epochs.
        crop: `center` for the largest centred square, `random` for a random one (torch: `RandomResizedCrop`),
            `squash` for the whole picture pressed into a square.
        resize_ratio: least area of a random square as a fraction of the largest square's, in (0, 1].
        trim_white: cut a white border off first.
        low_res_filter: how an upsampler's input is made from its picture, `bicubic` as GLIDE was trained or `area`.
        hflip_p: probability of a mirrored picture.
        uncond_p: probability that a caption is replaced by the empty one, for classifier-free guidance.
        bad_share: share of unreadable samples above which training stops with an error.
        workers: decoding threads; 0 means one for each core, at most 16.
        cache_mb: decoded pictures stay in memory if the whole set fits into this many MB (10^6 bytes).
        shuffle_buffer: samples that a stream keeps to draw from.
        stall_seconds: how long a batch may take before the loader counts as dead.
    """

    source: Literal["webdataset", "folder", "tfds", "stream"] = "webdataset"
    path: str | tuple[str, ...] = ""
    validation_path: str | tuple[str, ...] = ""
    preset: str = "simple"
    image_key: str = ""
    caption_key: str = ""
    captions_jsonl: str = ""
    label_templates: tuple[str, ...] = ("a photo of a {label}",)
    filters: FilterConfig = field(default_factory=FilterConfig)
    revalidate: bool = False
    resampled: bool = False
    crop: Literal["center", "random", "squash"] = "center"
    resize_ratio: float = 0.8
    trim_white: bool = False
    low_res_filter: Literal["bicubic", "area"] = "bicubic"
    hflip_p: float = 0.0
    uncond_p: float = 0.2
    bad_share: float = 0.1
    workers: int = 0
    cache_mb: int = 512
    shuffle_buffer: int = 1000
    stall_seconds: float = 300.0

    def __post_init__(self) -> None:
        self._check_choices()
        if not 0.0 < self.resize_ratio <= 1.0:
            raise GlideError(f"data.resize_ratio is an area fraction in (0, 1], not {self.resize_ratio}")
        for name in ("hflip_p", "uncond_p", "bad_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise GlideError(f"data.{name} must be in [0, 1], not {getattr(self, name)}")
        for name in ("workers", "cache_mb"):
            if getattr(self, name) < 0:
                raise GlideError(f"data.{name} must not be negative, got {getattr(self, name)}")
        if self.shuffle_buffer < 1:
            raise GlideError(f"data.shuffle_buffer must be at least 1, not {self.shuffle_buffer}")
        if self.stall_seconds <= 0:
            raise GlideError(f"data.stall_seconds must be above 0, not {self.stall_seconds}")

    def _check_choices(self) -> None:
        choices = {
            "source": ("webdataset", "folder", "tfds", "stream"),
            "preset": tuple(PRESETS),
            "crop": ("center", "random", "squash"),
            "low_res_filter": ("bicubic", "area"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise GlideError(f"data.{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.image_key:
            endings(self.image_key)
        if self.caption_key:
            caption_keys(self.caption_key)
        if not self.label_templates or not all("{label}" in template for template in self.label_templates):
            raise GlideError("data.label_templates must each hold {label}, as in 'a photo of a {label}'")
