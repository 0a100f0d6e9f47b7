"""The models and adapters to choose from, given by name or found in folders."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from glide_jax.errors import GlideError
from glide_jax.sample import checkpoint_config, split_scale, trained_on

MOST_SCALE = 2
_DEPTH = 3
_T = TypeVar("_T", "FoundModel", "FoundAdapters")


@dataclass(frozen=True)
class FoundModel:
    """A model that can be selected.

    Attributes:
        name: its name for the page and its clients, who never see or send paths.
        path: a run folder, one of its steps or a converted model.
        image_size: side of the images it generates, in pixels.
        enlarges: side of an upsampler's input images; 0 for other models.
        inpaints: whether it is an inpainting model.
    """

    name: str
    path: Path
    image_size: int
    enlarges: int = 0
    inpaints: bool = False

    @property
    def label(self) -> str:
        """Its label in the menu."""
        sizes = f"{self.enlarges} → {self.image_size} px" if self.enlarges else f"{self.image_size} px"
        return f"{self.name} ({sizes}{', inpainting' * self.inpaints})"


@dataclass(frozen=True)
class FoundAdapters:
    """Adapters (LoRA), for use with the base model they were trained on.

    Attributes:
        name: as for a model.
        path: a run folder, one of its steps, or plain weights.
        base_sha256: the `LoadedModel.sha256` of that base model.
        scale: their default scale.
        given: whether they were given by name rather than found in a folder.
    """

    name: str
    path: Path
    base_sha256: str
    scale: float = 1.0
    given: bool = False


@dataclass(frozen=True)
class Available:
    """All models and adapters, by name."""

    models: dict[str, FoundModel] = field(default_factory=dict)
    adapters: dict[str, FoundAdapters] = field(default_factory=dict)


def search(given: Sequence[Path], lora: Sequence[str], folders: Sequence[Path]) -> Available:
    """Finds the models and adapters that exist now.

    Args:
        given: individual checkpoints, which are models; adapters count as the model they make.
        lora: individual adapters, each as PATH or PATH:SCALE.
        folders: searched for more, a few levels deep; adapters bring along their base model, if it still exists.

    Raises:
        GlideError: an individual path is not a checkpoint, or a folder to search does not exist.
    """
    there = Available()
    for path in given:
        _add(there.models, _described(_short(path), path))
    for text in lora:
        _add(there.adapters, _adapters(*split_scale(text)))
    bases = []
    for folder in (folder.expanduser() for folder in folders):
        if not folder.is_dir():
            raise GlideError(f"--models {folder}: no such folder")
        for new in _below(folder, folder, _DEPTH):
            if _is_among([*there.models.values(), *there.adapters.values()], new.path):
                continue
            trained = None if new.enlarges else trained_on(new.path)
            if trained is None:
                _add(there.models, new)
                continue
            _add(there.adapters, FoundAdapters(new.name, new.path, trained.sha256))
            if trained.is_there:
                bases.append(replace(new, name=_short(Path(trained.base)), path=Path(trained.base)))
    for base in bases:
        if not _is_among(there.models.values(), base.path):
            _add(there.models, base)
    return there


def _short(path: Path) -> str:
    return "/".join(path.parts[-2:])


def _described(name: str, path: Path) -> FoundModel:
    config = checkpoint_config(path)
    return FoundModel(name, path, config.image_size, config.low_res_size if config.super_res else 0, config.inpaint)


def _adapters(path: str, scale: float) -> FoundAdapters:
    if not 0 <= scale <= MOST_SCALE:
        raise GlideError(f"--lora {path}:{scale:g}: the page adds adapters with a scale of 0 to {MOST_SCALE}")
    trained = trained_on(path)
    if trained is None or checkpoint_config(path).super_res:
        raise GlideError(f"--lora {path}: it must be adapters of a base model")
    return FoundAdapters(_short(Path(path)), Path(path), trained.sha256, scale, given=True)


def _is_among(known: Iterable[FoundModel | FoundAdapters], path: Path) -> bool:
    return any(path.resolve() == other.path.expanduser().resolve() for other in known)


def _add(known: dict[str, _T], new: _T) -> None:
    names = (new.name, *(f"{new.name} ({number})" for number in range(2, len(known) + 2)))
    name = next(name for name in names if name not in known)
    known[name] = replace(new, name=name)


def _below(folder: Path, root: Path, depth: int) -> Iterator[FoundModel]:
    """The checkpoints in a folder, named by their paths from `root`."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path.is_dir() or path.suffix == ".safetensors"):
            continue
        try:
            found = _described(path.relative_to(root).as_posix(), path)
        except (GlideError, TypeError, ValueError):  # a folder, another format, another kind of network
            if path.is_dir() and depth > 1:
                with suppress(PermissionError):
                    yield from _below(path, root, depth - 1)
        else:
            yield found
