"""Models on the Hugging Face Hub, named hf://USER/NAME@REVISION/FOLDER; the revision is optional."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from glide_jax.errors import GlideError, first_line, install

# With a single slash if the name passed through a `Path`.
_NAME = re.compile(r"hf://?([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?(?:/([\w./-]+))?/?", re.ASCII)
_FILE = ".safetensors"


class Name(NamedTuple):
    """A repository, its revision (None for the newest), and a folder in it ("" for all of it)."""

    repository: str
    revision: str | None
    inside: str

    def __str__(self) -> str:
        return (
            f"hf://{self.repository}{f'@{self.revision}' * bool(self.revision)}{f'/{self.inside}' * bool(self.inside)}"
        )


def is_name(path: str | PathLike[str]) -> bool:
    """Whether this names a repository or part of one, rather than a local path."""
    return str(path).startswith("hf:/")


def parse(name: str | PathLike[str]) -> Name:
    """The parts of a name; raises `GlideError` if it is malformed."""
    match = _NAME.fullmatch(str(name))
    if match is None or ".." in str(name):
        raise GlideError(
            f"{name} is not the name of a repository: it must be hf://USER/NAME or hf://USER/NAME@REVISION"
        )
    return Name(match[1], match[2], match[3] or "")


def fetch_file(name: Name, file: str) -> tuple[Path, str]:
    """Downloads a file; returns its local path and its commit.

    Raises:
        GlideError: there is no such repository, revision or file, or the Hub cannot be reached.
    """
    with _library(name, f"it has no {file}, so it is from another library") as hub:
        path = Path(hub.hf_hub_download(name.repository, file, revision=name.revision))
    return path, path.parent.name


def pinned(name: Name) -> Name:
    """The name of a model with its revision resolved to a commit; no model file is downloaded.

    Raises:
        GlideError: as `fetch_file`.
    """
    if name.inside.endswith(_FILE):
        with _library(name, f"it has no {name.inside}") as hub:
            found = hub.hf_hub_download(name.repository, name.inside, revision=name.revision, dry_run=True)
        return name._replace(revision=found.commit_hash)
    return name._replace(revision=fetch_checkpoint(name).parents[name.inside.count("/")].name)


@cache
def fetch_checkpoint(name: Name) -> Path:
    """Downloads a model, a folder or a safetensors file, and nothing else of its repository; returns its local path.

    Raises:
        GlideError: as `fetch_file`.
    """
    if not name.inside:
        raise GlideError(f"{name} is a whole repository: name the model's folder in it, as {name}/base")
    if name.inside.endswith(_FILE):
        return fetch_file(name, name.inside)[0]
    with _library(name, "it has no such folder") as hub:
        root = Path(hub.snapshot_download(
            name.repository, revision=name.revision, allow_patterns=f"{name.inside}/*"
        ))  # fmt: skip
    return root / name.inside


@contextmanager
def _library(name: Name, missing: str) -> Iterator[Any]:
    """huggingface_hub, with errors in one line; `missing` is the message for a file that does not exist."""
    try:
        import huggingface_hub  # noqa: PLC0415
        from huggingface_hub import errors  # noqa: PLC0415
    except ImportError as error:
        raise GlideError(f"{name} needs huggingface_hub: {install('hub')}") from error
    try:
        yield huggingface_hub
    except Exception as error:  # errors of its own, of its HTTP library, of the disk
        said = first_line(error)[:200]
        reasons: dict[type[Exception], str] = {
            errors.RepositoryNotFoundError: "there is no such repository, or it is private (`hf auth login`)",
            errors.RevisionNotFoundError: "the repository has no such revision",
            errors.RemoteEntryNotFoundError: missing,
            errors.LocalEntryNotFoundError: "the Hub cannot be reached, and it was not downloaded before",
        }
        reason = next((text for kind, text in reasons.items() if isinstance(error, kind)), said)
        raise GlideError(f"cannot get {name}: {reason}") from error
