"""What a page asks for, and the bounds it must keep: a client may send anything."""

import argparse
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.sample import SAMPLERS, SCHEDULES, Pipeline, SampleOptions, sampler_options
from glide_jax.sample.cli import sample_options, upsampler_options

Task = Literal["draw", "inpaint", "redraw", "enlarge", "rank"]

# Those left out need several times the evaluations or are of historical interest.
MENU = tuple(name for name in SAMPLERS if name not in ("prk", "dpm_2", "dpm_2_ancestral", "lms"))
CHOICES: dict[str, tuple[str, ...]] = {
    "sampler": MENU,
    "schedule": ("", *SCHEDULES),
    "guidance": ("cfg", "cfg++", "apg"),
    "thresholding": ("static", "dynamic", "none"),
    "upsampler_sampler": ("", *MENU),
    "upsampler_schedule": ("", *SCHEDULES),
}
# Options that only some samplers and schedules take.
OPTIONAL = ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "sigma_min", "sigma_max", "rho")
_RESPACING_LENGTH = 60


@dataclass(frozen=True)
class Limits:
    """The most a request may ask for.

    Attributes:
        num_images: pictures.
        candidates: pictures to choose the best of.
        num_steps: noise levels to visit, of either model.
        prompt: characters.
        pixels: of an uploaded picture.
        queue: requests waiting.
    """

    num_images: int = 8
    candidates: int = 32
    num_steps: int = 250
    prompt: int = 1000
    pixels: int = 25_000_000
    queue: int = 20


class Bounds(NamedTuple):
    """The range of a number; one that may be left blank is the method's own default then."""

    low: float
    high: float
    default: float | None = None
    whole: bool = False
    blank: bool = True


def bounds(limits: Limits) -> dict[str, Bounds]:
    """The numbers of a request by name: those of `SampleOptions` and of sample.py's upsampler flags, and our own."""
    defaults = SampleOptions()
    return {
        "num_images": Bounds(1, limits.num_images, min(4, limits.num_images), whole=True, blank=False),
        "candidates": Bounds(1, limits.candidates, min(8, limits.candidates), whole=True, blank=False),
        "top_k": Bounds(1, limits.candidates, min(4, limits.candidates), whole=True, blank=False),
        "seed": Bounds(-1, 2**31 - 1, whole=True),
        "strength": Bounds(0, 1, 0.6, blank=False),
        "num_steps": Bounds(1, limits.num_steps, min(50, limits.num_steps), whole=True, blank=False),
        "guidance_scale": Bounds(0, 30, defaults.guidance_scale, blank=False),
        "sigma_min": Bounds(1e-4, 1e3),
        "sigma_max": Bounds(1e-3, 1e5),
        "rho": Bounds(0.1, 100),
        "eta": Bounds(0, 1),
        "s_churn": Bounds(0, 1000),
        "s_tmin": Bounds(0, 1e5),
        "s_tmax": Bounds(0, 1e5),
        "s_noise": Bounds(0, 10),
        "guidance_rescale": Bounds(0, 1, 0.0, blank=False),
        "interval_low": Bounds(0, 1e5),
        "interval_high": Bounds(0, 1e5),
        "apg_eta": Bounds(-1, 1, defaults.apg_eta, blank=False),
        "apg_momentum": Bounds(-1, 1, defaults.apg_momentum, blank=False),
        "apg_norm_threshold": Bounds(0, 1e4, 0.0, blank=False),
        "dynamic_thresholding_ratio": Bounds(0.5, 1, defaults.dynamic_thresholding_ratio, blank=False),
        "clip_guidance_scale": Bounds(0, 1000, 0.0, blank=False),
        "upsampler_num_steps": Bounds(1, limits.num_steps, whole=True),
        "upsampler_guidance_scale": Bounds(0, 30),
        "upsampler_strength": Bounds(0, 1),
        "upsample_temp": Bounds(0.5, 1.5),
    }


@dataclass(frozen=True)
class Request:
    """One drawing, with all it depends on.

    Attributes:
        task: which tab it comes from.
        base, upsampler: names of models; None is none.
        prompt, negative_prompt: captions.
        num_images: pictures to draw.
        keep: how many of them to show, the best first (task "rank").
        seed: theirs; a random one if none was given.
        settings: the flags of sample.py that say how to draw, for its functions.
        picture, mask: what was uploaded, and where it is kept (white) or drawn anew (black).
    """

    task: Task
    base: str | None
    upsampler: str | None
    prompt: str
    negative_prompt: str
    num_images: int
    keep: int
    seed: int
    settings: argparse.Namespace
    picture: Image.Image | None = None
    mask: Image.Image | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Of the base model's `SampleOptions`; raises `GlideError` where they are impossible."""
        return sample_options(self.settings)

    @property
    def upsampler_options(self) -> dict[str, Any]:
        """Of the upsampler's, over its defaults."""
        return upsampler_options(self.settings)


