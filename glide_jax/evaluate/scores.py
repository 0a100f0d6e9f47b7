"""What an evaluation says as a whole: CLIP score, and distances from a reference set, whose features are cached."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float
from PIL import Image

from glide_jax import progress
from glide_jax.data import DataConfig, examples
from glide_jax.data.shards.patterns import find_shards
from glide_jax.data.source import BadSample
from glide_jax.data.sources.webdataset import WebDataset
from glide_jax.data.transforms import Size
from glide_jax.errors import GlideError
from glide_jax.evaluate.distances import Estimate, Features, frechet_estimate, kernel_estimate, mean_estimate
from glide_jax.evaluate.run_folder import Candidate, PromptRecord, RunFolder
from glide_jax.evaluate.scorer import Images, Scorer
from glide_jax.files import cache_folder, written
from glide_jax.images import SUFFIXES, Pixels, to_uint8
from glide_jax.sample.inputs import load_image

_BATCH = 256


class Extractor(Protocol):
    """Features of images.

    Attributes:
        name: of the network and its weights.
        inception: whether it is the Inception network that FID and KID are defined by.
    """

    name: str
    inception: bool

    def image_features(self, images: Images) -> Float[np.ndarray, "n features"]:
        """Features of uint8 images, with components of order one."""


class _Found(NamedTuple):
    total: int
    images: Callable[[], Iterator[Pixels]]


def reference_features(path: str, extractor: Extractor, size: int) -> Features:
    """Features of all images of a set, each cut to its middle square and resized to that of the generated ones.

    They are kept in `GLIDE_JAX_CACHE` as long as the files have the same sizes and times, and the extractor
    gives the same features for a test image.

    Args:
        path: a folder with image files, below it too, or shards as `data.path` takes them.
        extractor: makes the features.
        size: side of the generated images, in pixels.

    Raises:
        GlideError: nothing there, an unreadable image file, or too many unreadable samples in shards.
    """
    files = _image_files(path)
    entry = _entry(files or find_shards(path), extractor, size)
    probe = extractor.image_features(_probe(size))
    if (kept := _load(entry, probe)) is not None:
        return kept
    found = _from_files(files, size) if files else _from_shards(path, size)
    parts: list[np.ndarray] = []
    batch: list[Pixels] = []
    with progress.bar("reference", found.total) as bar:
        for image in found.images():
            batch.append(image)
            if len(batch) == _BATCH:
                parts.append(extractor.image_features(batch))
                bar.update(len(batch))
                batch = []
        if batch:
            parts.append(extractor.image_features(batch))
            bar.update(len(batch))
    if not parts:
        raise GlideError(f"--reference {path}: no usable image")
    return _keep(entry, probe, np.concatenate(parts))


def check_reference(path: str) -> None:
    """Raises `GlideError` where there are neither image files nor shards."""
    if not _image_files(path):
        find_shards(path)


def _image_files(path: str) -> list[Path]:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return []
    found = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    # macOS leaves a ._a.png beside each a.png that it copies.
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def _from_files(files: list[Path], size: int) -> _Found:
    return _Found(len(files), lambda: (to_uint8(load_image(file, size)) for file in files))


def _from_shards(path: str, size: int) -> _Found:
    config = DataConfig(path=path, cache_mb=0)
    images = examples.Images(WebDataset(config), config)

    def usable() -> Iterator[Pixels]:
        for index in range(len(images)):
            try:
                yield np.asarray(images.read(index, Size.square(size)).image)
            except BadSample:
                images.check_bad_share()

    return _Found(len(images), usable)


def _probe(size: int) -> list[Pixels]:
    noise = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    return [np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))]


def _entry(files: list[Path], extractor: Extractor, size: int) -> Path:
    digest = hashlib.sha256(f"{extractor.name}\n{size}\n".encode())
    for file in files:
        stat = file.stat()
        digest.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return cache_folder() / "features" / f"{digest.hexdigest()[:32]}.npz"


def _load(entry: Path, probe: Features) -> Features | None:
    try:
        with entry.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            same = saved["probe"].shape == probe.shape and np.allclose(saved["probe"], probe, rtol=1e-3, atol=1e-3)
            return saved["features"] if same else None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _keep(entry: Path, probe: Features, features: Features) -> Features:
    with contextlib.suppress(GlideError), written(entry) as temporary, temporary.open("wb") as file:
        np.savez(file, probe=probe, features=features)  # what cannot be kept is computed again next time
    return features


class ClipFeatures:
    """The image side of a scorer; its unit vectors are scaled so that a component is of order one."""

    inception = False

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self.name = scorer, scorer.name

    def image_features(self, images: Images) -> Float[np.ndarray, "n features"]:
        """See `Extractor`."""
        features = self._scorer.image_features(images)
        return features * np.float32(features.shape[1] ** 0.5)


class DistanceNames(NamedTuple):
    """What the two distances are called."""

    frechet: str
    kernel: str


def distance_names(extractor: Extractor) -> DistanceNames:
    """FID and KID for Inception features, and for no others."""
    if extractor.inception:
        return DistanceNames("FID", "KID")
    return DistanceNames(f"Fréchet distance ({extractor.name})", f"kernel distance ({extractor.name})")


class Score(NamedTuple):
    """A named estimate, of so many images."""

    name: str
    estimate: Estimate
    images: int

    def __str__(self) -> str:
        value, low, high = self.estimate
        interval = "" if low is None or high is None else f" (95 %: {low:.4f} to {high:.4f})"
        return f"{self.name}: {value:.4f}{interval}, {self.images} images"

    def to_json(self) -> dict[str, Any]:
        """As it goes into scores.json."""
        return {"name": self.name, **self.estimate._asdict(), "images": self.images}


def clip_scores(records: Sequence[PromptRecord]) -> list[Score]:
    """The mean cosine of all candidates and of those kept; prompts, not images, are what the interval counts.

    No scores if the records have none.
    """
    if not records or records[0].scorer is None:
        return []
    scorer = records[0].scorer
    groups: dict[str, list[Sequence[Candidate]]] = {
        "all candidates": [record.candidates for record in records],
        "kept": [record.kept for record in records],
    }
    scores = []
    for name, group in groups.items():
        means = np.array([np.mean([candidate.clip_score for candidate in candidates]) for candidates in group])
        scores.append(Score(f"CLIP score, {name} ({scorer})", mean_estimate(means), sum(map(len, group))))
    return scores


def distance_scores(
    folder: RunFolder, records: Sequence[PromptRecord], reference: str, extractor: Extractor
) -> list[Score]:
    """Fréchet and kernel distances of the kept images from a reference set.

    Args:
        folder: of the evaluation, whose images are read back.
        records: of its prompts.
        reference: as for `reference_features`.
        extractor: makes the features that are compared.

    Raises:
        GlideError: too few images, an unusable reference, features that are not numbers.
    """
    parts, prompts, size = [], [], 0
    for record in records:
        images = folder.images(record)
        size = images[0].shape[0]
        parts.append(extractor.image_features(images))
        prompts += [record.prompt_idx] * len(images)
    x, y = np.concatenate(parts), reference_features(reference, extractor, size)
    names, rows = distance_names(extractor), np.array(prompts)
    return [
        Score(names.frechet, frechet_estimate(x, y, rows), len(x)),
        Score(names.kernel, kernel_estimate(x, y, rows), len(x)),
    ]
