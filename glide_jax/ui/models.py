"""The models a page may choose from, a few of them loaded."""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from glide_jax.errors import GlideError
from glide_jax.sample import Adapters, LoadedClip, LoadedModel, Pipeline, checkpoint_step, choose, of_upsampler
from glide_jax.ui.found import Found, FoundAdapters, search


class Unloadable(GlideError):
    """A model that is there cannot be loaded, which is not the fault of who asked for it."""


class Models:
    """Checkpoints by name, loaded when asked for; what is loaded stays usable whatever else fails to load.

    Args:
        given: checkpoints named one by one.
        folders: searched for more, a few levels deep.
        dtype: compute type.
        clip: the noised CLIP, to guide by.
        batch_size: images generated at once.
        kept: how many models stay loaded, one with adapters being a model; the one unused for longest goes first.
        lora: adapters named one by one, each as PATH or PATH:SCALE.
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
        self._loaded = lru_cache(kept)(self._load_step)
        self._read = lru_cache(kept)(_read_adapters)
        self._lock = threading.Lock()
        self._sha256s: dict[Path, str] = {}
        self.search()

    @property
    def has_clip(self) -> bool:
        """Whether images can be guided by the noised CLIP."""
        return self._clip is not None

    @property
    def bases(self) -> list[Found]:
        """The models that generate from text."""
        return [found for found in self._there.models.values() if not found.enlarges]

    @property
    def upsamplers(self) -> list[Found]:
        """The models that enlarge."""
        return [found for found in self._there.models.values() if found.enlarges]

    @property
    def adapters(self) -> list[FoundAdapters]:
        """What may be added to base models."""
        return list(self._there.adapters.values())

    def scale(self, adapters: str) -> float:
        """How much of adapters is added where nobody says."""
        found = self._there.adapters.get(adapters)
        return 1.0 if found is None else found.scale

    def search(self) -> None:
        """Looks again for what is there; raises `GlideError` as `glide_jax.ui.found.search` does."""
        self._there = search(self._given, self._lora, self._folders)

    def fitting(self, base: str) -> list[FoundAdapters]:
        """The adapters that may be added to a base model, which is loaded to know that, if there are any at all."""
        if not self._there.adapters or not base:
            return []
        sha256 = self._sha256(base)
        return [each for each in self._there.adapters.values() if each.base_sha256 == sha256]

    def _sha256(self, base: str) -> str:
        with self._lock:
            found = self._model(base)
            step = checkpoint_step(found.path)
            # Kept when the model itself has gone: whoever opens the page asks.
            if step not in self._sha256s:
                self._sha256s[step] = self._loaded(step, found).sha256
            return self._sha256s[step]

    def settings(self, base: str, upsampler: str, adapters: Sequence[str] = ()) -> dict[str, Any]:
        """What these models and adapters bring of their own, by the flags of `sample.py`; names not there bring none.

        Raises:
            GlideError: what one says cannot be used.
        """
        models = [self._there.models.get(name) for name in (base, upsampler)]
        paths = [None if found is None else str(found.path) for found in models]
        if paths == [None, None]:
            return {}
        lora = [str(self._there.adapters[name].path) for name in adapters if name in self._there.adapters]
        own = choose(paths[0], paths[1], lora).settings
        return {name: value for name, value in own.items() if paths[of_upsampler(name)] is not None}

    def pipeline(
        self, base: str | None, upsampler: str | None, adapters: Mapping[str, float] = MappingProxyType({})
    ) -> Pipeline:
        """The models of these names, loaded if they are not yet, in one pipeline.

        Args:
            base, upsampler: names; None is none.
            adapters: those to add to the base model, and the scale of each.

        Raises:
            GlideError: no such name, a checkpoint that cannot be loaded, or two that do not fit each other.
        """
        if base is None and upsampler is None:
            raise GlideError("no model is chosen: choose a base model or an upsampler")
        return Pipeline(
            None if base is None else self._load(base, adapters),
            None if upsampler is None else self._load(upsampler),
            self._clip,
            self._batch_size,
        )

    def _load(self, name: str, adapters: Mapping[str, float] = MappingProxyType({})) -> LoadedModel:
        with self._lock:
            found = self._model(name)
            # A run still training has a newer step tomorrow.
            step = checkpoint_step(found.path)
            # By a scale of 0 they are as good as not there.
            added = [(self._named_adapters(each), scale) for each, scale in adapters.items() if scale]
            if not added:
                return self._loaded(step, found)
            return self._loaded(step, found, tuple((checkpoint_step(each.path), each, by) for each, by in added))

    def _model(self, name: str) -> Found:
        if name not in self._there.models:
            raise GlideError(f"there is no model {name[:100]!r} any more: choose another")
        return self._there.models[name]

    def _named_adapters(self, name: str) -> FoundAdapters:
        if name not in self._there.adapters:
            raise GlideError(f"there is no LoRA {name[:100]!r} any more: choose another")
        return self._there.adapters[name]

    def _load_step(
        self, step: Path, found: Found, adapters: Sequence[tuple[Path, FoundAdapters, float]] = ()
    ) -> LoadedModel:
        """A model; one with adapters is made of the one without, which stays loaded beside it if there is room."""
        if not adapters:
            with _said_by_name(found.name, step):
                return LoadedModel.from_checkpoint(step, self._dtype, None if found.enlarges else self._clip)
        model = self._loaded(step, found)
        return model.with_adapters([replace(self._read(path, each.name), scale=by) for path, each, by in adapters])


def _read_adapters(step: Path, name: str) -> Adapters:
    with _said_by_name(name, step):
        found = Adapters.load(step)
    # Where they and their base lie is not for everyone to know.
    return replace(found, where=name, base=Path(found.base).name)


@contextlib.contextmanager
def _said_by_name(name: str, path: Path) -> Iterator[None]:
    """Makes whatever the reader of a damaged file throws one line, with its name in place of its path."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        if not isinstance(error, GlideError):
            reason = reason.splitlines()[0][:200]
        reason = reason.replace(str(path), name)  # where it lies is not for everyone to know
        raise Unloadable(f"{name} could not be loaded: {reason}") from error
