"""The edge between `ml_collections` pages and the packages' frozen dataclasses."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from glide_jax.errors import GlideError
from glide_jax.train import RunConfig

T = TypeVar("T")


def default_config() -> ConfigDict:
    """Every option of a run with its default, for a config page to change; unknown names are refused."""
    return ConfigDict(_defaults(RunConfig))


def from_ml_collections(config: ConfigDict) -> RunConfig:
    """The checked, frozen form of a page.

    Raises:
        GlideError: an unknown key (with the nearest names), a value of the wrong type, or an impossible one.
    """
    return _build(RunConfig, config.to_dict(), "config")


def _defaults(cls: type) -> dict[str, Any]:
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        # A nested page takes the class's raw defaults where it has no values of its own: an instance may have
        # derived some (channel_mult from image_size), which must not stick.
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            plain = hint()
            names = [f.name for f in dataclasses.fields(hint)]
            changed = {name: getattr(value, name) for name in names if getattr(value, name) != getattr(plain, name)}
            value = _defaults(hint) | changed
        values[field.name] = value
    return values


def _build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    annotations = typing.get_type_hints(cls)
    hints = {field.name: annotations[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = [name for name in values if name not in hints]
    if unknown:
        near = difflib.get_close_matches(unknown[0], hints, n=2) or sorted(hints)
        raise GlideError(f"{where}.{unknown[0]} is unknown; did you mean {' or '.join(near)}?")
    return cls(**{name: _convert(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise GlideError(f"{where} is a group of options; set one of them ({where}.NAME=...)")
        return _build(hint, value, where)  # type: ignore[arg-type]
    if isinstance(value, list | tuple):
        value = tuple(value)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        allowed: tuple[Any, ...] = typing.get_args(hint)
    else:
        allowed = (hint,)
    if not any(_fits(option, value) for option in allowed):
        raise GlideError(f"{where} cannot be {value!r}: it takes {' or '.join(map(_name, allowed))}")
    return float(value) if float in allowed and isinstance(value, int) else value


def _fits(hint: Any, value: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(typing.get_args(hint)[0], item) for item in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def _name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(map(repr, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)
