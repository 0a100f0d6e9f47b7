"""A pipeline in one folder, to hand on: its models, and the settings they were chosen to be used with.

    FOLDER/model_index.json   the names of the parts, and the settings
    FOLDER/base               the base model, a checkpoint of weights
    FOLDER/upsampler          the upsampler, the same

A part may be missing. A folder may also be a repository of the Hugging Face Hub, written hf://USER/NAME or
hf://USER/NAME@REVISION, of which the parts alone are downloaded, once.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Self

from glide_jax.errors import GlideError
from glide_jax.files import read_text, written
from glide_jax.sample.options import OF_UPSAMPLER, Settings, base_options, changed_flags, flags, upsampler_options

INDEX = "model_index.json"
_BUNDLED = "checkpoints/emoji"
_PARTS = ("base", "upsampler")
_HUB = "hf://"
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
_PART = re.compile(r"\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Pretrained:
    """What a folder holds.

    Attributes:
        folder: where it is on this machine.
        base, upsampler: its models; None where there is none.
        settings: those that differ from the usual ones, by the flags of `sample.py`.
    """

    folder: Path
    base: Path | None = None
    upsampler: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, name: str | Path) -> Self:
        """Reads what a folder, or a repository of the Hub, holds; the latter is downloaded if it is not yet.

        Raises:
            GlideError: there is no such folder or repository, or its index cannot be used.
        """
        folder = _download(str(name)) if str(name).startswith(_HUB) else Path(name).expanduser()
        if not (folder / INDEX).is_file():
            hint = f"; a repository of the Hugging Face Hub is {_HUB}{name}" if _REPOSITORY.fullmatch(str(name)) else ""
            raise GlideError(f"no pipeline at {name}: it has no {INDEX}{hint}")
        index = _read_index(folder / INDEX)
        parts = {part: folder / index[part] for part in _PARTS if part in index}
        return cls(folder, settings=index.get("settings", {}), **parts)

    def of(self, part: str) -> dict[str, Any]:
        """The settings of one part, base or upsampler."""
        return {
            name: value
            for name, value in self.settings.items()
            if name.startswith(OF_UPSAMPLER) == (part == "upsampler")
        }

    @property
    def in_force(self) -> Settings:
        """The settings as options, the usual ones where the folder has none."""
        return Settings(base_options(self.settings), upsampler_options(self.settings))


def write_index(folder: Path, parts: Sequence[str], settings: Settings) -> None:
    """Writes the index of a folder whose parts, base and upsampler, have folders of these names."""
    index = {
        "_class_name": "GlidePipeline",
        "_glide_jax_version": version("glide-jax"),
        **{part: part for part in parts},
        "settings": changed_flags(*settings),
    }
    with written(folder / INDEX) as partial:
        partial.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def bundled() -> Pretrained:
    """The small models in `checkpoints/emoji`, for when none is given.

    Raises:
        GlideError: the working directory is not the repository's.
    """
    if not Path(_BUNDLED).is_dir():
        raise GlideError(f"no model: give --checkpoint DIR, or work in the repository's folder, which has {_BUNDLED}")
    return Pretrained.open(_BUNDLED)


def located(name: str | Path, part: str) -> tuple[str, Pretrained | None]:
    """The checkpoint that is meant by the path of one, or by a whole pipeline; and the pipeline that it belongs to.

    Args:
        name: a checkpoint, or a pipeline as `Pretrained.open` takes it.
        part: base or upsampler.

    Raises:
        GlideError: the pipeline has no such part, or cannot be read.
    """
    path = Path(name).expanduser()
    if str(name).startswith(_HUB) or (path / INDEX).is_file():
        whole = Pretrained.open(name)
        found = getattr(whole, part)
        if found is None:
            raise GlideError(f"{name} has no {part}")
        return str(found), whole
    if (path.absolute().parent / INDEX).is_file():
        whole = Pretrained.open(path.absolute().parent)
        own = getattr(whole, part)
        if own is not None and own.resolve() == path.resolve():
            return str(name), whole
    return str(name), None


class Chosen(NamedTuple):
    """The models that are meant, and the settings they bring, by the flags of `sample.py`."""

    base: str | None
    upsampler: str | None
    settings: dict[str, Any]


def choose(base: str | None, upsampler: str | None) -> Chosen:
    """The models meant by --checkpoint and --upsampler, each a checkpoint or a pipeline; none at all is the bundled.

    A pipeline as --checkpoint brings its upsampler too where none is given.

    Raises:
        GlideError: a pipeline that cannot be read, or lacks the model that is asked for.
    """
    if base is None and upsampler is None:
        base = str(bundled().folder)
    settings: dict[str, Any] = {}
    if base is not None:
        given, (base, whole) = base, located(base, "base")
        if whole is not None:
            settings |= whole.of("base")
            if upsampler is None and base != given and whole.upsampler is not None:
                upsampler = str(whole.upsampler)
    if upsampler is not None:
        upsampler, whole = located(upsampler, "upsampler")
        settings |= {} if whole is None else whole.of("upsampler")
    return Chosen(base, upsampler, settings)


def parse_with_settings(parse: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses a command line with --checkpoint and --upsampler: see `choose`, whose settings it may overrule."""
    given = parse.parse_args(argv)
    base, upsampler, settings = choose(given.checkpoint, given.upsampler)
    parse.set_defaults(**settings)
    args = parse.parse_args(argv)
    args.checkpoint, args.upsampler = base, upsampler
    return args


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(read_text(path, "the pipeline's"))
    except (ValueError, RecursionError) as error:
        raise GlideError(f"{path} is not JSON: {error}") from error
    if not isinstance(index, dict) or not any(part in index for part in _PARTS):
        raise GlideError(f"{path} names no base and no upsampler: it is of another library")
    for part in _PARTS:
        name = index.get(part, part)
        if not isinstance(name, str) or not _PART.fullmatch(name):
            raise GlideError(f"{path}: {part} must be the name of a folder beside it, not {name!r:.100}")
    settings = index.get("settings", {})
    known = flags(*Settings()).keys() - {"strength"}
    if not isinstance(settings, dict) or (unknown := sorted(settings.keys() - known)):
        what = f"unknown {unknown[0]!r:.100}" if isinstance(settings, dict) else f"{settings!r:.100}, not an object"
        raise GlideError(f"{path}: its settings are {what}")
    try:
        base_options(settings), upsampler_options(settings)
    except GlideError as error:
        raise GlideError(f"{path}: its settings cannot be used: {error}") from error
    return index


