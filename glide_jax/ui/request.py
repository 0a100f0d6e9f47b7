"""Checks requests, whose clients may send anything, by the types, choices and bounds of the options."""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, get_args

from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.options import Field, Options, build, fields, option
from glide_jax.sample import (
    IMAGE_STRENGTH,
    SAMPLERS,
    Axis,
    Cell,
    Pipeline,
    SampleOptions,
    default_schedule,
    level_options,
    sampler_options,
    upsampling,
)
from glide_jax.ui.found import MOST_SCALE

Task = Literal["draw", "inpaint", "redraw", "enlarge", "rank", "compare"]

# The samplers left out need several times the evaluations, or are of historical interest.
SAMPLER_MENU = tuple(name for name in SAMPLERS if name not in ("prk", "dpm_2", "dpm_2_ancestral", "lms"))
# Options of the upsampler that clients may set, by flag; blank means GLIDE's own value.
UPSAMPLER = {f"upsampler_{name}": name for name in ("sampler", "schedule", "num_steps", "guidance_scale", "strength")}
UPSAMPLER |= {"upsample_temp": "temperature"}
# The scales of the first, second, ... selected adapters; there can be no more of them.
SCALES = ("lora_scale", "lora_scale_2", "lora_scale_3")
LONGEST_PROMPT = 1000
_LONGEST_TEXT = 60
_LARGEST = 1e5  # for options without a limit of their own, such as sigmas


@dataclass(frozen=True)
class Limits(Options):
    """Limits on what a request may ask for, and on what is done at once."""

    PREFIX: ClassVar[str] = "--"

    batch_size: Annotated[int, option("images generated at once", low=1, metavar="N")] = 4
    max_images: Annotated[int, option("images per request", low=1, metavar="N")] = 8
    max_candidates: Annotated[int, option("images to choose the best of", low=1, metavar="N")] = 32
    max_steps: Annotated[int, option("steps of either model in a request", low=1, metavar="N")] = 250
    max_queue: Annotated[int, option("requests in the queue", low=1, metavar="N")] = 20
    max_loaded: Annotated[int, option("models kept in memory, and as many copies with LoRA", low=1, metavar="N")] = 3


@dataclass(frozen=True)
class _Own(Options):
    """Fields of a request that are not sampling options, or that replace one (guidance_interval)."""

    num_images: Annotated[int, option("how many to generate", low=1)] = 4
    candidates: Annotated[int, option("how many to generate and rank", low=1)] = 8
    top_k: Annotated[int, option("how many of them to keep", low=1)] = 4
    seed: Annotated[int | None, option("blank: a new one each time", low=-1, high=2**31 - 1)] = None
    interval_low: Annotated[float | None, option("guide only above this sigma", low=0)] = None
    interval_high: Annotated[float | None, option("guide only up to this sigma", low=0)] = None
    lora_scale: Annotated[float, option("1 is as trained, 0 is without", low=0, high=MOST_SCALE)] = 1.0
    lora_scale_2: Annotated[float, option("1 is as trained, 0 is without", low=0, high=MOST_SCALE)] = 1.0
    lora_scale_3: Annotated[float, option("1 is as trained, 0 is without", low=0, high=MOST_SCALE)] = 1.0


class Choice(NamedTuple):
    """Names of the selected models, "" for none, and of the adapters for the base model."""

    base: str = ""
    upsampler: str = ""
    adapters: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """A client's selection as base, upsampler and lora; the last is one name or several.

        Raises:
            GlideError: values are not names, or there are too many adapters or one of them twice.
        """
        base, upsampler = (checked_text(name, values.get(name), LONGEST_PROMPT) for name in ("base", "upsampler"))
        sent = values.get("lora")
        named = [] if sent in (None, "") else [sent] if isinstance(sent, str) else sent
        if not isinstance(named, list | tuple) or not all(isinstance(name, str) for name in named):
            raise GlideError(f"lora must be a name or a list of up to {len(SCALES)} names")
        if len(named) > len(SCALES):
            raise GlideError(f"{len(named)} LoRAs are too many: at most {len(SCALES)} at once")
        adapters = tuple(checked_text("lora", name, LONGEST_PROMPT) for name in named)
        if len(set(adapters)) < len(adapters):
            raise GlideError("lora names the same twice: give it once, with a larger lora_scale")
        return cls(base, upsampler, adapters)


