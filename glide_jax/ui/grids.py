"""The page's labelled grid of one prompt with varying settings: `sample.py --xy` within the page's limits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from glide_jax.errors import GlideError
from glide_jax.options import Field
from glide_jax.sample import Axis, Cell, combinations, of_upsampler, variable
from glide_jax.ui.request import SCALES, Request, checked, checked_text, checked_value, without_effect

_LONGEST_VALUES = 300
# Example values, the most telling ones first; the models' own settings come before them.
_EXAMPLES: Mapping[str, Sequence[Any]] = {
    "num_steps": (27, 10, 50), "guidance_scale": (1, 2, 4), "seed": (0, 1, 2),
    "sampler": ("ddim", "dpmpp_2m", "euler_ancestral"), "schedule": ("leading", "trailing", "karras"),
    "eta": (0, 1, 0.5), "s_churn": (0, 40, 20), "s_tmin": (0, 1, 0.1), "s_tmax": (80, 1, 10),
    "s_noise": (1, 1.02, 1.01), "sigma_min": (0.02, 0.1, 0.05), "sigma_max": (80, 20, 40), "rho": (7, 3, 5),
    "guidance": ("cfg", "apg"), "guidance_rescale": (0, 0.7, 0.4),
    "apg_eta": (0, 1, 0.5), "apg_momentum": (-0.5, 0, 0.5), "apg_norm_threshold": (0, 15, 5),
    "thresholding": ("static", "dynamic"), "dynamic_thresholding_ratio": (0.995, 0.9, 0.95),
    "temperature": (1, 0.9, 0.95), "upsample_temp": (0.997, 0.9, 1), "upsampler_strength": (0.5, 1, 0.3),
    "clip_guidance_scale": (0, 2, 1), **dict.fromkeys(SCALES, (1, 0, 0.5)),
}  # fmt: skip


def options_to_vary(known: Mapping[str, Field], *, has_clip: bool) -> list[str]:
    """The settings a grid can vary, the most useful first.

    Args:
        known: see `request_fields`.
        has_clip: whether there is a noised CLIP to guide by.
    """
    # Starting from an image has a tab of its own.
    able = [name for name in known if name in variable() and name != "strength"]
    if not has_clip:
        able.remove("clip_guidance_scale")
    first = ("num_steps", "guidance_scale", "sampler", "schedule", "seed")
    return [*first, *(name for name in able if name not in first), *SCALES]


def example_counts(most: int) -> tuple[int, int]:
    """The numbers of examples, horizontally and vertically, for a grid of at most this many images."""
    across = min(3 if most >= 6 else 2, most)
    return across, min(2, most // across)


def examples(name: str, known: Mapping[str, Field], count: int) -> str:
    """At most `count` example values of an option: the models' own setting, and others around it.

    Args:
        name: one of `options_to_vary`.
        known: as for `compared`.
        count: at most three.
    """
    field = known[name]
    values = [] if field.default in (None, "") else [field.default]
    if values and name.endswith("num_steps"):
        values += [max(values[0] // 2, 2), 2 * values[0]]  # few schedules can make an image in one step
    elif values and name.endswith("guidance_scale"):
        values += [1, 2 * values[0]]
    values += _EXAMPLES[name] if name in _EXAMPLES else _EXAMPLES[name.removeprefix("upsampler_")]
    able = [value for value in dict.fromkeys(values) if _goes_with(known, name, value)][:count]
    return ", ".join(able) if field.option.choices else ", ".join(f"{value:g}" for value in sorted(able))


def _goes_with(known: Mapping[str, Field], name: str, value: Any) -> bool:
    """Whether an option's value is valid together with the models' settings."""
    try:
        checked("compare", {"base": "any", "prompt": "any", name: value}, known)
    except GlideError:
        return False
    return True


def values_to_show(option: Any, typed: Any, shown: str, known: Mapping[str, Field], count: int) -> str:
    """The values to show for a selected option: those typed, if they are valid for it, else examples.

    Args:
        option, typed: what a client sent.
        shown: the examples shown before.
        known, count: as for `examples`.

    Raises:
        GlideError: there is no such option.
    """
    able = options_to_vary(known, has_clip=True)
    if option not in able:
        return ""
    if typed not in ("", shown):
        try:
            _axis("x", {"x_option": option, "x_values": typed}, known, able)
        except GlideError:
            pass
        else:
            return str(typed)
    return examples(option, known, count)


def compared(values: Mapping[str, Any], known: Mapping[str, Field], *, has_clip: bool) -> Request:
    """A request for a grid; each cell counts as one of `num_images`, and is checked like a request.

    Args:
        values: as for `checked`, plus x_option and x_values, which vary from left to right, and y_option and y_values,
            from top to bottom; either may be left out. Values are separated by commas.
        known, has_clip: as for `options_to_vary`.

    Raises:
        GlideError: as for `checked`; or there are more cells than allowed images, an option is not one of
            `options_to_vary`, is without effect or is given twice, or a value is given twice.
    """
    whole = checked("compare", values, known)
    able = options_to_vary(known, has_clip=has_clip)
    across, down = (_axis(side, values, known, able) for side in ("x", "y"))
    axes = [axis for axis in (across, down) if axis is not None]
    if not axes:
        raise GlideError("choose an option to vary, and give its values")
    count, most = math.prod(len(axis.values) for axis in axes), known["num_images"].option.high
    if most is not None and count > most:
        raise GlideError(f"a grid of {count} images is too large: at most {most:g}")
    given = {name: field.default for name, field in known.items()}
    given |= {name: value for name, value in values.items() if value is not None} | {"seed": whole.seed}
    points = [(label, given | chosen) for label, chosen in combinations(axes)]
    for axis in axes:
        _check_effect(axis.flag, [point for _, point in points], whole)
    requests = [checked("compare", point, known) for _, point in points]
    if any(each.any_seed for each in requests):
        raise GlideError("seed: a grid varies seeds from 0 on")
    cells = [
        Cell(label, each.seed, each.options, each.upsampler_options)
        for (label, _), each in zip(points, requests, strict=True)
    ]
    columns = 1 if across is None else len(across.values)
    strengths = [each.adapters for each in requests]
    return replace(
        whole, num_images=count, keep=1, axes=axes, cells=cells, columns=columns, adapters=strengths[0],
        strengths=strengths,
    )  # fmt: skip


def _axis(side: str, values: Mapping[str, Any], known: Mapping[str, Field], able: list[str]) -> Axis | None:
    option, text = (
        checked_text(f"{side}_{what}", values.get(f"{side}_{what}"), _LONGEST_VALUES) for what in ("option", "values")
    )
    if not option:
        if text:
            raise GlideError(f"{side}_values are given without {side}_option: choose what they are of")
        return None
    if option not in able:
        raise GlideError(f"a grid cannot vary {option[:60]}: it varies {', '.join(able)}")
    sent = [value.strip() for value in text.split(",")]
    if not all(sent):
        raise GlideError(f"{option}: give its values, separated by commas")
    axis = Axis(option, tuple(checked_value(known[option], value) for value in sent))
    if len(set(axis.values)) < len(axis.values):
        raise GlideError(f"{axis}: gives a value twice")
    return axis


def _check_effect(name: str, points: Sequence[Mapping[str, Any]], whole: Request) -> None:
    """Refuses an option that would not change the image."""
    if name in SCALES:
        if SCALES.index(name) >= len(whole.adapters):
            raise GlideError(f"{name} needs one more LoRA: choose it")
    elif of_upsampler(name):
        if whole.upsampler is None:
            raise GlideError(f"{name} needs an upsampler: choose one")
    elif all(name in without_effect(point) for point in points):
        raise GlideError(f"{name} has no effect with the sampler, schedule and guidance chosen")
    elif name in ("num_steps", "schedule") and whole.options.levels.timestep_respacing:
        raise GlideError(f"{name} has no effect beside a timestep respacing: leave that blank")
