"""Finds checkpoints: those that exist, the one a path refers to, and the one a run can resume from."""

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from glide_jax import hub
from glide_jax.checkpoint import safetensors_file
from glide_jax.checkpoint.step_format import TEMPORARY_SUFFIX, DamagedError, check, is_step, require_complete
from glide_jax.errors import GlideError

# A zip archive, torch's format, and a pickle, its former one.
_TORCH_BEGINS = (b"PK", b"\x80")
# Folders where the documentation puts the models that `python -m convert` knows by these names.
_PUBLISHED = {name: name for name in ("base", "upsample", "base-inpaint", "upsample-inpaint")} | {
    "clip-text": "clip/text-enc",
    "clip-image": "clip/image-enc",
}
_WITH_STEP = re.compile(r"(.+)@([0-9]{1,18})/?")


@dataclass(frozen=True)
class Newest:
    """The newest intact step.

    Attributes:
        step: its number; None if there are no steps.
        damaged: newer steps, and what is wrong with each.
    """

    step: int | None
    damaged: dict[int, str]


def complete_steps(directory: Path) -> list[int]:
    """The completely written steps in a checkpoints folder, ascending."""
    return [step for step in _numbered(directory) if is_step(directory / str(step))]


def newest_intact(directory: Path) -> Newest:
    """The step in a checkpoints folder to resume from; all of its files are read.

    Raises:
        GlideError: all steps are damaged, or one cannot be read.
    """
    damaged: dict[int, str] = {}
    for step in reversed(_numbered(directory)):
        folder = directory / str(step)
        try:
            require_complete(folder)
            check(folder)
        except DamagedError as error:
            damaged[step] = error.found
        else:
            return Newest(step, damaged)
    if damaged:
        others = "so are all others" if len(damaged) > 1 else "there is no other"
        raise GlideError(f"{damaged[max(damaged)]}; {others} in {directory}")
    return Newest(None, {})


def unfinished(directory: Path) -> list[Path]:
    """Leftovers of interrupted saves and deletions in a checkpoints folder."""
    return [folder for folder in directory.iterdir() if TEMPORARY_SUFFIX in folder.name]


def lasting(path: Path) -> Path:
    """A checkpoint's absolute path; a file's link is not followed, as its target may lack the suffix."""
    return path.absolute() if path.is_file() else path.resolve()


def resolve(path: str | PathLike[str], step: int | None = None) -> Path:
    """What `path` refers to: the folder of a complete step, or a safetensors file.

    Args:
        path: a run folder, its checkpoints folder or one step's; PATH@STEP names a step of the first two. Or a
            safetensors file. hf://USER/NAME@REVISION/PART is such a folder or file in a repository of the Hugging Face
            Hub, downloaded if it is not yet.
        step: the step, by default the newest; not with a path that already is a step.

    Raises:
        GlideError: there is no such checkpoint, it cannot be looked at, or a part of it is missing.
    """
    try:
        return _resolved(path, step)
    except (OSError, RuntimeError) as error:  # no permission, too long a name, ~NOBODY
        raise GlideError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _resolved(path: str | PathLike[str], step: int | None) -> Path:
    directory = hub.fetch_checkpoint(hub.parse(path)) if hub.is_name(path) else Path(path).expanduser()
    if not directory.is_dir() and step is None and (match := _WITH_STEP.fullmatch(str(directory))):
        directory, step = Path(match[1]), int(match[2])
    if safetensors_file.is_file(directory):
        if step is not None:
            raise GlideError(f"{directory} is one file: leave out step {step}")
        return directory
    if not directory.is_dir():
        raise GlideError(_nothing(path, directory))
    if is_step(directory):
        if step is not None and directory.name != str(step):
            raise GlideError(f"{directory} is one checkpoint already; leave out step {step}, or name its parent folder")
        return directory
    if (directory / "checkpoints").is_dir():
        directory = directory / "checkpoints"
    return step_folder(directory, step)


def _nothing(path: str | PathLike[str], found: Path) -> str:
    """An error on why there is no checkpoint at a path, and what to do."""
    if found.is_file():
        if _begins(found).startswith(_TORCH_BEGINS):
            return f"{path} is a PyTorch file: convert it first, python -m convert to-flax {path} --output DIR"
        return f"{path} is a file, and no checkpoint: give a folder, or a {safetensors_file.SUFFIX} file"
    said = f"no checkpoint at {path}: no such {'file' if found.suffix == safetensors_file.SUFFIX else 'folder'}"
    if found.name in _PUBLISHED:
        said += f"; get the published weights with python -m convert to-flax {_PUBLISHED[found.name]} --output {path}"
    return said


def _begins(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(2)
    except OSError:
        return b""


def step_folder(directory: Path, step: int | None = None) -> Path:
    """The folder of a step in a checkpoints folder, by default the newest.

    Raises:
        GlideError: there is no such step, or a part of it is missing.
    """
    steps = _numbered(directory)
    if not steps:
        inside = sorted(folder.name for folder in directory.iterdir() if is_step(folder)) if directory.is_dir() else []
        hint = f"; name the one that you mean: {', '.join(inside[:5])}" if inside else ""
        if (directory / "model_index.json").is_file():
            hint += "; it is a whole pipeline, which Pipeline.from_pretrained loads"
        raise GlideError(f"no complete checkpoint in {directory}{hint}")
    if step is not None and step not in steps:
        raise GlideError(f"no checkpoint of step {step} in {directory}; there are {', '.join(map(str, steps))}")
    folder = directory / str(steps[-1] if step is None else step)
    require_complete(folder)
    return folder


def _numbered(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    names = [folder.name for folder in directory.iterdir() if folder.name.isdecimal() and folder.is_dir()]
    return sorted(int(name) for name in names if name == str(int(name)))
