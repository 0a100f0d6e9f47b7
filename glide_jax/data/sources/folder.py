"""Image files in folders, with captions from text files next to them or from their names."""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glide_jax.data.config import DataConfig
from glide_jax.data.filters import Facts, Filters, index_passing, report_unlabelled
from glide_jax.data.index_file import stamp_of
from glide_jax.data.source import (
    PART,
    WHOLE,
    Part,
    Sample,
    Share,
    Source,
    Unavailable,
    image_size,
    listed,
    usable_captions,
)
from glide_jax.errors import GlideError
from glide_jax.files import lines, read_text
from glide_jax.images import SUFFIXES

_JSONL = "jsonl:"
_NO_IMAGE = "line without an image"
_IDENTIFIER = re.compile(r"^[^_]*\d[^_]*_(?=.)")  # 00017_ or 3f2a_


class Folder(Source):
    """The images below the given folders, in order of their paths, with extensions in any case.

    With `caption_key="txt"`, the captions of `a/b.jpg` are the lines of `a/b.txt`, or else of the only `b.txt` below
    the same folder; one line is sampled each time. With `jsonl:FIELD`, they are a field of the line of
    `data.captions_jsonl` whose `file_name` is the image's path from that file's folder, as in the `metadata.jsonl` of
    Hugging Face data sets. With `filename`, the caption is the file's name with underscores as spaces, without a first
    part that contains a digit (`00017_a_red_dog.jpg`). `txt;jsonl:text;filename` takes the first that exists, in this
    order.

    Of images that share a folder and a stem the first by name is taken. The others, and an image to which several text
    files could belong, are left out and counted as `stem clash`.

    Raises:
        GlideError: there is no such folder, or no usable image.
    """

    def __init__(self, config: DataConfig, share: Share = WHOLE) -> None:
        self._from = tuple(part.strip() for part in (config.caption_key or "txt").split(";"))
        fields = [part.removeprefix(_JSONL) for part in self._from if part.startswith(_JSONL)]
        if not {part for part in self._from if not part.startswith(_JSONL)} <= {"txt", "filename"} or len(fields) > 1:
            raise GlideError(
                f"data.caption_key of a folder is txt, jsonl:FIELD or filename, not {config.caption_key!r}"
            )
        if config.captions_jsonl and not fields:
            raise GlideError("data.captions_jsonl is not used: add jsonl:FIELD to data.caption_key, as jsonl:text")
        if config.preset != "simple":
            raise GlideError(f"data.preset {config.preset} is for shards: a folder has captions and filters of its own")
        self._listed = _listed_captions(config.captions_jsonl, fields[0]) if fields else {}
        self.counts: Counter[str] = Counter()
        self._roots = _folders(config.path)
        # A folder given several times, so that its images come more often, is read once.
        self._below = {root: self._paired(root) for root in self._roots}
        self._pairs = [pair for pairs in self._below.values() for pair in pairs]
        gone = self._lines_without_image()
        self.counts[_NO_IMAGE] = len(gone)
        self.counts += Counter()  # drops zeros
        if filters := Filters(config.filters):
            index = index_passing(filters, self._facts, len(self))
            chosen = {self._pairs[number] for number in index.rows}
            self._below = {root: [pair for pair in pairs if pair in chosen] for root, pairs in self._below.items()}
            self.counts.update(index.counts)
            report_unlabelled(str(config.path), index.unlabelled, len(index.rows))
        self._pairs = [pair for root in self._roots for pair in self._below[root]]
        if not self._pairs:
            found = listed(self.counts) or "it holds none"
            raise GlideError(f"no usable image below {self._roots[0]} ({found}){self._advice(config, gone)}")

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        image, text = self._pairs[index]
        return Sample(_read(image), self._captions(image, text))

    def parts(self) -> list[Part]:
        """The images of each folder in runs of 10,000."""
        below = {root: _parts([image for image, _ in pairs]) for root, pairs in self._below.items()}
        return [part for root in self._roots for part in below[root]]

    def named(self, index: int) -> str:
        """The image's path, in which bytes that are no UTF-8 are escaped."""
        return os.fsencode(self._pairs[index][0]).decode("utf-8", "backslashreplace")

    def image_size(self, index: int) -> tuple[int, int]:
        """The size in the file's header."""
        return image_size(self._pairs[index][0])

    def _facts(self, index: int) -> Facts:
        image, text = self._pairs[index]
        return Facts(dict, lambda: self._captions(image, text), lambda: image_size(image))

    def _advice(self, config: DataConfig, gone: list[str]) -> str:
        of_images = Counter(self.counts)
        of_images.pop(_NO_IMAGE, None)
        ((most, _),) = of_images.most_common(1) or [("", 0)]
        if most == "missing caption" and gone:
            return f"; a file_name is a path from the folder of the JSONL file: {gone[0]} is not there"
        file = self._roots[0] / "metadata.jsonl"
        if most == "missing caption" and not self._listed and file.is_file():
            return f"; its captions may be in {file}: give caption_key=jsonl:text and captions_jsonl={file}"
        if most == "missing caption" and "filename" not in self._from:
            return "; write a text file beside each image, or take its name: --config.data.caption_key=filename"
        return Filters(config.filters).advice(self.counts)

    def _lines_without_image(self) -> list[str]:
        """Images below the folders that are listed, but not there."""
        if not self._listed:
            return []
        roots = tuple(os.path.join(_absolute(root), "") for root in self._roots)  # noqa: PTH118 (of a str, with an end)
        rest = self._listed.keys() - {_absolute(image) for image, _ in self._pairs}
        return sorted(path for path in rest if path.startswith(roots) and not os.path.exists(path))  # noqa: PTH110

    def _captions(self, image: Path, text: Path | None) -> tuple[str, ...]:
        if text is not None:
            return usable_captions([part for caption in usable_captions(_read(text)) for part in lines(caption)])
        if self._listed and (value := self._listed.get(_absolute(image))) is not None:
            return usable_captions(value)
        return usable_captions(" ".join(_IDENTIFIER.sub("", image.stem).replace("_", " ").split()))

    def _paired(self, root: Path) -> list[tuple[Path, Path | None]]:
        images, texts = _files(root)
        by_stem: dict[str, list[Path]] = {}
        for text in texts.values():
            by_stem.setdefault(text.stem, []).append(text)
        pairs: list[tuple[Path, Path | None]] = []
        for key, (image, *others) in images.items():
            self.counts["stem clash"] += len(others)
            candidates = [texts[key]] if key in texts else by_stem.get(image.stem, [])
            if "txt" in self._from and len(candidates) == 1:
                pairs.append((image, candidates[0]))
            elif "filename" in self._from or _absolute(image) in self._listed:
                pairs.append((image, None))
            else:
                self.counts["stem clash" if candidates else "missing caption"] += 1
        return pairs


