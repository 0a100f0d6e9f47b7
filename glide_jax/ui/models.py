"""The models a page may choose from: checkpoints found in folders, a few of them loaded."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from glide_jax.errors import GlideError
from glide_jax.sample import LoadedClip, LoadedModel, Pipeline, checkpoint_config, checkpoint_step

_DEPTH = 3


@dataclass(frozen=True)
class Found:
    """A checkpoint that may be chosen.

    Attributes:
        name: what it is called by the page and its clients, who never see or send paths.
        path: a run folder, one of its steps or a converted model.
        image_size: side of the images it generates, in pixels.
        enlarges: side of the images it takes, if it is an upsampler, else 0.
        inpaints: whether it is an inpainting model.
    """

    name: str
    path: Path
    image_size: int
    enlarges: int = 0
    inpaints: bool = False

    @property
    def label(self) -> str:
        """What a person reads in the menu."""
        sizes = f"{self.enlarges} → {self.image_size} px" if self.enlarges else f"{self.image_size} px"
        return f"{self.name} ({sizes}{', inpainting' * self.inpaints})"


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
        kept: how many models stay loaded; the one unused for longest goes first.
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
    ) -> None:
        self._given, self._folders = [Path(path) for path in given], [Path(folder) for folder in folders]
        self._dtype, self._clip, self._batch_size = dtype, clip, batch_size
        self._loaded = lru_cache(kept)(self._load_step)
        self._lock = threading.Lock()
        self._found: dict[str, Found] = {}
        self.search()

    @property
    def has_clip(self) -> bool:
        """Whether images can be guided by the noised CLIP."""
        return self._clip is not None

    @property
    def bases(self) -> list[Found]:
        """The models that generate from text."""
        return [found for found in self._found.values() if not found.enlarges]

    @property
    def upsamplers(self) -> list[Found]:
        """The models that enlarge."""
        return [found for found in self._found.values() if found.enlarges]

    def search(self) -> None:
        """Looks again for what is there.

        Raises:
            GlideError: one of those named one by one is no checkpoint, or a folder to search does not exist.
        """
        found: dict[str, Found] = {}
        for path in self._given:
            _add(found, _described("/".join(path.parts[-2:]), path))
        for folder in self._folders:
            if not folder.expanduser().is_dir():
                raise GlideError(f"--models {folder}: no such folder")
            for new in _below(folder.expanduser(), folder.expanduser(), _DEPTH):
                if all(new.path.resolve() != other.path.expanduser().resolve() for other in found.values()):
                    _add(found, new)
        self._found = found

    def pipeline(self, base: str | None, upsampler: str | None) -> Pipeline:
        """The models of these names, loaded if they are not yet, in one pipeline.

        Raises:
            GlideError: no such name, a checkpoint that cannot be loaded, or two that do not fit each other.
        """
        if base is None and upsampler is None:
            raise GlideError("no model is chosen: choose a base model or an upsampler")
        models = [None if name is None else self._load(name) for name in (base, upsampler)]
        return Pipeline(models[0], models[1], self._clip, self._batch_size)

    def _load(self, name: str) -> LoadedModel:
        if name not in self._found:
            raise GlideError(f"there is no model {name[:100]!r} any more: choose another")
        found = self._found[name]
        with self._lock:
            # A run still training has a newer step tomorrow.
            return self._loaded(checkpoint_step(found.path), found)

    def _load_step(self, step: Path, found: Found) -> LoadedModel:
        try:
            return LoadedModel.from_checkpoint(step, self._dtype, None if found.enlarges else self._clip)
        except Exception as error:  # of a damaged file, whatever its reader throws
            reason = str(error).strip() or type(error).__name__
            if not isinstance(error, GlideError):
                reason = reason.splitlines()[0][:200]
            reason = reason.replace(str(step), found.name)  # where it lies is not for everyone to know
            raise Unloadable(f"{found.name} could not be loaded: {reason}") from error


def _described(name: str, path: Path) -> Found:
    config = checkpoint_config(path)
    return Found(name, path, config.image_size, config.low_res_size if config.super_res else 0, config.inpaint)


def _add(found: dict[str, Found], new: Found) -> None:
    names = (new.name, *(f"{new.name} ({number})" for number in range(2, len(found) + 2)))
    name = next(name for name in names if name not in found)
    found[name] = replace(new, name=name)


def _below(folder: Path, root: Path, depth: int) -> Iterator[Found]:
    """The checkpoints in a folder, called by their paths from `root`."""
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            found = _described(path.relative_to(root).as_posix(), path)
        except (GlideError, TypeError, ValueError):  # a folder, another format, another kind of network
            if depth > 1:
                yield from _below(path, root, depth - 1)
        else:
            yield found
