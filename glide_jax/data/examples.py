"""From samples to examples to batches: decoded images by number, and examples as a pure function of (seed, number)."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from glide_jax.data import transforms
from glide_jax.data.buckets import Turn
from glide_jax.data.config import DataConfig
from glide_jax.data.order import generator
from glide_jax.data.source import BadSample, Source, listed
from glide_jax.data.transforms import Size
from glide_jax.errors import GlideError
from glide_jax.images import MOST_SIDE
from glide_jax.tokenizer import GlideTokenizer

_ATTEMPTS = 32  # unusable samples in a row before giving up
_BAD_SHARE_FROM = 100  # samples to read before the share of bad ones is meaningful


@dataclass(frozen=True, slots=True)
class Shapes:
    """Shapes of a model's inputs; sizes that do not fit together raise `GlideError`.

    Attributes:
        image_size: side of the square images in pixels.
        text_ctx: tokens a caption.
        low_res_size: side of their low-resolution versions, an upsampler's input; a divisor of `image_size`, or None.
        bucket: size of images that are not this square; their low-resolution versions are smaller by the same factor.
    """

    image_size: int
    text_ctx: int
    low_res_size: int | None = None
    bucket: Size | None = None

    def __post_init__(self) -> None:
        low, high = self.low_res_size or 1, self.image_size
        if high < 1 or low < 1 or high % low:
            raise GlideError(f"image_size {high} must be a positive multiple of low_res_size {low}")
        if max(self.image) > MOST_SIDE:
            raise GlideError(f"images of {self.image} are too large: at most {MOST_SIDE} pixels a side")
        if self.text_ctx < 1:
            raise GlideError(f"text_ctx must be at least 1, not {self.text_ctx}")
        if self.low_res_size and any(edge % (high // low) for edge in self.image):
            raise GlideError(f"data.buckets: {self.image} cannot be divided by {high // low}, as an upsampler needs")

    @property
    def image(self) -> Size:
        """Of an image."""
        return self.bucket or Size.square(self.image_size)

    @property
    def low_res(self) -> Size | None:
        """Of its low-resolution version, if there is one."""
        if self.low_res_size is None:
            return None
        return Size(*(edge * self.low_res_size // self.image_size for edge in self.image))


class Batch(NamedTuple):
    """A batch of examples.

    Attributes:
        arrays: by name,
            `image` uint8 [batch, height, width, 3];
            `low_res` uint8 [batch, low_height, low_width, 3], for an upsampler only;
            `tokens` int32 and `mask` bool [batch, text_ctx], with a mask of False for a dropped caption;
            `index` int32 [batch], the global example index modulo 2^31, the key of the example's noise;
            `weight` float32 [batch], 1 for an example and 0 for a padding row.
        captions: each image's own caption, dropped or not; "" in rows of weight 0.
    """

    arrays: dict[str, np.ndarray]
    captions: list[str]

    @property
    def size(self) -> Size:
        """Of its images."""
        return Size(*self.arrays["image"].shape[1:3])

    def write(self, row: int, index: int, image: Image.Image, caption: str, low_res_filter: str) -> None:
        """Writes an example's finished image, and its low-resolution input if the batch has one."""
        self.arrays["image"][row] = image
        if "low_res" in self.arrays:
            low_res = self.arrays["low_res"]
            low_res[row] = transforms.downsample(image, Size(*low_res.shape[1:3]), low_res_filter)
        self.arrays["index"][row] = index % 2**31
        self.arrays["weight"][row] = 1.0
        self.captions[row] = caption

    def write_texts(self, first_row: int, texts: Sequence[str]) -> None:
        """Writes the tokens of texts into rows, beginning with `first_row`."""
        rows = slice(first_row, first_row + len(texts))
        tokens, mask = GlideTokenizer().padded(texts, self.arrays["tokens"].shape[1])
        self.arrays["tokens"][rows], self.arrays["mask"][rows] = tokens, mask


def empty_batch(shapes: Shapes, size: int) -> Batch:
    """A batch of `size` padding rows: black images without text, of weight 0."""
    tokens, mask = GlideTokenizer().padded([""] * size, shapes.text_ctx)
    arrays = {
        "image": _black(size, shapes.image),
        "tokens": tokens,
        "mask": mask,
        "index": np.zeros(size, np.int32),
        "weight": np.zeros(size, np.float32),
    }
    if shapes.low_res is not None:
        arrays["low_res"] = _black(size, shapes.low_res)
    return Batch(arrays, [""] * size)


