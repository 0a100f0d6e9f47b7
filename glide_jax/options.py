"""Options declared once: a dataclass field carries its help, range and choices, and everything else is derived from it.

    @dataclass(frozen=True)
    class Guidance(Options):
        guidance_scale: Annotated[float, option("classifier-free guidance scale; 1 disables it", low=0)] = 3.0

Derived are validation, command lines (`add_arguments`), config files and web requests (`build`), and tables
(`described`).
"""

import argparse
import ast
import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, NoReturn, TypeVar

from glide_jax.errors import GlideError

T = TypeVar("T")

_SIMILAR = 0.72  # at difflib's 0.6, --num_samples would resemble --upsampler
# What other programs, or others of ours, call an option.
_ELSEWHERE = {
    "steps": ("num_steps",),
    "num_inference_steps": ("num_steps",),
    "cfg": ("guidance_scale",),
    "cfg_scale": ("guidance_scale",),
    "model": ("checkpoint",),
    "base_model": ("checkpoint",),
    "neg": ("negative_prompt",),
    "num_images": ("num_samples",),
    "num_samples": ("num_images",),
    "num_images_per_prompt": ("num_images", "num_samples"),
    "generator": ("seed",),
    "height": ("size",),
    "width": ("size",),
    "mask_image": ("mask",),
    "callback_on_step_end": ("on_steps",),
    "torch_dtype": ("dtype",),
    "prompt": ("prompts",),
    "output": ("output_dir",),
    "output_dir": ("output",),
    "out": ("output", "output_dir"),
}
_TOO_LARGE = 2**63  # for integers of NumPy and JAX


class Option(NamedTuple):
    """A field's help and allowed values.

    Attributes:
        help: what it is, for `--help` and tables.
        low, high: smallest and largest allowed value.
        above, below: limits that are not themselves allowed.
        choices: the allowed values, if they are few; a `Literal`'s are found by `fields`.
        most: the largest value that a web page takes, if there is no `high`; the class itself takes more.
        metavar: what `--help` calls the value.
    """

    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Collection[str] = ()
    most: float | None = None
    metavar: str | tuple[str, ...] | None = None

    @property
    def range(self) -> str:
        """The allowed values, as "[0, 1]", "at least 0" or "a, b or c"; empty if there is no limit."""
        if self.choices:
            *others, last = self.choices
            return f"{', '.join(others)} or {last}" if others else last
        bottom = self.low if self.above is None else self.above
        top = self.high if self.below is None else self.below
        if bottom is not None and top is not None:
            return f"{'[('[self.above is not None]}{bottom}, {top}{'])'[self.below is not None]}"
        if bottom is not None:
            return f"at least {bottom}" if self.above is None else f"above {bottom}"
        return "" if top is None else f"at most {top}" if self.below is None else f"below {top}"

    def allows(self, value: Any) -> bool:
        """Whether a value of the right type is in the range and among the choices."""
        if self.choices:
            return value in self.choices
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


option = Option
# Marks a field with options that are named without it: `SampleOptions(solver=...)`, but --num_steps.
INLINE = Option("")


class Field(NamedTuple):
    """An option of a class: name, type, default and `Option`, and the inline field that holds it, if any."""

    name: str
    hint: Any
    default: Any
    option: Option
    within: str = ""


class Options:
    """Base class of frozen dataclasses of options, which are checked when created.

    Raises:
        GlideError: a value out of range or not among the choices; the message names it, with `PREFIX` in front.
    """

    __slots__ = ()
    PREFIX: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in fields(type(self)).values():  # type: ignore[arg-type]
            if not field.within:
                _check(field.option, getattr(self, field.name), self.PREFIX + field.name)


def _check(option: Option, value: Any, name: str) -> None:
    # Strings without choices are for the option's own class to check.
    if value is None or dataclasses.is_dataclass(value) or (isinstance(value, str) and not option.choices):
        return
    if not all(map(option.allows, value if isinstance(value, tuple) else (value,))):
        known = "be one of " if option.choices else "be in " if option.range[:1] in "[(" else "be "
        raise GlideError(f"{name} must {known}{option.range}, not {value!r:.100}")


