"""One prompt under changed options, from the same noise, as a labelled grid."""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from glide_jax import progress, sample
from glide_jax.errors import GlideError
from glide_jax.images import Pixels, grid
from glide_jax.options import parse as parse_value
from glide_jax.sample.options import SampleOptions, base_options, flag_fields, of_upsampler, upsampler_options

_CELL = 128


class Axis(NamedTuple):
    """A flag of `sample.py`, and its values along one side of the grid."""

    flag: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str) -> "Axis":
        """The axis that "guidance_scale=1,3,5" names; "seed" is one too.

        Raises:
            GlideError: no such option, one that takes several values at once, or a value that it does not take.
        """
        flag, equals, values = text.partition("=")
        if not equals or not values:
            raise GlideError(f"--xy {text}: must be an option and its values, as guidance_scale=1,3,5")
        hints = {name: field.hint for name, field in flag_fields().items()} | {"seed": int}
        # Those of several numbers have commas of their own.
        able = [name for name, hint in hints.items() if "tuple" not in str(hint) and "respacing" not in name]
        if flag not in able:
            near = difflib.get_close_matches(flag, able, n=2) or ["sampler", "num_steps", "guidance_scale"]
            raise GlideError(f"--xy cannot vary {flag}; did you mean {' or '.join(near)}?")
        return cls(flag, tuple(parse_value(hints[flag], value.strip(), f"--xy {flag}") for value in values.split(",")))


class Cell(NamedTuple):
    """What one image of the grid is generated with."""

    label: str
    seed: int
    options: SampleOptions
    upsampler_options: SampleOptions


def cells(axes: Sequence[Axis], flags: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Cell]:
    """The cells of the grid row by row: values of the first axis from left to right, of the second from top to bottom.

    Args:
        axes: one or two.
        flags: what is given beside them (`vars(args)`).
        settings: of the pipeline.

    Raises:
        GlideError: the same option twice, an option without effect here, or values that do not go together.
    """
    names = [axis.flag for axis in axes]
    if len(axes) > 2 or len(set(names)) < len(names):
        raise GlideError(f"--xy {' '.join(names)}: must be one option or two different ones")
    _check_effect(names, flags)
    made = []
    for values in itertools.product(*(axis.values for axis in reversed(axes))):
        changed = dict(flags) | dict(zip(reversed(names), values, strict=True))
        label = "\n".join(f"{name} {value}" for name, value in zip(names, reversed(values), strict=True))
        made.append(Cell(label, changed["seed"], base_options(changed, settings), upsampler_options(changed, settings)))
    return made


def _check_effect(names: Sequence[str], flags: Mapping[str, Any]) -> None:
    if flags.get("checkpoint") is None:
        raise GlideError("--xy varies what a base model generates: give --checkpoint DIR")
    if flags.get("num_samples", 1) != 1:
        raise GlideError("--xy generates one image for each of its values: leave out --num_samples")
    for name in names:
        prefix = "upsampler_" if of_upsampler(name) else ""
        respacing = f"{prefix}timestep_respacing"
        if name.removeprefix(prefix) in ("num_steps", "schedule") and flags.get(respacing):
            raise GlideError(f"--xy varies {name}: leave out --{respacing}")
        if of_upsampler(name) and flags.get("upsampler") is None:
            raise GlideError(f"--xy {name} is about the upsampler: give --upsampler DIR")
        if name.endswith("clip_guidance_scale") and flags.get("clip") is None:
            raise GlideError(f"--xy {name} is about the noised CLIP: give --clip TEXT IMAGE")
    if "strength" in names and not flags.get("init_image"):
        raise GlideError("--xy strength is about the image to start from: give --init_image FILE")


def compare(
    pipeline: "sample.Pipeline", prompt: "sample.Prompt", wanted: Sequence[Cell], columns: int, **inputs: Any
) -> tuple[Pixels, list[str]]:
    """Generates an image of `prompt` for each cell.

    Args:
        pipeline: the models.
        prompt: the text.
        wanted: the cells, row by row.
        columns: cells of a row.
        **inputs: of a pipeline call, the same for all.

    Returns:
        The labelled grid, and a line of text for each cell with how often the models are evaluated for it.
    """
    images, lines = [], []
    with progress.bar("comparing", len(wanted)) as bar:
        for label, seed, options, up_options in wanted:
            how: dict[str, Any] = {"options": options, "upsampler_options": up_options}
            images.append(pipeline(prompt, seed=seed, **how, **inputs).images[0])
            count = pipeline.count_evaluations(1, **how, from_image=inputs.get("init_image") is not None)
            lines.append(f"{label.replace(chr(10), ', ')}: {count} model evaluations")
            bar.update(figures=lines[-1])
    return grid(images, [cell.label for cell in wanted], columns=columns, cell=_CELL), lines