def _black(count: int, size: Size) -> UInt8[np.ndarray, "count height width 3"]:
    return np.zeros((count, *size, 3), np.uint8)


class CaptionedImage(NamedTuple):
    """An RGB image, processed as far as possible without random numbers (`transforms.prepare`), and its captions."""

    image: Image.Image
    captions: tuple[str, ...]


class Images:
    """Reads and decodes the samples of a source; safe to use from several threads.

    They are cached in memory if all of them fit into `cache_mb`; otherwise none are, because a part of a set that is
    read in random order would cost memory and save little.

    Attributes:
        source: as given.
        counts: `read`, the samples requested since the start, and the unusable ones among them by reason.

    Args:
        source: what to read from.
        config: the transforms.
        left_out: samples of the source that will not be requested, by reason.
    """

    def __init__(self, source: Source, config: DataConfig, left_out: Counter[str] | None = None) -> None:
        self.source, self._config, self._left_out = source, config, left_out or Counter[str]()
        self._free = config.cache_mb * 10**6 if source.resumable else 0
        self._kept: dict[tuple[int, Size], tuple[np.ndarray, tuple[str, ...]]] = {}
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter(read=0)
        self._first_bad: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.source)

    @property
    def usable(self) -> int:
        """The number of samples not left out; 0 for a stream."""
        return len(self) - self._left_out.total()

    def read(self, index: int, size: Size, *, counted: bool = True) -> CaptionedImage:
        """Image `index` of the source, made a size.

        Raises:
            BadSample: it is unusable, which has been counted if it should be.
        """
        with self._lock:
            self.counts["read"] += counted
            kept = self._kept.get((index, size))
        if kept is not None:
            return CaptionedImage(Image.fromarray(kept[0]), kept[1])
        try:
            return self._keep((index, size), self._decoded(index, size))
        except GlideError:
            raise
        except Exception as error:  # file systems and libraries raise nearly anything, and only one sample is lost
            reason = str(error) if isinstance(error, BadSample) else f"failed with {type(error).__name__}"
            if counted:
                with self._lock:
                    self.counts[reason] += 1
                    self._first_bad.setdefault(reason, self.source.named(index))
            raise BadSample(reason) from error

    def check_few(self, size: Size) -> None:
        """Reads all samples of a small set, at most 100; raises `GlideError` if more than `bad_share` are unusable.

        So the few images of a fine-tuning run are known to be good before minutes of compiling.
        """
        if len(self) > _BAD_SHARE_FROM:
            return
        bad: dict[str, str] = {}
        for index in range(len(self)):
            try:
                self.read(index, size, counted=False)
            except BadSample as error:
                bad[self.source.named(index)] = str(error)
        names = {self.source.named(index) for index in range(len(self))}
        if len(bad) > self._config.bad_share * len(names):
            first = {reason: name for name, reason in reversed(bad.items())}
            raise _too_many_bad(Counter(bad.values()), first, len(names), self._config)

    def faults(self) -> dict[str, int]:
        """Samples found unusable since opening, by reason."""
        with self._lock:
            return {reason: count for reason, count in self.counts.items() if reason != "read"}

    def report(self) -> dict[str, int]:
        """`usable` and `read` samples, and by reason those left out on opening or found unusable since.

        Samples are read and counted a few batches ahead of their use.
        """
        with self._lock:
            counts = Counter(usable=self.usable) + Counter(self.source.counts) + self._left_out + self.counts
        return dict(counts)

    def check_bad_share(self) -> None:
        """Raises `GlideError` with the counts if more than a share `bad_share` of the samples read were unusable."""
        with self._lock:
            bad = Counter(self.counts)
        read = bad.pop("read")
        if bad.total() > self._config.bad_share * max(read, _BAD_SHARE_FROM):
            raise _too_many_bad(bad, self._first_bad, read, self._config)

    def _decoded(self, index: int, size: Size) -> CaptionedImage:
        sample, config = self.source[index], self._config
        image = transforms.prepare(sample.image, size, config.crop, config.resize_ratio, config.trim_white)
        return CaptionedImage(image, sample.captions)

    def _keep(self, key: tuple[int, Size], read: CaptionedImage) -> CaptionedImage:
        size = 3 * read.image.width * read.image.height
        with self._lock:
            if size > self._free:
                self._free = 0
                self._kept.clear()
            elif key not in self._kept:
                self._free -= size
                self._kept[key] = np.asarray(read.image), read.captions
        return read