@dataclass(frozen=True)
class Request:
    """A request, with everything its images depend on.

    Attributes:
        task: the tab it comes from.
        base, upsampler: names of models, or None.
        prompt, negative_prompt: the text, and what guidance steers away from.
        num_images: images to generate.
        keep: the number of images to show, the best first (task "rank").
        seed: the images' seed; a random one if none was given (`any_seed`).
        options, upsampler_options: sampling options of the two models.
        images: uploaded inputs of `Pipeline.batches`: image and mask, or init_image.
        adapters: adapters for the base model, with their scales.
        axes, cells, columns: what varies, what each image is generated with, and images per row (task "compare").
        strengths: the adapters of each cell; `adapters` are the first cell's.
    """

    task: Task
    base: str | None
    upsampler: str | None
    prompt: str
    negative_prompt: str
    num_images: int
    keep: int
    seed: int
    any_seed: bool
    options: SampleOptions
    upsampler_options: SampleOptions
    images: Mapping[str, Image.Image]
    adapters: Mapping[str, float]
    axes: Sequence[Axis] = ()
    cells: Sequence[Cell] = ()
    columns: int = 1
    strengths: Sequence[Mapping[str, float]] = ()

    @property
    def one_seed(self) -> int | None:
        """The seed of all images; None if it varies."""
        return None if any(axis.flag == "seed" for axis in self.axes) else self.seed


def request_fields(limits: Limits, defaults: Mapping[str, Any]) -> dict[str, Field]:
    """The settings of a request, by the names that clients use (sample.py's flags), with bounds on every number.

    `defaults`, by these names, replace the usual ones.
    """
    sampling = fields(SampleOptions)
    found = dict(sampling) | dict(fields(_Own)) | {flag: _optional(sampling[name]) for flag, name in UPSAMPLER.items()}
    del found["guidance_interval"]  # interval_low and interval_high
    most = {"num_images": limits.max_images, "candidates": limits.max_candidates, "top_k": limits.max_candidates}
    most |= dict.fromkeys(("num_steps", "upsampler_num_steps"), limits.max_steps)
    low, high = defaults.get("guidance_interval", (None, None))
    usual = {
        "strength": IMAGE_STRENGTH,
        "interval_low": low,
        "interval_high": None if high == math.inf else high,
        **defaults,
    }
    return {name: _bounded(name, field, most.get(name), usual) for name, field in found.items()}


def _optional(field: Field) -> Field:
    if str in kinds(field):
        return field._replace(default="")
    return field._replace(hint=field.hint | None, default=None)


def _bounded(name: str, field: Field, most: int | None, defaults: Mapping[str, Any]) -> Field:
    """A field as clients may set it: samplers become a menu, and every number gets an upper bound."""
    default, option = defaults.get(name, field.default), field.option
    if name.endswith("sampler"):
        menu = ("", *SAMPLER_MENU) if name in UPSAMPLER else SAMPLER_MENU
        option = option._replace(choices=menu if default in menu else (*menu, default))
    elif not option.choices and str not in kinds(field):
        high = next(each for each in (most, option.high, option.most, _LARGEST) if each is not None)
        default = default if default is None else min(default, high)
        option = option._replace(high=high)
    return field._replace(name=name, default=default, option=option)


def kinds(field: Field) -> tuple[Any, ...]:
    """The possible types of a field's value; `NoneType` if it may be blank."""
    return get_args(field.hint) or (field.hint,)


def checked(task: Task, values: Mapping[str, Any], known: Mapping[str, Field]) -> Request:
    """Checks what a client sent, and makes it a request.

    Args:
        task: the task.
        values: by the names of `known`, plus base, upsampler, lora, prompt, negative_prompt, image, mask; missing ones
            and None take their defaults.
        known: see `request_fields`.

    Raises:
        GlideError: a value is out of bounds, of another type, or missing.
    """
    sent = {name: checked_value(field, values.get(name)) for name, field in known.items()}
    base, upsampler, adapters = Choice.of(values)
    prompt, negative = (checked_text(name, values.get(name), LONGEST_PROMPT) for name in ("prompt", "negative_prompt"))
    if not prompt and task != "enlarge":
        raise GlideError("the prompt is empty: say what to generate")
    images = _needed_images(task, values)
    if not (upsampler if task == "enlarge" else base):
        raise GlideError(f"no model to generate with: choose {'an upsampler' if task == 'enlarge' else 'a base model'}")
    seed = sent["seed"]
    any_seed = seed is None or seed < 0
    count = {"enlarge": 1, "rank": sent["candidates"]}.get(task, sent["num_images"])
    return Request(
        task=task,
        base=None if task == "enlarge" else base,
        upsampler=upsampler or None,
        prompt=prompt,
        negative_prompt="" if task == "enlarge" else negative,
        num_images=count,
        keep=min(count, sent["top_k"]) if task == "rank" else count,
        seed=secrets.randbelow(2**31) if any_seed else seed,
        any_seed=any_seed,
        options=_base_options(sent, redraw=task == "redraw"),
        upsampler_options=upsampling(
            {name: sent[flag] for flag, name in UPSAMPLER.items() if sent[flag] not in (None, "")}
        ),
        images=images,
        adapters={}
        if task == "enlarge"
        else {name: sent[scale] for name, scale in zip(adapters, SCALES, strict=False)},
    )


