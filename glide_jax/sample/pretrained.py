"""A pipeline in one folder, to share: its models, and the settings to use them with.

    FOLDER/model_index.json   the folders of the models, and the settings
    FOLDER/base               the base model, a checkpoint of weights: a folder, or a safetensors file
    FOLDER/upsampler          the upsampler, the same

A model may be missing, and may have another name. A folder may also be a repository on the Hugging Face Hub,
hf://USER/NAME or hf://USER/NAME@REVISION; the models in use are then downloaded once.
"""

import argparse
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Self

from glide_jax import hub, sample
from glide_jax.diffusion.options import canonical_name
from glide_jax.errors import GlideError
from glide_jax.files import read_text, require_new, written
from glide_jax.options import from_json, to_json
from glide_jax.sample.options import (
    base_flags,
    base_options,
    flag_fields,
    of_upsampler,
    overruled,
    upsampler_flags,
    upsampler_named,
    upsampler_options,
)

INDEX = "model_index.json"
_BUNDLED = "checkpoints/emoji"
_PARTS = ("base", "upsampler")
_PART = re.compile(r"\w[\w.-]*", re.ASCII)
# The image to start from and the noised CLIP are not part of a pipeline folder.
_NO_SETTINGS = {"strength", "clip_guidance_scale", "upsampler_clip_guidance_scale"}


@dataclass(frozen=True)
class Pretrained:
    """The contents of a pipeline folder.

    Attributes:
        where: its path, or its name and commit on the Hub.
        base, upsampler: its models, as checkpoints for any program; None if missing.
        settings: those that differ from the defaults, by the flags of `sample.py`.
    """

    where: str
    base: str | None = None
    upsampler: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, name: str | Path) -> Self:
        """Reads the index of a folder, or of a repository on the Hub at its current commit.

        Raises:
            GlideError: there is no such folder or repository, or its index cannot be used.
        """
        if hub.is_name(name):
            repository = hub.parse(name)
            path, commit = hub.fetch_file(repository, INDEX)
            where = str(repository._replace(revision=commit))
        else:
            path, where = Path(name).expanduser() / INDEX, str(Path(name).expanduser())
            if not path.is_file():
                hint = f"; a repository of the Hugging Face Hub is hf://{name}" if str(name).count("/") == 1 else ""
                if Path(name).exists():
                    hint = "; models of their own are for Pipeline.from_checkpoints"
                raise GlideError(f"no pipeline at {name}: it has no {INDEX}{hint}")
        index = _read_index(path)
        parts = {part: f"{where}/{index[part]}" for part in _PARTS if part in index}
        return cls(where, settings=index.get("settings", {}), **parts)

    def of(self, part: str) -> dict[str, Any]:
        """The settings of one model, "base" or "upsampler"."""
        return {name: value for name, value in self.settings.items() if of_upsampler(name) == (part == "upsampler")}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises `GlideError` if settings of a pipeline are unknown, or invalid for the flags of `sample.py`."""
    if unknown := sorted(settings.keys() - (flag_fields().keys() - _NO_SETTINGS)):
        raise GlideError(f"{unknown[0]!r:.100} is not a setting of a pipeline")
    base_options({}, settings)
    upsampler_options({}, settings)


def write_index(folder: Path, parts: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """Writes the index of a folder that holds models of these names."""
    samplers = {name: canonical_name(value) for name, value in settings.items() if name.endswith("sampler")}
    index = {
        "_class_name": "GlidePipeline",
        "_glide_jax_version": version("glide-jax"),
        **parts,
        "settings": to_json({**settings, **samplers}),
    }
    with written(folder / INDEX) as partial:
        partial.write_text(json.dumps(index, indent=2, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Surrounds the writing of a folder, with its index last; if that fails, nothing is left.

    Raises:
        GlideError: the folder exists already.
    """
    require_new(folder)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def located(name: str | Path, part: str) -> tuple[str, Pretrained | None]:
    """The checkpoint that `name`, a checkpoint's or a pipeline's, refers to, and the pipeline it belongs to, if any.

    Args:
        name: a checkpoint, or a pipeline as `Pretrained.open` takes it.
        part: "base" or "upsampler".

    Raises:
        GlideError: the pipeline has no such model, or cannot be read.
    """
    if hub.is_name(name):
        repository = hub.parse(name)
        try:
            whole = Pretrained.open(str(repository._replace(inside="")))
        except GlideError:
            if not repository.inside:
                raise
            return str(hub.pinned(repository)), None  # a repository may hold a single model
        found = getattr(whole, part)
        if not repository.inside:
            return _present(found, name, part), whole
        pinned = f"{whole.where}/{repository.inside}"
        return pinned, whole if pinned == found else None
    with suppress(OSError, RuntimeError):  # what cannot be looked at is for its reader to complain of
        path = Path(name).expanduser()
        if (path / INDEX).is_file():
            whole = Pretrained.open(path)
            return _present(getattr(whole, part), name, part), whole
        for parent in (path.absolute().parent, path.resolve().parent):
            try:
                whole = Pretrained.open(parent)
            except GlideError:  # missing or foreign, and not asked for
                continue
            own = getattr(whole, part)
            if own is not None and Path(own).resolve() == path.resolve():
                return str(name), whole
    return str(name), None


