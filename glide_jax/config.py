"""From the `ml_collections` files of `configs/` to the packages' frozen dataclasses."""

import dataclasses
import difflib
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from glide_jax.errors import GlideError
from glide_jax.options import Field, build, fields, flat, nearest, parse
from glide_jax.train import RunConfig


def default_config() -> ConfigDict:
    """Every option of a run with its default, for a config file to change."""
    return ConfigDict(_defaults(RunConfig), type_safe=False)  # `from_ml_collections` checks names and types


def from_ml_collections(config: ConfigDict) -> RunConfig:
    """A config as a checked, frozen dataclass.

    Raises:
        GlideError: an unknown key (with the nearest names), a value of the wrong type, or an impossible one.
    """
    return build(RunConfig, config.to_dict(), "config.")


def read_config(name: str) -> ConfigDict:
    """What a config file's `get_config` returns.

    Args:
        name: path of a Python file, followed by `:ARGUMENT` if its `get_config` takes one.

    Raises:
        GlideError: there is no such file (the one of `configs/` perhaps meant is named), or it is not a config file.
    """
    path, colon, variant = name.partition(":")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        files = {each.stem: each for each in Path("configs").glob("*.py")}
        near = difflib.get_close_matches(Path(path).stem, files, n=1)
        meant = f"; did you mean {files[near[0]]}?" if near else ""
        raise GlideError(f"--config {path}: no such Python file{meant}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if colon and not inspect.signature(module.get_config).parameters:
            raise GlideError(f"--config {name}: {path} has no variants; leave out :{variant}")
        config = module.get_config(*([variant] if colon else []))
    except (AttributeError, ImportError, NameError, SyntaxError, KeyError, TypeError, ValueError) as error:
        raise GlideError(f"--config {name}: {' '.join(str(error).split())}") from error
    return config


def override(config: ConfigDict, key: str, text: str | None) -> None:
    """Sets an option of a config from a command-line text.

    Args:
        config: what `read_config` returned.
        key: as "train.max_steps".
        text: as "1000", "('a', 'b')" or "none"; None sets a boolean option to true.

    Raises:
        GlideError: an unknown option (with the nearest names), a group of options, or a value of another type.
    """
    *groups, name = key.split(".")
    cls: Any = RunConfig
    for group in groups:
        cls, config = _option(cls, group, key).hint, config[group]
        if not dataclasses.is_dataclass(cls):
            raise GlideError(f"--config.{key} is unknown: {group} has no options of its own")
    hint = _option(cls, name, key).hint
    if dataclasses.is_dataclass(hint):
        raise GlideError(f"--config.{key} is a group of options; set one of them (--config.{key}.NAME=...)")
    if text is None and hint is not bool:
        raise GlideError(f"--config.{key} needs a value: --config.{key}=VALUE")
    config[name] = True if text is None else parse(hint, text, f"--config.{key}")


def _option(cls: Any, name: str, key: str) -> Field:
    known = fields(cls)
    if name not in known:
        elsewhere = dict.fromkeys([*named_alike(key), *named_alike(name)])
        meant = f"did you mean {' or '.join(elsewhere)}?" if elsewhere else nearest(name, known)
        raise GlideError(f"unknown configuration key {key}; {meant}")
    return known[name]


def named_alike(name: str) -> list[str]:
    """The options of a config whose names end like this one: "lora.rank" and "lora_rank" are "train.lora.rank"."""
    end = f"_{name.replace('.', '_')}"
    return [path for path in _paths(RunConfig) if f"_{path.replace('.', '_')}".endswith(end)]


def _paths(cls: Any, prefix: str = "") -> Iterator[str]:
    """All options of a config, as "train.max_steps"."""
    for name, field in fields(cls).items():
        if dataclasses.is_dataclass(field.hint):
            yield from _paths(field.hint, f"{prefix}{name}.")
        else:
            yield prefix + name


def _defaults(cls: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in fields(cls).items():
        values[name] = field.default
        if dataclasses.is_dataclass(field.hint):
            # Raw defaults of the class, unless the group's own default changes them: an instance may have derived some
            # (channel_mult from image_size), which must not become fixed.
            plain: Any = flat(field.hint())  # type: ignore[operator]
            changed = {key: value for key, value in flat(field.default).items() if value != plain[key]}
            values[name] = _defaults(field.hint) | changed
    return values