@cache
def fields(cls: type) -> Mapping[str, Field]:
    """The options of a class by name, including those of `INLINE` fields."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found: dict[str, Field] = {}
    for field in dataclasses.fields(cls):
        hint, *notes = typing.get_args(hints[field.name]) if _is_annotated(hints[field.name]) else [hints[field.name]]
        note = next((note for note in notes if isinstance(note, Option)), Option(""))
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if INLINE in notes:
            inner = fields(hint)
            found |= {
                name: each._replace(default=getattr(default, name), within=field.name) for name, each in inner.items()
            }
            continue
        if typing.get_origin(hint) is Literal:
            note = note._replace(choices=typing.get_args(hint))
        found[field.name] = Field(field.name, hint, default, note)
    return types.MappingProxyType(found)


def _is_annotated(hint: Any) -> bool:
    return typing.get_origin(hint) is Annotated


def build(cls: type[T], values: Mapping[str, Any], where: str = "", base: T | None = None) -> T:
    """Options from values by name, each checked for its type.

    Args:
        cls: a dataclass of options.
        values: by the names of `fields`; those of nested dataclasses are mappings in turn.
        where: prefix of names in errors, as "config.".
        base: options to take other values from; None means the defaults.

    Raises:
        GlideError: an unknown name (with the nearest ones), a value of the wrong type, or an impossible one.
    """
    known = fields(cls)  # type: ignore[arg-type]
    inner: dict[str, dict[str, Any]] = {}
    if not isinstance(values, Mapping):
        raise GlideError(f"{where or 'the options '}must be given by name, not as {values!r:.40}")
    for name, value in values.items():
        if name not in known:
            raise GlideError(f"{where}{name} is unknown; {nearest(name, known)}")
        inner.setdefault(known[name].within, {})[name] = convert(known[name].hint, value, where + name)
    own = inner.pop("", {})
    start: Any = cls() if base is None and inner else base
    own |= {group: dataclasses.replace(getattr(start, group), **given) for group, given in inner.items()}
    return cls(**own) if base is None else dataclasses.replace(base, **own)  # type: ignore[type-var]


def nearest(name: str, known: Collection[str]) -> str:
    """The end of an error about an unknown name: the known names that were perhaps meant."""
    near = _near(name, known)
    return f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(sorted(known))}"


def _near(name: str, known: Collection[str]) -> list[str]:
    elsewhere = [other for other in _ELSEWHERE.get(name, ()) if other in known]
    return elsewhere or difflib.get_close_matches(name, known, n=2, cutoff=_SIMILAR)


def flat(options: Any) -> dict[str, Any]:
    """Values by the names of `fields`, as `build` takes them."""
    known: Mapping[str, Field] = fields(type(options))  # type: ignore[arg-type]
    return {
        name: getattr(getattr(options, each.within) if each.within else options, name) for name, each in known.items()
    }


def nested(options: Any) -> dict[str, Any]:
    """Values as in a config file: groups are dicts, and inline fields stand among the others."""
    return {name: nested(value) if isinstance(value, Options) else value for name, value in flat(options).items()}


def to_json(value: Any) -> Any:
    """An option's value, or a mapping of values, as JSON can hold it and `from_json` reads it.

    Tuples become lists; paths and infinite numbers become text.
    """
    if isinstance(value, Mapping):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value


def from_json(value: Any) -> Any:
    """An option's value from JSON: lists become tuples, and "inf" in them infinity."""
    return tuple(math.inf if each == "inf" else each for each in value) if isinstance(value, list) else value


def convert(hint: Any, value: Any, where: str) -> Any:
    """A value converted to its type: lists become tuples, integers floats, mappings dataclasses.

    Raises:
        GlideError: it is of another type; the message begins with `where`.
    """
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if not isinstance(value, Mapping):
            raise GlideError(f"{where} is a group of options; set one of them ({where}.NAME=...)")
        return build(hint, value, f"{where}.")  # type: ignore[arg-type]
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(value, Real) and not isinstance(value, int | float):  # NumPy's
        value = int(value) if isinstance(value, Integral) else float(value)
    if not any(_fits(each, value) for each in _alternatives(hint)):
        raise GlideError(f"{where} cannot be {value!r:.100}: it takes {' or '.join(map(_name, _alternatives(hint)))}")
    whole = [each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, int)]
    if any(abs(each) >= _TOO_LARGE for each in whole):
        raise GlideError(f"{where} is too large")
    return float(value) if float in _alternatives(hint) and isinstance(value, int) else value


