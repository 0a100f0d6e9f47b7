"""One prompt with varying options and the same noise, as a labelled grid."""

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from glide_jax import progress, sample
from glide_jax.errors import GlideError
from glide_jax.images import Pixels, grid
from glide_jax.options import parse as parse_value
from glide_jax.sample.options import SampleOptions, base_options, flag_fields, of_upsampler, upsampler_options

_CELL = 128


def variable() -> dict[str, Any]:
    """The options a grid can vary, by the flags of `sample.py`, with the types of their values."""
    hints = {name: field.hint for name, field in flag_fields().items()} | {"seed": int}
    # Options of several numbers contain commas themselves.
    return {name: hint for name, hint in hints.items() if "tuple" not in str(hint) and "respacing" not in name}


class Axis(NamedTuple):
    """One of `variable` and its values, along one side of the grid."""

    flag: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str) -> "Axis":
        """The axis for "guidance_scale=1,3,5", as given to `sample.py`.

        Raises:
            GlideError: there is no such option, it takes several values at once, or it does not take this value.
        """
        flag, _, values = text.partition("=")
        if not values:
            raise GlideError(f"--xy {text}: must be an option and its values, as guidance_scale=1,3,5")
        hints = variable()
        if flag not in hints:
            near = difflib.get_close_matches(flag, hints, n=2) or ["sampler", "num_steps", "guidance_scale"]
            raise GlideError(f"--xy cannot vary {flag}; did you mean {' or '.join(near)}?")
        return cls(flag, tuple(parse_value(hints[flag], value.strip(), f"--xy {flag}") for value in values.split(",")))

    def __str__(self) -> str:
        return f"{self.flag}={','.join(map(str, self.values))}"


class Cell(NamedTuple):
    """What an image of the grid is generated with."""

    label: str
    seed: int
    options: SampleOptions
    upsampler_options: SampleOptions


def combinations(axes: Sequence[Axis], where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and values, by flag, of each cell, row by row.

    Args:
        axes: one or two; values of the first go from left to right, of the second from top to bottom.
        where: the beginning of error messages.

    Raises:
        GlideError: the same option twice, or more than two.
    """
    names = [axis.flag for axis in axes]
    if len(axes) > 2 or len(set(names)) < len(names):
        raise GlideError(f"{where}{' '.join(names)}: must be one option or two different ones")
    for values in itertools.product(*(axis.values for axis in reversed(axes))):
        chosen = dict(zip(names, reversed(values), strict=True))
        yield "\n".join(f"{name} {value}" for name, value in chosen.items()), chosen


def cells(axes: Sequence[Axis], flags: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Cell]:
    """The cells of the grid that a command line of `sample.py` asks for, row by row.

    Args:
        axes: one or two.
        flags: the other flags given (`vars(args)`).
        settings: the pipeline's.

    Raises:
        GlideError: the same option twice, an option without effect here, or values that do not go together.
    """
    combined = list(combinations(axes, "--xy "))
    _check_effect([axis.flag for axis in axes], flags)
    made = []
    for label, values in combined:
        changed = {**flags, **values}
        made.append(Cell(label, changed["seed"], base_options(changed, settings), upsampler_options(changed, settings)))
    return made


def _check_effect(names: Sequence[str], flags: Mapping[str, Any]) -> None:
    if flags.get("num_samples", 1) != 1:
        raise GlideError("--xy generates one image for each of its values: leave out --num_samples")
    for name in names:
        prefix = "upsampler_" if of_upsampler(name) else ""
        respacing = f"{prefix}timestep_respacing"
        if name.removeprefix(prefix) in ("num_steps", "schedule") and flags.get(respacing):
            raise GlideError(f"--xy varies {name}: leave out --{respacing}")
        if of_upsampler(name) and flags.get("upsampler") is None:
            raise GlideError(f"--xy {name} is about the upsampler: give --upsampler DIR")
        if name == "strength" and flags.get("init_image") is None:
            raise GlideError("--xy strength needs an image to start from: give --init_image FILE")
        if name.endswith("clip_guidance_scale") and flags.get("clip") is None:
            raise GlideError(f"--xy {name} is about the noised CLIP: give --clip TEXT IMAGE")


def images_of(
    pipeline: "sample.Pipeline", prompt: "sample.Prompt", wanted: Sequence[Cell], **inputs: Any
) -> Iterator[Pixels]:
    """Generates an image of `prompt` for each cell; `inputs` are a pipeline call's, the same for all."""
    for _, seed, options, up_options in wanted:
        yield pipeline(prompt, seed=seed, options=options, upsampler_options=up_options, **inputs).images[0]


def sheet(images: Sequence[Pixels], wanted: Sequence[Cell], columns: int) -> Pixels:
    """The labelled grid of the cells' images, with `columns` per row."""
    return grid(images, [cell.label for cell in wanted], columns=columns, cell=_CELL)


def compare(
    pipeline: "sample.Pipeline", prompt: "sample.Prompt", wanted: Sequence[Cell], columns: int, **inputs: Any
) -> tuple[Pixels, list[str]]:
    """Generates an image of `prompt` for each cell, with a bar on the terminal.

    Args:
        pipeline: the models.
        prompt: the text.
        wanted: the cells, row by row.
        columns: cells per row.
        **inputs: for the pipeline call, the same for all.

    Returns:
        The labelled grid, and for each cell a line of text with the number of model evaluations.
    """
    images, lines = [], []
    from_image = inputs.get("init_image") is not None
    with progress.bar("comparing", len(wanted)) as bar:
        for cell, image in zip(wanted, images_of(pipeline, prompt, wanted, **inputs), strict=True):
            images.append(image)
            count = pipeline.count_evaluations(1, cell.options, cell.upsampler_options, from_image=from_image)
            lines.append(f"{cell.label.replace(chr(10), ', ')}: {count} model evaluations")
            bar.update(figures=lines[-1])
    return sheet(images, wanted, columns), lines
