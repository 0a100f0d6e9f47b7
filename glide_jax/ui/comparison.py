"""A labelled grid of one prompt under changed settings, as the page asks for it: `sample.py --xy` within its limits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from glide_jax.errors import GlideError
from glide_jax.options import Field
from glide_jax.sample import Axis, Cell, combinations, of_upsampler, variable
from glide_jax.ui.request import Request, checked, checked_text, checked_value, without_effect

_LONGEST_VALUES = 300


def options_to_vary(known: Mapping[str, Field], *, has_clip: bool) -> list[str]:
    """The settings that a grid may vary, most wanted first.

    Args:
        known: see `request_fields`.
        has_clip: whether there is a noised CLIP to guide by.
    """
    # An image to start from has a tab of its own.
    able = [name for name in known if name in variable() and name != "strength"]
    if not has_clip:
        able.remove("clip_guidance_scale")
    first = ("num_steps", "guidance_scale", "sampler", "schedule", "seed")
    return [*first, *(name for name in able if name not in first)]


def compared(values: Mapping[str, Any], known: Mapping[str, Field], *, has_clip: bool) -> Request:
    """A request for a grid; each of its cells counts as one of `num_images`, and passes all checks of a request.

    Args:
        values: as for `checked`, and x_option and x_values, what varies from left to right, and y_option and y_values,
            from top to bottom; one of them may be left out. Values are separated by commas.
        known, has_clip: as for `options_to_vary`.

    Raises:
        GlideError: as for `checked`; more cells than images are allowed; an option that is none of
            `options_to_vary`, has no effect beside the others, or is given twice, as may no value be.
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
    return replace(whole, num_images=count, keep=1, axes=axes, cells=cells, columns=columns)


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
    """Refuses an option that changes no image, rather than to show the same one several times."""
    if of_upsampler(name):
        if whole.upsampler is None:
            raise GlideError(f"{name} is about the upsampler: choose one")
    elif all(name in without_effect(point) for point in points):
        raise GlideError(f"{name} has no effect with the sampler, schedule and guidance chosen")
    elif name in ("num_steps", "schedule") and whole.options.levels.timestep_respacing:
        raise GlideError(f"{name} has no effect beside a timestep respacing: leave that blank")
