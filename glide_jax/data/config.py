"""What to train on, and how a picture file becomes a training picture."""

from dataclasses import dataclass, field
from typing import Literal

from glide_jax.data.filters import FilterConfig
from glide_jax.errors import GlideError


@dataclass(frozen=True, slots=True)
class DataConfig:
    """A data set and its transforms; impossible values raise `GlideError` at once.

    Attributes:
        path: WebDataset shards: a folder, a file, a glob, a brace list (`{00000..00099}.tar`), or a `.txt`
            file that lists such patterns; several are joined by `::` or given as a tuple; `~` is expanded.
        validation_path: the same for held-out samples; empty means no validation.
        image_key, caption_key: member endings inside a shard, alternatives joined by `;`, the best first.
        filters: which samples to leave out by their metadata.
        crop: `center` for the largest centred square, `random` for a random one (torch: `RandomResizedCrop`).
        resize_ratio: least area of a random square as a fraction of the largest square's, in (0, 1].
        hflip_p: probability of a mirrored picture.
        uncond_p: probability that a caption is replaced by the empty one, for classifier-free guidance.
        bad_share: share of unreadable samples above which training stops with an error.
        workers: decoding threads; 0 means one for each core, at most 16.
        cache_mb: decoded pictures stay in memory if the whole set fits into this many MB (10^6 bytes).
        stall_seconds: how long a batch may take before the loader counts as dead.
    """

    path: str | tuple[str, ...] = ""
    validation_path: str | tuple[str, ...] = ""
    image_key: str = "jpg;jpeg;png;webp"
    caption_key: str = "txt"
    filters: FilterConfig = field(default_factory=FilterConfig)
    crop: Literal["center", "random"] = "center"
    resize_ratio: float = 0.8
    hflip_p: float = 0.0
    uncond_p: float = 0.2
    bad_share: float = 0.1
    workers: int = 0
    cache_mb: int = 512
    stall_seconds: float = 300.0

    def __post_init__(self) -> None:
        if self.crop not in ("center", "random"):
            raise GlideError(f"data.crop must be 'center' or 'random', not {self.crop!r}")
        if not 0.0 < self.resize_ratio <= 1.0:
            raise GlideError(f"data.resize_ratio is an area fraction in (0, 1], not {self.resize_ratio}")
        for name in ("hflip_p", "uncond_p", "bad_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise GlideError(f"data.{name} must be in [0, 1], not {getattr(self, name)}")
        for name in ("workers", "cache_mb"):
            if getattr(self, name) < 0:
                raise GlideError(f"data.{name} must not be negative, got {getattr(self, name)}")
        for name in ("image_key", "caption_key"):
            if not endings(getattr(self, name)):
                raise GlideError(f"data.{name} names no member ending; give one such as 'jpg;png' or 'txt'")
        if self.stall_seconds <= 0:
            raise GlideError(f"data.stall_seconds must be above 0, not {self.stall_seconds}")


def endings(key: str) -> tuple[str, ...]:
    """The member endings that a key such as `jpg;.PNG` names, in order, lower-cased and without the dot."""
    return tuple(part.strip().lstrip(".").lower() for part in key.split(";") if part.strip(" ."))
