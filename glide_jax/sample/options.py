"""How images are generated: the options of both models, as command lines and image files say them."""

import argparse
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple, Self

from glide_jax.diffusion.options import (
    SAMPLERS,
    GuidanceOptions,
    LevelOptions,
    SolverOptions,
    ThresholdingOptions,
    canonical_name,
    default_schedule,
    level_options,
    sampler_options,
)
from glide_jax.errors import GlideError
from glide_jax.options import INLINE, Field, Options, add_arguments, build, fields, flat, given, option

__all__ = [
    "OF_UPSAMPLER", "SAMPLERS", "UPSAMPLER_DEFAULTS", "SampleOptions", "Settings", "add_sampling_arguments",
    "base_options", "changed_flags", "default_schedule", "flag_fields", "flags", "level_options", "metadata",
    "sampler_options", "upsampler_options", "upsampling",
]  # fmt: skip


@dataclass(frozen=True)
class SampleOptions(Options):
    """Options of one model's sampling: which sampler, over which noise levels, with what guidance and thresholding."""

    solver: Annotated[SolverOptions, INLINE] = SolverOptions()
    levels: Annotated[LevelOptions, INLINE] = LevelOptions()
    guidance: Annotated[GuidanceOptions, INLINE] = GuidanceOptions()
    thresholding: Annotated[ThresholdingOptions, INLINE] = ThresholdingOptions()
    strength: Annotated[
        float,
        option(
            "of the image to start from: share of the steps to go through, from 0 (the image as it is) to 1 (nothing of"
            " it is left); below 1 an upsampler starts from the image that it enlarges",
            low=0,
            high=1,
        ),
    ] = 1.0
    temperature: Annotated[float, option("initial-noise temperature", above=0, most=1.5)] = 1.0
    clip_guidance_scale: Annotated[
        float, option("scale of the noised CLIP's gradient, where one is loaded (0: off)", low=0, most=1000)
    ] = 0.0

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Options by their plain names: `SampleOptions.of(num_steps=25, guidance_scale=4.0)`.

        Raises:
            GlideError: an unknown name, or an invalid value.
        """
        return build(cls, options)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance.guidance == "cfg++" and not SAMPLERS[canonical_name(self.solver.sampler)].with_cfgpp:
            able = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.with_cfgpp)
            raise GlideError(f"guidance cfg++ works with {able}, not with {self.solver.sampler}")
        _ = self.levels_in_force  # raises what has no effect on the sampler's own schedule

    @property
    def levels_in_force(self) -> LevelOptions:
        """The levels with the sampler's own schedule where none is chosen."""
        return replace(self.levels, schedule=self.levels.schedule or default_schedule(self.solver.sampler))


UPSAMPLER_DEFAULTS = SampleOptions(
    levels=LevelOptions(timestep_respacing="fast27"), guidance=GuidanceOptions(guidance_scale=1.0), temperature=0.997
)
_PREFIX = "upsampler_"
_NAMES = {"temperature": "upsample_temp"}
OF_UPSAMPLER = (_PREFIX, *_NAMES.values())  # beginnings of the flags that are about the upsampler
_LISTED = ("sampler", "num_steps", "schedule", "guidance_scale", "strength", "temperature")
_GROUPS = {"sampler": SolverOptions, "noise levels": LevelOptions, "guidance": GuidanceOptions,
           "thresholding": ThresholdingOptions}  # fmt: skip


class Settings(NamedTuple):
    """The options of both models where a request names none."""

    options: SampleOptions = SampleOptions()
    upsampler_options: SampleOptions = UPSAMPLER_DEFAULTS


def upsampling(changes: Mapping[str, Any], base: SampleOptions = UPSAMPLER_DEFAULTS) -> SampleOptions:
    """The options of an upsampler: GLIDE's own ("fast27" DDIM, no guidance), or `base`, with changes by name.

    Raises:
        GlideError: invalid options.
    """
    respaced = {"timestep_respacing": ""} if {"num_steps", "schedule"} & changes.keys() else {}
    return build(SampleOptions, {**respaced, **changes}, base=base)


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of both models' options, but for --strength; `base_options` and `upsampler_options` read them."""
    for title, cls in _GROUPS.items():
        add_arguments(parser.add_argument_group(title), cls)
    add_arguments(parser.add_argument_group("noise"), SampleOptions, only=("temperature", "clip_guidance_scale"))
    group = parser.add_argument_group("upsampler", "all options above are there for it too, as --upsampler_NAME")
    hidden = [name for name in flat(UPSAMPLER_DEFAULTS) if name not in _LISTED]
    add_arguments(group, SampleOptions, _PREFIX, names=_NAMES, hide=hidden, base=UPSAMPLER_DEFAULTS)


def base_options(flags: Mapping[str, Any]) -> SampleOptions:
    """The base model's options that flags (`vars(args)`) ask for; raises `GlideError` where they are invalid."""
    return build(SampleOptions, given(flags, SampleOptions))


def upsampler_options(flags: Mapping[str, Any]) -> SampleOptions:
    """The upsampler's options that flags (`vars(args)`) ask for; raises `GlideError` where they are invalid."""
    return upsampling(given(flags, SampleOptions, _PREFIX, names=_NAMES))


def flags(options: SampleOptions, upsampler_options: SampleOptions) -> dict[str, Any]:
    """All options of both models by the flags that ask for them."""
    return flat(options) | {_NAMES.get(name, _PREFIX + name): value for name, value in flat(upsampler_options).items()}


def flag_fields() -> dict[str, Field]:
    """The options of both models by the flags that ask for them."""
    known = fields(SampleOptions)
    return dict(known) | {_NAMES.get(name, _PREFIX + name): field for name, field in known.items()}


def changed_flags(options: SampleOptions, upsampler_options: SampleOptions) -> dict[str, Any]:
    """Those of `flags` that differ from what they are by default."""
    usual = flags(*Settings())
    return {name: value for name, value in flags(options, upsampler_options).items() if value != usual[name]}


def metadata(options: SampleOptions | None, upsampler_options: SampleOptions | None) -> dict[str, str]:
    """What tells how an image was generated: the flags that differ from the defaults, and the main ones.

    Args:
        options: of the base model; None if there was none.
        upsampler_options: of the upsampler; None if there was none.
    """
    named: dict[str, Any] = {}
    if options is not None:
        main = {"sampler", "num_steps", "guidance_scale"}
        named = _changed(options, SampleOptions(), main)
        named["schedule"] = options.levels_in_force.schedule
    if upsampler_options is not None:
        changed = _changed(upsampler_options, UPSAMPLER_DEFAULTS)
        named |= {_NAMES.get(k, _PREFIX + k): v for k, v in changed.items()}
    return {name: str(value) for name, value in named.items()}


def _changed(options: SampleOptions, base: SampleOptions, also: Collection[str] = ()) -> dict[str, Any]:
    usual = flat(base)
    return {k: v for k, v in flat(options).items() if k in also or (v != usual[k] and v not in (None, ""))}