def _listed_captions(path: str, field: str) -> dict[str, Any]:
    """What a field of each line of a JSONL file is, by the absolute path of the image."""
    file = Path(path).expanduser()
    if not path or not field:
        raise GlideError("captions of a JSONL file: give --config.data.captions_jsonl=FILE and caption_key=jsonl:FIELD")
    found: dict[str, Any] = {}
    for line in lines(read_text(file, "data.captions_jsonl")):
        try:
            record = json.loads(line)
            found.setdefault(_absolute(file.parent / record["file_name"]), record.get(field))
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            continue
    if not found:
        raise GlideError(f"no line of data.captions_jsonl {path} is a JSON object with a 'file_name'")
    return {image: value for image, value in found.items() if value is not None}


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 (removes "..", without following links)


def _folders(path: str | Sequence[str]) -> list[Path]:
    patterns = [path] if isinstance(path, str) else path
    parts = [Path(part.strip()).expanduser() for pattern in patterns for part in pattern.split("::") if part.strip()]
    if not parts:
        raise GlideError("no data path given: add --config.data.path=FOLDER")
    for part in parts:
        if not part.is_dir():
            raise GlideError(f"{part} is not a folder; correct the data path")
    return parts


def _files(root: Path) -> tuple[dict[Path, list[Path]], dict[Path, Path]]:
    """Images and text files below a folder, by their paths without extension, in order of their paths."""
    images: dict[Path, list[Path]] = {}
    texts: dict[Path, Path] = {}
    seen = {os.path.realpath(root)}  # a link may lead to a parent folder
    for folder, subfolders, names in os.walk(root, followlinks=True):
        new = {name: os.path.realpath(Path(folder, name)) for name in sorted(subfolders) if not name.startswith(".")}
        subfolders[:] = [name for name, real in new.items() if real not in seen]
        seen.update(new.values())
        for path in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            key = path.with_suffix("")
            if path.suffix.lower() in SUFFIXES:
                images.setdefault(key, []).append(path)
            elif path.suffix.lower() == ".txt":
                texts[key] = path
    return images, texts


def _parts(images: Sequence[Path]) -> list[Part]:
    runs = (images[at : at + PART] for at in range(0, len(images), PART))
    return [Part([*map(str, run)], [number for image in run for number in _stamp(image)], len(run)) for run in runs]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        return stamp_of(path)
    except OSError:  # a dangling link, or removed since
        return 0, 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Unavailable("missing file") from error
    except OSError as error:
        raise Unavailable("unreadable file") from error
