"""The models a page offers, of which a few are loaded."""

import contextlib
import os
import re
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from glide_jax.errors import GlideError
from glide_jax.hub import is_name
from glide_jax.sample import (
    Adapters,
    LoadedClip,
    LoadedModel,
    Pipeline,
    checkpoint_step,
    choose,
    of_upsampler,
    trained_on,
)
from glide_jax.ui.found import FoundAdapters, FoundModel, search

# Where an absolute path of any system may begin, as opposed to a repository on the Hub.
_ROOT = re.compile(r"(?<!hf:)(?<!hf:/)(?<![\w.)])[/\\]\S|\b[A-Za-z]:[/\\]")
_IN_THE_LOG = "the server's log says why"


class Unloadable(GlideError):
    """An existing model cannot be loaded, which is not the client's fault."""


class Version(NamedTuple):
    """A model or adapters as they are now: a run in training gets newer steps, and a file may be overwritten."""

    found: FoundModel | FoundAdapters
    step: Path
    stamp: tuple[int, ...] = ()

    @classmethod
    def of(cls, found: FoundModel | FoundAdapters) -> Self:
        """The current version; raises `Unloadable` if it no longer exists."""
        with _said_by_name(found):
            step = checkpoint_step(found.path)
            if step.is_dir():
                return cls(found, step)
            about = step.stat()
            return cls(found, step, (about.st_mtime_ns, about.st_size))


class Wanted(NamedTuple):
    """What names stood for when they were looked up; adapters with their scales, which are not 0."""

    base: Version | None = None
    upsampler: Version | None = None
    adapters: tuple[tuple[Version, float], ...] = ()


class Models:
    """Checkpoints by name, loaded on demand; loaded ones stay usable when others fail to load.

    Args:
        given: individual checkpoints.
        folders: searched for more, a few levels deep.
        dtype: compute type.
        clip: the noised CLIP, to guide by.
        batch_size: images generated at once.
        kept: how many models stay loaded, and, counted separately, how many copies with adapters merged; the least
            recently used is dropped first.
        lora: individual adapters, each as PATH or PATH:SCALE.
    """

    def __init__(
        self,
        given: Sequence[str | Path],
        folders: Sequence[str | Path] = (),
        *,
        dtype: str = "float32",
        clip: LoadedClip | None = None,
        batch_size: int = 4,
        kept: int = 3,
        lora: Sequence[str] = (),
    ) -> None:
        self._given, self._folders = [Path(path) for path in given], [Path(folder) for folder in folders]
        self._lora = list(lora)
        self._dtype, self._clip, self._batch_size = dtype, clip, batch_size
        self._loaded = lru_cache(kept)(self._load_version)
        # Separate, so that requests that differ in a scale do not displace the weights that all of them need.
        self._merged = lru_cache(kept)(self._merge)
        self._read = lru_cache(kept)(_read_adapters)
        self._lock = threading.Lock()
        self._sha256s: dict[Version, str] = {}
        self.search()

    @property
    def has_clip(self) -> bool:
        """Whether the noised CLIP can guide images."""
        return self._clip is not None

    @property
    def bases(self) -> list[FoundModel]:
        """The models that generate from text."""
        return [found for found in self._there.models.values() if not found.enlarges]

    @property
    def upsamplers(self) -> list[FoundModel]:
        """The models that enlarge."""
        return [found for found in self._there.models.values() if found.enlarges]

    @property
    def adapters(self) -> list[FoundAdapters]:
        """The adapters for base models."""
        return list(self._there.adapters.values())

    def scale(self, adapters: str) -> float:
        """The default scale of adapters."""
        found = self._there.adapters.get(adapters)
        return 1.0 if found is None else found.scale

    def search(self) -> None:
        """Searches again; raises `GlideError` as `glide_jax.ui.found.search` does."""
        self._there = search(self._given, self._lora, self._folders)

    def search_again(self) -> None:
        """`search` for clients: an error goes to the log, `Unloadable` says so, and everything stays as it was."""
        try:
            self.search()
        except (GlideError, OSError) as error:
            traceback.print_exception(error)
            raise Unloadable(f"what is new could not be looked for: {_IN_THE_LOG}") from error

    def fitting(self, base: str) -> list[FoundAdapters]:
        """The adapters that fit a base model, which is loaded to find out if there are any adapters."""
        if not self._there.adapters or not base:
            return []
        sha256 = self._sha256(Version.of(self._model(base)))
        return [each for each in self._there.adapters.values() if each.base_sha256 == sha256]

    def _sha256(self, base: Version) -> str:
        # Opening the page calls this: it must not wait for another model to load, nor fail for one that is gone.
        if base not in self._sha256s:
            with self._lock:
                self._sha256s[base] = self._loaded(base).sha256
        return self._sha256s[base]

    def settings(self, base: str, upsampler: str, adapters: Sequence[str] = ()) -> dict[str, Any]:
        """The settings that these models and adapters bring, by the flags of `sample.py`; unknown names bring none.

        Raises:
            GlideError: the settings of one cannot be used.
        """
        models = [self._there.models.get(name) for name in (base, upsampler)]
        paths = [None if found is None else str(found.path) for found in models]
        if paths == [None, None]:
            return {}
        lora = [self._there.adapters[name] for name in adapters if name in self._there.adapters]
        with _said_by_name(*filter(None, models), *lora):
            own = choose(paths[0], paths[1], [str(each.path) for each in lora]).settings
        return {name: value for name, value in own.items() if paths[of_upsampler(name)] is not None}

    def pipeline(
        self, base: str | None, upsampler: str | None, adapters: Mapping[str, float] = MappingProxyType({})
    ) -> Pipeline:
        """A pipeline of the models with these names, which are loaded if necessary.

        Args:
            base, upsampler: names, or None.
            adapters: adapters for the base model, with their scales.

        Raises:
            GlideError: a name is unknown, adapters are of another base model, a checkpoint cannot be loaded, or two do
                not fit each other.
        """
        return self.load(self.wanted(base, upsampler, adapters))

    def wanted(
        self, base: str | None, upsampler: str | None, adapters: Mapping[str, float] = MappingProxyType({})
    ) -> Wanted:
        """What these names stand for now; arguments and errors as for `pipeline`, but nothing is loaded.

        Except the base model, if adapters are named, to check that they fit.
        """
        if base is None and upsampler is None:
            raise GlideError("no model is chosen: choose a base model or an upsampler")
        found, enlarging = (None if name is None else Version.of(self._model(name)) for name in (base, upsampler))
        fitting = {each.name: each for each in self.fitting(base or "")} if adapters else {}
        for name in adapters:
            if name not in fitting:
                raise GlideError(f"no LoRA {name[:100]!r} for {base}; there are: {', '.join(fitting) or 'none'}")
        # A scale of 0 is the same as leaving them out.
        added = tuple((Version.of(fitting[name]), scale) for name, scale in adapters.items() if scale)
        return Wanted(found, enlarging, added)

    def load(self, wanted: Wanted) -> Pipeline:
        """A pipeline of these models, which are loaded if necessary; errors as for `pipeline`."""
        base, upsampler, adapters = wanted
        with self._lock:
            generates = base and (self._merged(base, adapters) if adapters else self._loaded(base))
            enlarges = upsampler and self._loaded(upsampler)
        return Pipeline(generates, enlarges, self._clip, self._batch_size)

    def outline(self, wanted: Wanted) -> Pipeline:
        """A pipeline without weights and adapters, for checking requests; loads nothing; errors as for `load`."""
        base, upsampler, _ = wanted
        load = LoadedModel.without_weights
        generates, enlarges = (None if each is None else self._open(each, load) for each in (base, upsampler))
        return Pipeline(generates, enlarges, self._clip, self._batch_size)

    def _model(self, name: str) -> FoundModel:
        if name not in self._there.models:
            raise GlideError(f"there is no model {name[:100]!r}: choose another, or reload the page")
        return self._there.models[name]

    def _load_version(self, version: Version) -> LoadedModel:
        return self._open(version, LoadedModel.from_checkpoint)

    def _open(self, version: Version, load: Callable[..., LoadedModel]) -> LoadedModel:
        found, step, _ = version
        with _said_by_name(found):
            upsampler = isinstance(found, FoundModel) and found.enlarges
            return load(step, self._dtype, None if upsampler else self._clip)

    def _merge(self, base: Version, adapters: Sequence[tuple[Version, float]]) -> LoadedModel:
        return self._loaded(base).with_adapters([replace(self._read(each), scale=scale) for each, scale in adapters])