def _too_many_bad(bad: Counter[str], first: Mapping[str, str], read: int, config: DataConfig) -> GlideError:
    reasons = "; ".join(f"{why}: {count}, as {first[why]}" for why, count in bad.most_common())
    return GlideError(
        f"{bad.total()} of {read} samples were unusable ({reasons}), more than data.bad_share {config.bad_share:g}"
        " allows: repair them, which python -m glide_jax.data check lists, or raise --config.data.bad_share"
    )


class TrainingExamples:
    """Example g: its image, cropped, mirrored and captioned with random numbers keyed by (seed, g).

    The images of a bucket come in a fresh permutation every epoch, or with `resampled` independently; those of a source
    that is not resumable as they arrive. An unusable sample is replaced by a keyed one from its bucket or, if many in a
    row are unusable, by any other at the same size; so example g does not depend on who makes it, or when.
    """

    def __init__(self, images: Images, config: DataConfig, seed: int) -> None:
        self._images, self._config, self._seed = images, config, seed

    def fill(self, turn: Turn, batch: Batch, first_row: int, examples: Sequence[int]) -> None:
        """Writes examples into a batch's rows, beginning with `first_row`; `turn` is the content of the batch.

        Raises:
            GlideError: 32 samples in succession were unusable.
        """
        texts = []
        for row, example in enumerate(examples, start=first_row):
            chosen = self._choose(turn, batch.size, example)
            caption = self._one_of(chosen.captions, example)
            image = self._augmented(chosen.image, batch.size, example)
            batch.write(row, example, image, caption, self._config.low_res_filter)
            texts.append("" if self._happens("uncond", self._config.uncond_p, example) else caption)
        batch.write_texts(first_row, texts)

    def _choose(self, turn: Turn, size: Size, example: int) -> CaptionedImage:
        samples, others = turn.bucket.samples, None
        if self._config.resampled:
            number = int(generator(self._seed, "resample", example).integers(len(samples)))
        else:
            number = turn.bucket.order[example + turn.shift]
        # A small bucket may hold nothing but damaged images, which must not be counted each time they are drawn again.
        whole = len(samples) == len(turn.every)
        for attempt in range(_ATTEMPTS):
            try:
                return self._images.read(int(samples[number]), size, counted=whole or not attempt)
            except BadSample:
                others = others or generator(self._seed, "redraw", example)
                samples = samples if attempt + 1 < _ATTEMPTS // 2 else turn.every
                number = int(others.integers(len(samples)))
        counts = listed(Counter(self._images.report()))
        raise GlideError(f"{_ATTEMPTS} samples in a row were unusable ({counts}); check what is in data.path")

    def _one_of(self, captions: Sequence[str], example: int) -> str:
        if len(captions) == 1:
            return captions[0]
        return captions[int(generator(self._seed, "caption", example).integers(len(captions)))]

    def _augmented(self, image: Image.Image, size: Size, example: int) -> Image.Image:
        if self._config.crop == "random":
            rng = generator(self._seed, "crop", example)
            box = transforms.random_box(*image.size, size, self._config.resize_ratio, rng)
            image = transforms.resize_crop(image, box, size)
        return transforms.mirror(image) if self._happens("hflip", self._config.hflip_p, example) else image

    def _happens(self, stream: str, probability: float, example: int) -> bool:
        return probability > 0 and generator(self._seed, stream, example).random() < probability


class PlainExamples:
    """Example i is sample i without augmentation, with its first caption; an unusable one leaves its row empty."""

    def __init__(self, images: Images, low_res_filter: str) -> None:
        self._images, self._low_res_filter = images, low_res_filter

    def fill(self, batch: Batch, first_row: int, examples: Sequence[int]) -> None:
        """Writes the samples with these numbers into rows, beginning with `first_row`."""
        for row, example in enumerate(examples, start=first_row):
            try:
                image, captions = self._images.read(example, batch.size)
            except BadSample:
                continue
            batch.write(row, example, image, captions[0], self._low_res_filter)
        batch.write_texts(first_row, batch.captions[first_row : first_row + len(examples)])