def checked(task: Task, values: Mapping[str, Any], limits: Limits) -> Request:
    """A request from what a client sent.

    Args:
        task: what it asks for.
        values: by the names of `bounds` and `CHOICES`, and base, upsampler, prompt, negative_prompt,
            timestep_respacing, picture, mask; what is left out takes its default.
        limits: the most it may ask for.

    Raises:
        GlideError: something is out of bounds, of another type, or missing.
    """
    numbers = {name: _number(name, values.get(name, bound.default), bound) for name, bound in bounds(limits).items()}
    choices = {name: _choice(name, values.get(name), known) for name, known in CHOICES.items()}
    respacing = _text("timestep_respacing", values.get("timestep_respacing"), _RESPACING_LENGTH)
    prompt = _text("prompt", values.get("prompt"), limits.prompt)
    if not prompt and task != "enlarge":
        raise GlideError("the prompt is empty: say what to draw")
    picture, mask = _needed_pictures(task, values)
    base, upsampler = (_text(name, values.get(name), 1000) or None for name in ("base", "upsampler"))
    if (upsampler if task == "enlarge" else base) is None:
        raise GlideError(f"no model to draw with: choose {'an upsampler' if task == 'enlarge' else 'a base model'}")
    seed = numbers["seed"]
    count = {"enlarge": 1, "rank": numbers["candidates"]}.get(task, numbers["num_images"])
    request = Request(
        task=task,
        base=None if task == "enlarge" else base,
        upsampler=upsampler,
        prompt=prompt,
        negative_prompt=_text("negative_prompt", values.get("negative_prompt"), limits.prompt),
        num_images=count,
        keep=min(count, numbers["top_k"]) if task == "rank" else count,
        seed=secrets.randbelow(2**31) if seed is None or seed < 0 else seed,
        settings=_settings(task, numbers, choices, respacing),
        picture=picture,
        mask=mask,
    )  # fmt: skip
    _ = request.options  # raises what is impossible
    return request


def check_fit(pipeline: Pipeline, request: Request, limits: Limits) -> None:
    """Refuses what these models cannot do, and more noise levels than allowed, however they were asked for.

    Raises:
        GlideError: either.
    """
    if pipeline.base is None:
        return
    if request.task == "inpaint" and not pipeline.base.stage.model.config.inpaint:
        raise GlideError(f"{request.base} cannot inpaint: choose a base model that says so")
    grid = pipeline.base.stage.grid(SampleOptions(**request.options))
    if grid is not None and len(grid) > limits.num_steps:
        raise GlideError(f"{len(grid)} steps are too many: at most {limits.num_steps}")


def options_in_force(sampler: str, schedule: str, respacing: str = "") -> list[str]:
    """Which of `OPTIONAL` have an effect."""
    spacing = "" if respacing else SampleOptions(sampler=sampler, schedule=schedule).spacing
    ends = ["sigma_min", "sigma_max"] if spacing in ("karras", "exponential", "polyexponential") else []
    return [*sampler_options(sampler), *ends, *(["rho"] if spacing in ("karras", "polyexponential") else [])]


def _settings(task: Task, numbers: Mapping[str, Any], choices: Mapping[str, str], respacing: str) -> argparse.Namespace:
    """As sample.py's parser leaves them, without what the page hides."""
    settings = {**numbers, **choices, "timestep_respacing": respacing}
    in_force = options_in_force(choices["sampler"], choices["schedule"], respacing)
    settings |= dict.fromkeys(name for name in OPTIONAL if name not in in_force)
    low, high = settings.pop("interval_low"), settings.pop("interval_high")
    settings["guidance_interval"] = (low or 0.0, math.inf if high is None else high)
    for name in ("upsampler_sampler", "upsampler_schedule"):
        settings[name] = settings[name] or None
    if task != "redraw":
        settings.pop("strength")
    own = ("num_images", "candidates", "top_k", "seed")
    return argparse.Namespace(**{name: value for name, value in settings.items() if name not in own})


def _number(name: str, value: Any, bound: Bounds) -> Any:
    if isinstance(value, str):
        value = _parsed(name, value)
    if value is None and bound.blank:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise GlideError(f"{name} must be a number")
    if not bound.low <= value <= bound.high:
        raise GlideError(f"{name} must be from {bound.low:g} to {bound.high:.10g}, not {value!r:.20}")
    if not bound.whole:
        return float(value)
    if value != int(value):
        raise GlideError(f"{name} must be a whole number, not {value:g}")
    return int(value)


def _parsed(name: str, text: str) -> float | None:
    """The number in a text field, None if it is blank."""
    try:
        return float(text[:40]) if text.strip() else None
    except ValueError:
        raise GlideError(f"{name} must be a number, not {text[:40]!r}") from None


def _choice(name: str, value: Any, known: tuple[str, ...]) -> str:
    if value is None:
        return known[0]
    if not isinstance(value, str) or value not in known:
        raise GlideError(f"{name} must be one of {', '.join(filter(None, known))}")
    return value


def _text(name: str, value: Any, longest: int) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise GlideError(f"{name} must be text")
    if len(value) > longest:
        raise GlideError(f"{name} has {len(value)} characters: at most {longest}")
    # A control character cannot be written into the picture file, and a lone surrogate not even encoded.
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def _needed_pictures(task: Task, values: Mapping[str, Any]) -> tuple[Image.Image | None, Image.Image | None]:
    picture, mask = values.get("picture"), values.get("mask")
    if task in ("draw", "rank"):
        return None, None
    if not isinstance(picture, Image.Image):
        raise GlideError("there is no picture yet: upload one")
    if task != "inpaint":
        return picture, None
    if not isinstance(mask, Image.Image) or mask.getextrema() == (255, 255):
        raise GlideError("nothing is painted yet: paint over what is to be drawn anew")
    return picture, mask