def _download(name: str) -> Path:
    """The folder of a repository of the Hub on this machine, with its index and parts."""
    match = _REPOSITORY.fullmatch(name.removeprefix(_HUB))
    if match is None:
        raise GlideError(f"{name} is no repository: it must be {_HUB}USER/NAME or {_HUB}USER/NAME@REVISION")
    repository, revision = match.groups()
    # The index first: a repository may hold much else.
    with _hub(name) as hub:
        index = Path(hub.hf_hub_download(repository, INDEX, revision=revision))
    wanted = [INDEX, *(f"{part}/*" for part in _PARTS if part in _read_index(index))]
    with _hub(name) as hub:
        return Path(hub.snapshot_download(repository, revision=index.parent.name, allow_patterns=wanted))


@contextmanager
def _hub(name: str) -> Iterator[Any]:
    """The Hub's library, its errors said in one line."""
    try:
        import huggingface_hub  # noqa: PLC0415
        from huggingface_hub import errors  # noqa: PLC0415
    except ImportError as error:
        raise GlideError(f"{name} needs huggingface_hub: install the extra with `uv sync --extra hub`") from error
    try:
        yield huggingface_hub
    except Exception as error:  # of its own, of its HTTP library, of the disk
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        reasons: dict[type[Exception], str] = {
            errors.RepositoryNotFoundError: "there is no such repository, or it is private (`hf auth login`)",
            errors.RevisionNotFoundError: "the repository has no such revision",
            errors.RemoteEntryNotFoundError: f"it has no {INDEX}, so it is of another library",
            errors.LocalEntryNotFoundError: "the Hub cannot be reached, and it was not downloaded before",
        }
        reason = next((text for kind, text in reasons.items() if isinstance(error, kind)), said)
        raise GlideError(f"cannot get {name}: {reason}") from error
