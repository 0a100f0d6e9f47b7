"""The folder of an evaluation, with the layout of glide-finetune's.

OUTPUT/00000/
    metadata.json                    date, settings, prompts
    prompt_000/image_rank_001.jpg    the best candidate, then the others
               prompt.txt
               metadata.json         score, seed and number of every candidate; written last, as the mark of completion
    grid.jpg, index.html             all kept images
    scores.json                      overall scores, from `--clip_rerank` and `--reference`
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import UInt8

from glide_jax.errors import GlideError
from glide_jax.files import valid_unicode, written
from glide_jax.images import Pixels, UnreadableImage, open_image, save_jpeg, save_png
from glide_jax.options import to_json

METADATA = "metadata.json"
Candidates = UInt8[np.ndarray, "num_images height width 3"]


@dataclass(frozen=True)
class Candidate:
    """An image generated for a prompt.

    Attributes:
        rank: rank among its prompt's candidates, from 1; without a scorer, the order of their numbers.
        index, seed: the image's number and the seed, which together decide it.
        clip_score: cosine similarity of image and prompt according to the scorer; None without one.
        filename: the image's file; None if it ranked too low to be kept.
    """

    rank: int
    index: int
    seed: int
    clip_score: float | None
    filename: str | None


@dataclass(frozen=True)
class PromptRecord:
    """All candidates of one prompt, the best first.

    Attributes:
        prompt, prompt_idx: the prompt and its index.
        scorer: name of the scorer; None without one.
        sampler: how the images were generated.
        candidates: all of them, kept or not.
    """

    prompt: str
    prompt_idx: int
    scorer: str | None
    sampler: Mapping[str, Any]
    candidates: tuple[Candidate, ...]

    @property
    def kept(self) -> list[Candidate]:
        """The candidates with a file."""
        return [candidate for candidate in self.candidates if candidate.filename is not None]

    def to_json(self) -> dict[str, Any]:
        """In glide-finetune's format (`images` are the kept ones), plus all candidates and the sampler."""
        images = [{"rank": kept.rank, "filename": kept.filename, "clip_score": kept.clip_score, "seed": kept.seed,
                   "index": kept.index, "prompt": self.prompt} for kept in self.kept]  # fmt: skip
        return {
            "prompt": self.prompt,
            "prompt_idx": self.prompt_idx,
            "num_images": len(images),
            "images": images,
            "scorer": self.scorer,
            "sampler": dict(self.sampler),
            "candidates": [asdict(candidate) for candidate in self.candidates],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_json` wrote; raises KeyError or TypeError for anything else."""
        candidates = tuple(Candidate(**candidate) for candidate in data["candidates"])
        return cls(data["prompt"], data["prompt_idx"], data["scorer"], data["sampler"], candidates)


def ranked(
    numbers: Sequence[int], seed: int, scores: Sequence[float] | None, keep: int, suffix: str
) -> tuple[Candidate, ...]:
    """Candidates ordered by score, equal ones as generated; the first `keep` get a file name.

    Args:
        numbers: image numbers.
        seed: the seed they share.
        scores: one per image, higher is better; None keeps the order.
        keep: how many to keep.
        suffix: of the files, as ".jpg".
    """
    order = list(range(len(numbers)))
    if scores is not None:
        order.sort(key=lambda i: -scores[i])
    return tuple(
        Candidate(
            rank,
            numbers[i],
            seed,
            None if scores is None else float(scores[i]),
            f"image_rank_{rank:03d}{suffix}" if rank <= keep else None,
        )
        for rank, i in enumerate(order, start=1)
    )


class RunFolder:
    """One numbered folder; see the module for what is in it.

    Attributes:
        path: the folder.
        prompts: those it is for.
        config: the settings it was begun with.
    """

    def __init__(self, path: Path, prompts: Sequence[str], config: Mapping[str, Any]) -> None:
        self.path, self.prompts, self.config = path, tuple(prompts), dict(config)

    @classmethod
    def create(cls, output: Path, prompts: Sequence[str], config: Mapping[str, Any], device: str) -> Self:
        """Makes the next free number below `output`; raises `GlideError` where nothing can be written."""
        try:
            path = _next_number(output)
        except OSError as error:
            raise GlideError(f"cannot write to --output_dir {output}: {error.strerror or error}") from error
        folder = cls(path, prompts, config)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(path / METADATA, {
            "timestamp": started, "config": {**config, "device": device},
            "prompts_count": len(prompts), "prompts": list(prompts),
        })  # fmt: skip
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """The folder of an earlier run; raises `GlideError` if `path` is none."""
        data = read_json(path / METADATA, f"--resume {path}")
        try:
            return cls(path, data["prompts"], data["config"])
        except (KeyError, TypeError):
            raise GlideError(f"--resume {path}: its {METADATA} is not that of an evaluation") from None

    def prompt_folder(self, index: int) -> Path:
        """Where a prompt's images are."""
        return self.path / f"prompt_{index:03d}"

    def done(self, index: int) -> bool:
        """Whether a prompt's images and its record are complete."""
        return (self.prompt_folder(index) / METADATA).is_file()

    def save(self, record: PromptRecord, images: Candidates) -> None:
        """Writes the kept images of a prompt, its text, and then its record.

        Args:
            record: of all candidates.
            images: the candidates in the order generated.
        """
        folder = self.prompt_folder(record.prompt_idx)
        first = min(candidate.index for candidate in record.candidates)
        for kept in record.kept:
            own = {"prompt": record.prompt, "seed": str(kept.seed), "index": str(kept.index)}
            if kept.clip_score is not None:
                own["clip_score"] = f"{kept.clip_score:.6f}"
            how = {name: str(value) for name, value in record.sampler.items()}
            save_image(folder / str(kept.filename), images[kept.index - first], own | how)
        write_text(folder / "prompt.txt", record.prompt + "\n")
        write_json(folder / METADATA, record.to_json())

    def records(self) -> list[PromptRecord]:
        """The records of all prompts done, in order."""
        done = [index for index in range(len(self.prompts)) if self.done(index)]
        return [self._record(self.prompt_folder(index) / METADATA) for index in done]

    def images(self, record: PromptRecord) -> list[Pixels]:
        """The kept images of a prompt, the best first."""
        return [_read_image(self.prompt_folder(record.prompt_idx) / str(kept.filename)) for kept in record.kept]

    def _record(self, path: Path) -> PromptRecord:
        try:
            return PromptRecord.from_json(read_json(path, str(path.parent)))
        except (GlideError, KeyError, TypeError):
            raise GlideError(
                f"{path} is damaged: remove it, and --resume {self.path} generates the prompt again"
            ) from None


def save_image(path: Path, pixels: Pixels, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a PNG or a JPEG, by the name's ending."""
    (save_png if path.suffix == ".png" else save_jpeg)(path, pixels, metadata)


def write_text(path: Path, text: str) -> None:
    r"""Writes UTF-8 atomically, `\udce9` for half a surrogate pair, which JSON reads back as such.

    Raises:
        GlideError: the file cannot be written.
    """
    with written(path) as temporary:
        temporary.write_text(valid_unicode(text), encoding="utf-8")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes JSON that any reader takes: paths and infinities become strings."""
    write_text(path, json.dumps(to_json(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object; raises `GlideError`, beginning with `what`, if there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON"
        raise GlideError(f"{what}: cannot read {path}: {reason}") from error
    if not isinstance(data, dict):
        raise GlideError(f"{what}: {path} is not a JSON object")
    return data


def _next_number(output: Path) -> Path:
    output.mkdir(parents=True, exist_ok=True)
    taken = [int(entry.name) for entry in os.scandir(output) if entry.name.isdecimal()]
    number = max(taken, default=-1) + 1
    while True:
        path = output / f"{number:05d}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def _read_image(path: Path) -> Pixels:
    try:
        return np.asarray(open_image(path))
    except UnreadableImage as error:
        raise GlideError(f"{error}; remove its folder, and --resume generates it again") from error