class Chosen(NamedTuple):
    """The models to use, and the settings they bring, by the flags of `sample.py`."""

    base: str | None
    upsampler: str | None
    settings: dict[str, Any]


def choose(base: str | None, upsampler: str | None, lora: Sequence[str] = ()) -> Chosen:
    """The models named by --checkpoint and --upsampler, each a checkpoint or a pipeline; by default the bundled ones.

    A pipeline given as --checkpoint also brings its upsampler, unless one is given. The settings are those of
    pipelines, overridden by those of checkpoints and adapters distilled to few steps.

    Raises:
        GlideError: a pipeline cannot be read or lacks the model asked for; or no model is given, and the working
            directory is not the repository's, which has the bundled ones.
    """
    if base is None and upsampler is None:
        if not Path(_BUNDLED).is_dir():
            raise GlideError(
                f"no model: give --checkpoint DIR, or work in the repository's folder, which has {_BUNDLED}"
            )
        base = _BUNDLED
    settings: dict[str, Any] = {}
    if base is not None:
        given, (base, whole) = base, located(base, "base")
        if whole is not None:
            settings |= whole.of("base")
            if upsampler is None and base != given:
                upsampler = whole.upsampler
    if upsampler is not None:
        upsampler, whole = located(upsampler, "upsampler")
        settings |= {} if whole is None else whole.of("upsampler")
    return Chosen(base, upsampler, with_recorded(settings, base, upsampler, lora))


def with_recorded(
    settings: Mapping[str, Any],
    base: str | Path | None,
    upsampler: str | Path | None,
    lora: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Settings, by flag, overridden by the sampling options recorded in checkpoints and in the first one's adapters."""
    own, upsampling = ({} if path is None else sample.recorded_sampling(path) for path in (base, upsampler))
    for text in lora:
        (upsampling if base is None else own).update(sample.recorded_sampling(sample.split_scale(str(text))[0]))
    others = overruled(upsampler_flags(settings), upsampling)
    return overruled(base_flags(settings), own) | upsampler_named(others)


def parse_with_settings(parse: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses a command line with --checkpoint and --upsampler; the settings of `choose` become `args.settings`.

    Names on the Hub, including those of adapters, are resolved to commits.
    """
    args = parse.parse_args(argv)
    args.lora = args.lora and [_pinned_adapters(text) for text in args.lora]
    args.checkpoint, args.upsampler, args.settings = choose(args.checkpoint, args.upsampler, args.lora or ())
    return args


def _pinned_adapters(text: str) -> str:
    """PATH or PATH:SCALE, with a path on the Hub resolved to its commit."""
    if not hub.is_name(text):
        return text
    path = sample.split_scale(text)[0]
    return f"{hub.pinned(hub.parse(path))}{text.removeprefix(path)}"


def _present(found: str | None, name: str | Path, part: str) -> str:
    if found is None:
        raise GlideError(f"{name} has no {part}")
    return found


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(read_text(path, "the pipeline's"))
    except (ValueError, RecursionError) as error:
        raise GlideError(f"{path} is not JSON: {error}") from error
    if not isinstance(index, dict) or not any(part in index for part in _PARTS):
        raise GlideError(f"{path} names no base and no upsampler: it is from another library")
    for part in _PARTS:
        name = index.get(part, part)
        if not isinstance(name, str) or not _PART.fullmatch(name):
            raise GlideError(f"{path}: {part} must be the name of a folder or file beside it, not {name!r:.100}")
    settings = index.get("settings", {})
    if not isinstance(settings, dict):
        raise GlideError(f"{path}: its settings are {settings!r:.100}, not an object")
    index["settings"] = {name: from_json(value) for name, value in settings.items()}
    try:
        check_settings(index["settings"])
    except GlideError as error:
        raise GlideError(f"{path}: its settings cannot be used: {error}") from error
    return index