def _read_adapters(version: Version) -> Adapters:
    with _said_by_name(version.found):
        read = Adapters.load(version.step)
    return replace(read, where=version.found.name, base=_last(read.base))


@contextlib.contextmanager
def _said_by_name(*them: FoundModel | FoundAdapters) -> Iterator[None]:
    """Turns any error from reading a damaged file into one line, with names instead of paths."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        # Clients must not learn the paths of models, nor those of pipelines or base models they refer to.
        for path, name in _names(them).items():
            for written in (path, repr(path)[1:-1]):
                reason = reason.replace(written, name)
        if not isinstance(error, GlideError):
            reason = reason.splitlines()[0][:200]
        if _ROOT.search(reason):
            traceback.print_exception(error)
            reason = _IN_THE_LOG
        raise Unloadable(f"{', '.join(each.name for each in them)} could not be loaded: {reason}") from error


def _names(them: Sequence[FoundModel | FoundAdapters]) -> dict[str, str]:
    """Replacements for the paths of these, of their folders and of their base models, the longest path first."""
    names: dict[str, str] = {}
    for each in them:
        with contextlib.suppress(Exception):  # it may be damaged, or a loop of links
            if not is_name(each.path) and (trained := trained_on(each.path)) is not None:
                names[trained.base] = _last(trained.base)
        for path in (each.path, each.path.expanduser().absolute(), Path(os.path.realpath(each.path.expanduser()))):
            names |= {str(path.parent): path.parent.name, str(path): each.name}
    # A bare name reveals no folder, and may be a word in the sentence.
    return {path: names[path] for path in sorted(names, key=len, reverse=True) if re.search(r"[/\\][^/\\]", path)}


def _last(path: str) -> str:
    """The last part of a path of any system."""
    return PureWindowsPath(path).name