def parse(hint: Any, text: str, where: str) -> Any:
    """The value of a command-line text: in Python's notation, or a string as it is.

    Raises:
        GlideError: it is of another type; the message begins with `where`.
    """
    if str in _alternatives(hint) or (typing.get_origin(hint) is Literal and not text.isdecimal()):
        several = any(typing.get_origin(each) is tuple for each in _alternatives(hint)) and text.startswith(("(", "["))
        if not several:
            return convert(hint, text, where)
    parts = typing.get_args(hint) if typing.get_origin(hint) is tuple else _alternatives(hint)
    if str in parts and not text.startswith(("(", "[", "'", '"')):  # a prompt may be 2024, or none
        return convert(hint, (text,), where)
    python = {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
    if float in parts:
        python = re.sub(r"\binf\b", "1e999", python)  # which Python has no literal for
    try:
        value = ast.literal_eval(python)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = float(text) if float in parts and text == "nan" else text
    if typing.get_origin(hint) is tuple and not isinstance(value, tuple | list):
        value = (value,)
    return convert(hint, value, where)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _fits(hint: Any, value: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        right = isinstance(value, tuple) and (... in parts or len(value) == len(parts))
        return right and all(_fits(parts[0], item) for item in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def _name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return ", ".join(map(repr, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)


class Parser(argparse.ArgumentParser):
    """A command-line parser that raises `GlideError`, one line that names the option perhaps meant.

    Args:
        unnamed: the option that a word without an option probably belongs to, as "--prompt".
        unknown: tells what to write instead of a word, or of an option that resembles none; "" if it cannot.
        **options: for `argparse.ArgumentParser`.
    """

    def __init__(self, *, unnamed: str = "", unknown: Callable[[str], str] | None = None, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)  # an abbreviation would change its meaning with a new option
        self._unnamed = unnamed
        self._unknown = unknown

    def error(self, message: str) -> NoReturn:
        """Raises `GlideError` with what is wrong; argparse would print a page of usage first."""
        raise GlideError(f"{message}; {self.prog} --help lists the options")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Like argparse's, but refuses unknown words here, so that a subcommand suggests its own options."""
        known, rest = super().parse_known_args(args, namespace)
        if rest:
            self._refuse(rest)
        return known, rest

    def _refuse(self, words: Sequence[str]) -> NoReturn:
        flag = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
        if flag is None:
            said = f'write {self._unnamed} "...", with quotes' if self._unnamed else "a value with blanks needs quotes"
            self.error(f"unexpected argument {words[0]!r}: {self._instead(words[0]) or said}")
        known = [name.lstrip("-") for name in self._option_string_actions]  # or all would be similar for their dashes
        if near := _near(flag.lstrip("-"), known):
            raise GlideError(f"unknown option {flag}; did you mean {' or '.join(f'--{name}' for name in near)}?")
        instead = self._instead(flag)
        self.error(f"unknown option {flag}" + (f": {instead}" if instead else ""))

    def _instead(self, word: str) -> str:
        return self._unknown(word) if self._unknown else ""


def add_arguments(
    parser: Any,
    cls: type,
    prefix: str = "",
    *,
    only: Collection[str] = (),
    names: Mapping[str, str] | None = None,
    hide: Collection[str] = (),
    base: Any = None,
) -> None:
    """Adds `--NAME` for each option that is not itself a dataclass; `given` then reads the flags a user gave.

    Args:
        parser: an `argparse` parser or group.
        cls: a dataclass of options.
        prefix: in front of each name, as "upsampler_".
        only: names to add; empty for all.
        names: flags for some options, without dashes, instead of prefix and name.
        hide: options to leave out of `--help`, though they work.
        base: options whose values the help gives as defaults; None for the class's own.
    """
    shown = {} if base is None else flat(base)
    for name, field in fields(cls).items():
        if dataclasses.is_dataclass(field.hint) or (only and name not in only):
            continue
        flag = _flag(name, prefix, names)
        kinds = [kind for kind in _alternatives(field.hint) if kind is not type(None)]
        kind = typing.get_args(kinds[0])[0] if typing.get_origin(kinds[0]) is tuple else kinds[0]
        shape: dict[str, Any] = {"type": kind if kind in (int, float) else str, "metavar": field.option.metavar}
        if kind is bool:
            shape = {"action": argparse.BooleanOptionalAction}
        elif typing.get_origin(kinds[0]) is tuple:
            parts = typing.get_args(kinds[0])
            metavar = field.option.metavar or ("LOW", "HIGH")
            shape |= {"nargs": "+"} if ... in parts else {"nargs": len(parts), "metavar": metavar}
        elif field.option.choices and field.option.metavar is None:
            shape |= {"choices": [choice for choice in field.option.choices if choice], "metavar": None}
        text = argparse.SUPPRESS if name in hide else _help(field.option.help, shown.get(name, field.default))
        parser.add_argument(f"--{flag}", dest=flag, default=None, help=text, **shape)


def _help(text: str, default: Any) -> str:
    """An option's help with its default, unless it mentions one itself."""
    text = text.replace("%", "%%")
    return text if default in (None, "", ()) or "default" in text else f"{text} (default: {_said(default)})"


def _said(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def given(
    flags: Mapping[str, Any], cls: type, prefix: str = "", *, names: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The flags of `add_arguments` that a user gave (`vars(args)`), by the names of `fields`, for `build`."""
    found = {name: flags.get(_flag(name, prefix, names)) for name in fields(cls)}
    values = {name: value for name, value in found.items() if value is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _flag(name: str, prefix: str, names: Mapping[str, str] | None) -> str:
    return (names or {}).get(name, prefix + name)


def described(cls: type, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Rows of a table of all options: name, default, allowed values, help; nested ones as "optimizer.eps"."""
    rows = []
    for name, field in fields(cls).items():
        if dataclasses.is_dataclass(field.hint):
            rows += described(field.hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            allowed = field.option.range or " or ".join(map(_name, _alternatives(field.hint)))
            rows.append((prefix + name, _said(field.default), allowed, field.option.help))
    return rows
