"""The `state_dict` in what a training program saved: raw or averaged, and without the names of wrappers."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from glide_jax.errors import GlideError

_RAW = ("state_dict", "model_state_dict", "model", "module", "online_model")
_EMA = ("ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model")
_DEEPEST = 3  # dicts in each other; one may hold itself
# What data parallelism, torch.compile and training frameworks put before the names of the module they wrap.
_WRAPPERS = re.compile(r"(?:(?:module|model|_orig_mod)\.)*")
_COMPILED = "_orig_mod."
_MOST_TENSORS = 10_000  # the published models have 797
_LONGEST_NAME = 500
_AVERAGED_COUNT = "n_averaged"  # stands beside the tensors of torch's AveragedModel


class Found(NamedTuple):
    """A `state_dict` and how it was found.

    Attributes:
        tensors: by name, in their order.
        entry: its name in the file, "" for the file as a whole.
        told: what else a person should know, a phrase each.
    """

    tensors: dict[str, Any]
    entry: str
    told: list[str]


def find_state_dict(content: Any, is_tensor: Callable[[Any], bool], where: str, *, ema: bool) -> Found:
    """Finds the weights among optimiser states, step counts and the like.

    Args:
        content: what the file holds.
        is_tensor: tells tensors from other values.
        where: names the file.
        ema: whether the EMA weights are wanted; else the raw ones are, and EMA weights only if there are no others.

    Raises:
        GlideError: there are no such weights, or several.
    """
    names: list[str] = []
    beside: list[str] = []
    while isinstance(content, dict) and len(names) < _DEEPEST:
        content = _grouped(content)
        raw, averaged = (
            [name for name in group if _holds_tensors(content.get(name), is_tensor)] for group in (_RAW, _EMA)
        )
        chosen = (averaged or raw) if ema else (raw or averaged)
        if not chosen:
            break
        if len(chosen) > 1:
            listed = " and ".join(f'"{name}"' for name in chosen)
            raise GlideError(f"{where} holds weights as {listed}: give a file of one of them")
        beside += [] if chosen == averaged else averaged
        names += chosen
        content = content[chosen[0]]
    if ema and not set(names) & set(_EMA):
        raise GlideError(f"{where} holds no EMA weights by name: leave out --ema")
    tensors, told = _without_wrappers(_checked(content, is_tensor, where, names), where)
    return Found(tensors, "/".join(names), told + [f'--ema reads "{name}" instead' for name in beside])


def _grouped(content: dict[Any, Any]) -> dict[Any, Any]:
    """A flat dict in which the first word of the names tells raw from EMA weights becomes one of dicts."""
    groups: dict[Any, dict[str, Any]] = {}
    others = {}
    for key, value in content.items():
        first, _, rest = str(key).partition(".")
        if rest and first in _RAW + _EMA:
            groups.setdefault(first, {})[rest] = value
        else:
            others[key] = value
    return others | groups if groups.keys() & set(_EMA) else content


def _holds_tensors(value: Any, is_tensor: Callable[[Any], bool]) -> bool:
    """Whether there are any in a dict or the dicts in it; each is looked at once, in however many places it stands."""
    level = [value]
    for _ in range(_DEEPEST):
        inside = [inner for each in level if isinstance(each, dict) for inner in each.values()]
        if any(map(is_tensor, inside)):
            return True
        level = list({id(inner): inner for inner in inside}.values())
    return False


def _checked(content: Any, is_tensor: Callable[[Any], bool], where: str, names: list[str]) -> dict[Any, Any]:
    where = f'"{"/".join(names)}" of {where}' if names else where
    if not isinstance(content, dict) or not content:
        raise GlideError(f"{where} holds {type(content).__name__}, not a state_dict of named tensors")
    if len(content) > _MOST_TENSORS:
        raise GlideError(f"{where} holds {len(content)} entries, more than any such model has")
    for key, value in content.items():
        if not isinstance(key, str | int) or len(str(key)) > _LONGEST_NAME or not str(key).isprintable():
            raise GlideError(f"{where} holds a tensor under {ascii(key)[:60]}, which is no name of one")
        if not is_tensor(value):
            known = ", ".join(_RAW + _EMA)
            raise GlideError(
                f"{where} holds {type(value).__name__} under {key!r}: give a file of a bare state_dict,"
                f" or of one under one of these names: {known}"
            )
    return content


def _without_wrappers(tensors: dict[Any, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    named = {str(key): value for key, value in tensors.items() if key != _AVERAGED_COUNT}
    prefix = _common_wrapper(list(named))
    plain = {key.removeprefix(prefix).replace(_COMPILED, ""): value for key, value in named.items()}
    if len(plain) < len(named):
        raise GlideError(f"{where} holds some tensors twice, with and without the prefix {_COMPILED!r}")
    told = [f'without the prefix "{prefix}"'] if prefix else []
    if any(_COMPILED in key.removeprefix(prefix) for key in named):
        told.append(f'without "{_COMPILED}" inside names')
    if _AVERAGED_COUNT in tensors:
        told.append(f'without "{_AVERAGED_COUNT}"')
    return plain, told


def _common_wrapper(keys: list[str]) -> str:
    """The longest prefix of all keys that is made of whole names of wrappers."""
    match = _WRAPPERS.match(keys[0]) if keys else None
    prefix = match[0] if match else ""
    while not all(key.startswith(prefix) for key in keys):
        prefix = prefix[: prefix.rfind(".", 0, -1) + 1]
    return prefix