def check_fit(pipeline: Pipeline, request: Request, most_steps: int) -> None:
    """Refuses a request these models cannot fulfil, or with more noise levels than allowed, however they are specified.

    Raises:
        GlideError: either.
    """
    if pipeline.base is None:
        return
    if request.task == "inpaint" and not pipeline.base.stage.model.config.inpaint:
        raise GlideError(f"{request.base} cannot inpaint: choose a base model that says so")
    for options in [cell.options for cell in request.cells] or [request.options]:
        levels = pipeline.base.stage.levels(options, from_image=request.task == "redraw")
        if levels is not None and len(levels) > most_steps:
            raise GlideError(f"{len(levels)} steps are too many: at most {most_steps}")


def without_effect(chosen: Mapping[str, Any]) -> set[str]:
    """Options without effect for the selected sampler, schedule, ...: the page hides them, and they are ignored."""
    sampling, sampler = fields(SampleOptions), chosen["sampler"]
    schedule = chosen["schedule"] or default_schedule(sampler)
    taken = {*sampler_options(sampler), *level_options(schedule, chosen.get("timestep_respacing", ""))}
    idle = {name for name, field in sampling.items() if field.default is None and name not in taken}
    # Others belong to one choice, and begin with its name: apg_eta, dynamic_thresholding_ratio.
    for menu in ("guidance", "thresholding"):
        others = tuple(f"{choice}_" for choice in sampling[menu].option.choices if choice != chosen[menu])
        idle |= {name for name in sampling if name.startswith(others)}
    return idle


def _base_options(sent: Mapping[str, Any], *, redraw: bool) -> SampleOptions:
    idle = without_effect(sent) | (set() if redraw else {"strength"})
    own = {name: sent[name] for name in fields(SampleOptions) if name in sent and name not in idle}
    low, high = sent["interval_low"], sent["interval_high"]
    own["guidance_interval"] = (low or 0.0, math.inf if high is None else high)
    return build(SampleOptions, own)


def checked_value(field: Field, value: Any) -> Any:
    """A field's value from what a client sent, where numbers may be text; None means its default.

    Raises:
        GlideError: it is of another type, out of bounds, or not among the choices.
    """
    choices = field.option.choices
    if value is None:
        return field.default
    if choices:
        if not isinstance(value, str) or value not in choices:
            raise GlideError(f"{field.name} must be one of {', '.join(filter(None, choices))}")
        return value
    if str in kinds(field):
        return checked_text(field.name, value, _LONGEST_TEXT)
    return _number(field, value)


def _number(field: Field, value: Any) -> float | None:
    """A number within its bounds, from a number or text; None if the field may be blank and is."""
    name = field.name
    if isinstance(value, str):
        if not value.strip() and type(None) in kinds(field):
            return None
        try:
            value = float(value[:40])
        except ValueError:
            raise GlideError(f"{name} must be a number, not {value[:40]!r}") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise GlideError(f"{name} must be a number")
    if not field.option.allows(value):
        raise GlideError(f"{name} must be in {field.option.range}, not {value!r:.20}")
    if int not in kinds(field):
        return float(value)
    if value != int(value):
        raise GlideError(f"{name} must be a whole number, not {value:g}")
    return int(value)


def checked_text(name: str, value: Any, longest: int) -> str:
    """A text on one line, fit for an image file's metadata; raises `GlideError` if it is not text or too long."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise GlideError(f"{name} must be text")
    if len(value) > longest:
        raise GlideError(f"{name} has {len(value)} characters: at most {longest}")
    # Control characters cannot be written into image files, and lone surrogates cannot even be encoded.
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def _needed_images(task: Task, values: Mapping[str, Any]) -> dict[str, Image.Image]:
    image, mask = values.get("image"), values.get("mask")
    if task in ("draw", "rank", "compare"):
        return {}
    if not isinstance(image, Image.Image):
        raise GlideError("there is no image yet: upload one")
    if task != "inpaint":
        return {"init_image" if task == "redraw" else "image": image}
    if not isinstance(mask, Image.Image) or mask.getextrema() == (255, 255):
        raise GlideError("nothing is painted yet: paint over what is to be inpainted")
    return {"image": image, "mask": mask}
