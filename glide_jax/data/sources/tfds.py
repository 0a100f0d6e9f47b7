"""Prepared TensorFlow Datasets, read without TensorFlow: encoded images, and captions or class labels."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from glide_jax.data.config import DataConfig
from glide_jax.data.filters import Facts, Filters, index_passing, report_unlabelled
from glide_jax.data.index_file import Index, IndexFile, stamp_of
from glide_jax.data.source import (
    PART,
    WHOLE,
    BadSample,
    Part,
    Sample,
    Share,
    Source,
    image_size,
    listed,
    usable_captions,
)
from glide_jax.errors import GlideError, first_line, install

_CAPTIONS = ("caption", "captions/text", "captions", "text", "label")


class Tfds(Source):
    """A split of a data set prepared in the array_record format.

    `path` is `NAME@SPLIT` or `FOLDER@SPLIT`, such as `coco_captions@train[:90%]`; `train` where no split is named. A
    caption feature is a text, a list of texts (one is sampled each time), or a class label, whose name is put into each
    of `label_templates`.

    Raises:
        GlideError: tensorflow_datasets is not installed, the data set is not prepared, a feature is missing, or no
            sample passes the filters.
    """

    def __init__(self, config: DataConfig, share: Share = WHOLE) -> None:
        if not isinstance(config.path, str) or not config.path:
            raise GlideError("a TFDS data path is one NAME@SPLIT or FOLDER@SPLIT: add --config.data.path=mnist@train")
        builder, split = _builder(config.path)
        features = builder.info.features
        self._image = config.image_key or "image"
        if self._image not in features:
            raise GlideError(
                f"{config.path} has no feature {self._image!r}; set data.image_key to one of {[*features]}"
            )
        self._caption, label = _caption_feature(config.caption_key, features, config.path)
        self._captions = _text_captions if label is None else _label_captions(label, config.label_templates)
        self._records = _data_source(builder, split, self._image)
        self.counts: Counter[str] = Counter()
        self._kept: Sequence[int] | Int64[np.ndarray, " samples"] = range(len(self._records))
        folder, chosen = Path(builder.data_path), [self._image, self._caption, config.label_templates]
        self._identity = [str(folder), config.path, *chosen, asdict(config.filters)]
        self._stamp = [number for path in sorted(folder.glob("*.array_record*")) for number in stamp_of(path)]
        if filters := Filters(config.filters):
            index = self._filtered(config)
            self._kept, self.counts = index.rows, Counter(index.counts)
            report_unlabelled(str(config.path), index.unlabelled, len(index.rows))
        if not len(self._kept):
            found = listed(self.counts) or "it is empty"
            raise GlideError(f"no usable sample in {config.path} ({found}){filters.advice(self.counts)}")

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Sample:
        record = self._records[int(self._kept[index])]
        return Sample(record[self._image], self._captions(_at(record, self._caption)))

    def parts(self) -> list[Part]:
        """The split in runs of 10,000."""
        runs = (range(len(self))[at : at + PART] for at in range(0, len(self), PART))
        return [Part([*self._identity, run.start], self._stamp, len(run)) for run in runs]

    def _filtered(self, config: DataConfig) -> Index:
        """The numbers of the records that pass the filters; each record is read for this once."""
        file = IndexFile.of("tfds", self._identity, self._stamp)
        if not config.revalidate and (index := file.load()) is not None:
            return index
        return file.save(index_passing(Filters(config.filters), self._facts, len(self._records)))

    def _facts(self, number: int) -> Facts:
        record = self._records[number]
        return Facts(
            metadata=lambda: {name: _plain(value) for name, value in record.items()},
            captions=lambda: self._captions(_at(record, self._caption)),
            image_size=lambda: image_size(record[self._image]),
        )


def _builder(path: str) -> tuple[Any, str]:
    """The builder of a prepared data set, and the split."""
    try:
        import tensorflow_datasets as tfds  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise GlideError(f"data.source='tfds' needs tensorflow_datasets: {install('tfds')}") from error
    name, _, split = path.partition("@")
    folder = Path(name).expanduser()
    try:
        found = tfds.builder_from_directory(folder) if folder.is_dir() else tfds.builder(name)
    except Exception as error:  # it raises nearly anything, in many lines
        raise GlideError(f"no TFDS data set {name!r}: {first_line(error)}") from error
    if not Path(found.data_path).is_dir():
        raise GlideError(f"{name} is not prepared in {found.data_path}: run download_and_prepare with array_record")
    return found, split or "train"


def _data_source(builder: Any, split: str, image: str) -> Any:
    from tensorflow_datasets import decode  # noqa: PLC0415 - an extra

    try:
        return builder.as_data_source(split, decoders={image: decode.SkipDecoding()})
    except Exception as error:
        raise GlideError(f"cannot read {builder.info.full_name}@{split}: {first_line(error)}") from error


def _caption_feature(key: str, features: Any, path: str) -> tuple[list[str], Any | None]:
    """A feature's path, and the feature itself if it is a class label."""
    for name in [key] if key else _CAPTIONS:
        try:
            feature = reduce(lambda inside, step: inside[step], name.split("/"), features)
        except (KeyError, TypeError):
            continue
        return name.split("/"), feature if hasattr(feature, "int2str") else None
    raise GlideError(
        f"{path} has no feature {key or ' or '.join(_CAPTIONS)}; set data.caption_key to one of {[*features]}"
    )


def _at(record: Any, steps: Sequence[str]) -> Any:
    return reduce(lambda inside, step: inside[step], steps, record)


def _text_captions(value: Any) -> tuple[str, ...]:
    return usable_captions(value.tolist() if isinstance(value, np.ndarray) else value)


def _label_captions(feature: Any, templates: Sequence[str]) -> Callable[[Any], tuple[str, ...]]:
    names = [name.replace("_", " ") for name in feature.names]

    def captions(label: Any) -> tuple[str, ...]:
        if not 0 <= int(label) < len(names):  # -1 if a test split has no labels
            raise BadSample("missing label")
        return tuple(template.format(label=names[int(label)]) for template in templates)

    return captions


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
