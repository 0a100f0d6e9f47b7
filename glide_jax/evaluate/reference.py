"""Cached features of a reference set, which the images of an evaluation are compared with."""

import contextlib
import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol
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
from glide_jax.evaluate.distances import Features
from glide_jax.evaluate.scorer import Images, Scorer
from glide_jax.files import cache_folder, written
from glide_jax.images import SUFFIXES, Pixels, to_uint8
from glide_jax.sample.image_inputs import load_image

_BATCH = 256


class Extractor(Protocol):
    """Features of images.

    Attributes:
        name: of the network and its weights.
        inception: whether it is the Inception network that defines FID and KID.
    """

    name: str
    inception: bool

    def image_features(self, images: Images) -> Float[np.ndarray, "n features"]:
        """Features of uint8 images, with components of order one."""


def reference_features(path: str, extractor: Extractor, size: int) -> Features:
    """Features of all images in a set, each centre-cropped and resized to the size of the generated images.

    They are cached in `GLIDE_JAX_CACHE` as long as sizes and times of the files stay the same and the extractor gives
    the same features for a test image.

    Args:
        path: a folder with image files, searched recursively, or shards as for `data.path`.
        extractor: makes the features.
        size: side of the generated images, in pixels.

    Raises:
        GlideError: there are no images, an image file is unreadable, or too many samples in shards are.
    """
    files = _image_files(path)
    entry = _entry(files or find_shards(path), extractor, size)
    probe = extractor.image_features(_probe(size))
    if (kept := _load(entry, probe)) is not None:
        return kept
    total, images = _from_files(files, size) if files else _from_shards(path, size)
    parts: list[np.ndarray] = []
    with progress.bar("reference", total) as bar:
        while batch := list(islice(images, _BATCH)):
            parts.append(extractor.image_features(batch))
            bar.update(len(batch))
    if not parts:
        raise GlideError(f"--reference {path}: no usable image")
    return _keep(entry, probe, np.concatenate(parts))


def check_reference(path: str) -> None:
    """Raises `GlideError` if there are neither image files nor shards."""
    if not _image_files(path):
        find_shards(path)


def _image_files(path: str) -> list[Path]:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return []
    found = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    # macOS puts a ._a.png next to each a.png it copies.
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def _from_files(files: list[Path], size: int) -> tuple[int, Iterator[Pixels]]:
    return len(files), (to_uint8(load_image(file, size)) for file in files)


def _from_shards(path: str, size: int) -> tuple[int, Iterator[Pixels]]:
    config = DataConfig(path=path, cache_mb=0)
    images = examples.Images(WebDataset(config), config)

    def usable() -> Iterator[Pixels]:
        for index in range(len(images)):
            try:
                yield np.asarray(images.read(index, Size.square(size)).image)
            except BadSample:
                images.check_bad_share()

    return len(images), usable()


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
        np.savez(file, probe=probe, features=features)  # without a cache they are computed again next time
    return features


class ClipFeatures:
    """The image features of a scorer, with its unit vectors scaled so that components are of order one."""

    inception = False

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self.name = scorer, scorer.name

    def image_features(self, images: Images) -> Float[np.ndarray, "n features"]:
        """See `Extractor`."""
        features = self._scorer.image_features(images)
        return features * np.float32(features.shape[1] ** 0.5)
