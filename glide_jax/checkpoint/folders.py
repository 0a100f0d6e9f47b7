"""Which checkpoints there are, and which one a path means."""

from os import PathLike
from pathlib import Path

from glide_jax.checkpoint.step_format import TEMPORARY_SUFFIX, is_step
from glide_jax.errors import GlideError


def complete_steps(directory: Path) -> list[int]:
    """The steps of a checkpoints folder that were written to their end, ascending."""
    if not directory.is_dir():
        return []
    numbered = [folder for folder in directory.iterdir() if folder.name.isdecimal()]
    return sorted(int(folder.name) for folder in numbered if is_step(folder))


def unfinished(directory: Path) -> list[Path]:
    """What interrupted saves and deletions left in a checkpoints folder."""
    return [folder for folder in directory.iterdir() if TEMPORARY_SUFFIX in folder.name]


def resolve(path: str | PathLike[str], step: int | None = None) -> Path:
    """The folder of one complete step that `path` means: of a run, a checkpoints folder or a step.

    Args:
        path: any of the three.
        step: which step, by default the newest; of no use with a path that is one step already.

    Raises:
        GlideError: there is no such checkpoint.
    """
    directory = Path(path).expanduser()
    if not directory.is_dir():
        raise GlideError(f"no checkpoint at {path}: no such folder")
    if is_step(directory):
        if step is not None and directory.name != str(step):
            raise GlideError(f"{path} is one checkpoint already; leave out step {step}, or name its parent folder")
        return directory
    if (directory / "checkpoints").is_dir():
        directory = directory / "checkpoints"
    return step_folder(directory, step)


def step_folder(directory: Path, step: int | None = None) -> Path:
    """The folder of step `step` in a checkpoints folder, by default of the newest.

    Raises:
        GlideError: there is no such step.
    """
    steps = complete_steps(directory)
    if not steps:
        raise GlideError(f"no complete checkpoint in {directory}")
    if step is not None and step not in steps:
        raise GlideError(f"no checkpoint of step {step} in {directory}; there are {', '.join(map(str, steps))}")
    return directory / str(steps[-1] if step is None else step)
