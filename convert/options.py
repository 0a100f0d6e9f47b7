"""Options of an architecture: what the tensors tell, then what the user says, then what was published."""

import json
from collections.abc import Mapping
from operator import index
from pathlib import Path
from typing import Any

from glide_jax.errors import GlideError
from glide_jax.files import read_text

Options = Mapping[str, Any]

# Options of the reference that concern how a model is run, not what it is.
_OF_NO_CONCERN = {"timestep_respacing", "use_fp16", "cache_text_emb", "beta_schedule", "logit_scale"}
_LISTS = ("channel_mult", "attention_resolutions")
_SCHEDULES = ("linear", "squaredcos_cap_v2")


def read_options(path: Path) -> Options:
    """The options in a JSON file: an object of them, or one that holds them under "options" or "config".

    Raises:
        GlideError: the file cannot be read or holds something else.
    """
    try:
        content = json.loads(read_text(path, "--options"))
    except (ValueError, RecursionError) as error:
        raise GlideError(f"cannot read --options {path}: {error}") from error
    if isinstance(content, dict):
        content = content.get("options", content.get("config", content))
    if not isinstance(content, dict):
        raise GlideError(f"--options {path} holds no JSON object of options")
    return parse_options(content)


def parse_options(content: Options) -> Options:
    """Options as ours are; the reference writes lists as "32,16,8" and a model without text as None.

    Raises:
        GlideError: a list that is none.
    """
    options = {name: value for name, value in content.items() if name not in _OF_NO_CONCERN}
    if options.get("xf_width", 0) is None:
        options["xf_width"] = 0
    return options | {name: _numbers(name, options[name]) for name in _LISTS if name in options}


def _numbers(name: str, value: Any) -> tuple[int, ...]:
    try:
        parts = [part for part in value.split(",") if part] if isinstance(value, str) else value
        return tuple(int(part) if isinstance(part, str) else index(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise GlideError(f"--options: {name} is {value!r}, not a list of numbers") from error


def check_options(options: Options, published: Options) -> None:
    """Refuses unknown options and impossible values.

    Raises:
        GlideError: the one line that lists them.
    """
    wrong = [f"{name} is unknown" for name in options if name not in published]
    wrong += [
        f"{name} is {value!r}, not as {published[name]!r}"
        for name, value in options.items()
        if name in published and not _is_like(value, published[name])
    ]
    if options.get("noise_schedule", "linear") not in _SCHEDULES:
        wrong.append(f"noise_schedule is {options['noise_schedule']!r}, not one of {', '.join(_SCHEDULES)}")
    if wrong:
        raise GlideError(f"--options: {'; '.join(wrong)}")


def _is_like(value: Any, example: Any) -> bool:
    return type(value) is type(example) or (type(example) is float and type(value) is int)


def complete(told: Options, published: Options, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """All options with their values, and those of them that are mere assumptions.

    Args:
        told: what the tensors tell.
        published: the values of all options in the published checkpoints.
        options: what the user says, checked already.

    Raises:
        GlideError: options contradict the tensors.
    """
    contradictions = [
        f"{name} is {value} in the tensors, {options[name]} in the options"
        for name, value in told.items()
        if name in options and options[name] != value
    ]
    if contradictions:
        raise GlideError(f"--options contradict the tensors: {'; '.join(contradictions)}")
    assumed = {name: value for name, value in published.items() if name not in told and name not in options}
    return {**published, **options, **told}, assumed
