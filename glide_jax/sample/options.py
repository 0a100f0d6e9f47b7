"""The sampling options of both models, for command lines and for the metadata of images."""

import argparse
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, Self

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
    "IMAGE_STRENGTH", "SAMPLERS", "UPSAMPLER_DEFAULTS", "SampleOptions", "add_sampling_arguments", "base_flags",
    "base_options", "default_schedule", "flag_fields", "flags", "level_options", "metadata", "of_upsampler",
    "overruled", "sampler_options", "upsampler_flags", "upsampler_named", "upsampler_options", "upsampling",
]  # fmt: skip


@dataclass(frozen=True)
class SampleOptions(Options):
    """Sampling options of one model: sampler, noise levels, guidance and thresholding."""

    solver: Annotated[SolverOptions, INLINE] = SolverOptions()
    levels: Annotated[LevelOptions, INLINE] = LevelOptions()
    guidance: Annotated[GuidanceOptions, INLINE] = GuidanceOptions()
    thresholding: Annotated[ThresholdingOptions, INLINE] = ThresholdingOptions()
    strength: Annotated[
        float,
        option(
            "fraction of the steps to run on the image to start from (an upsampler's is its low-resolution input): 0"
            " returns it, 1 ignores it",
            low=0,
            high=1,
        ),
    ] = 1.0
    temperature: Annotated[float, option("initial-noise temperature", above=0, most=1.5)] = 1.0
    clip_guidance_scale: Annotated[
        float, option("scale of the noised CLIP's gradient, if one is loaded (0: off)", low=0, most=1000)
    ] = 0.0

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Options by their flat names: `SampleOptions.of(num_steps=25, guidance_scale=4.0)`.

        Raises:
            GlideError: an unknown name, or an invalid value.
        """
        return build(cls, options)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance.guidance == "cfg++" and not SAMPLERS[canonical_name(self.solver.sampler)].with_cfgpp:
            able = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.with_cfgpp)
            raise GlideError(f"guidance cfg++ works with {able}, not with {self.solver.sampler}")
        _ = self.levels_in_force  # refuses options without effect on the sampler's own schedule

    @property
    def levels_in_force(self) -> LevelOptions:
        """The level options, with the sampler's own schedule if none is chosen."""
        return replace(self.levels, schedule=self.levels.schedule or default_schedule(self.solver.sampler))


UPSAMPLER_DEFAULTS = SampleOptions(
    levels=LevelOptions(num_steps=27, timestep_respacing="fast27"),
    guidance=GuidanceOptions(guidance_scale=1.0),
    temperature=0.997,
)
# The strength for an image to start from, if none is given.
IMAGE_STRENGTH = 0.6
_PREFIX = "upsampler_"
_NAMES = {"temperature": "upsample_temp"}
# The options that decide which others apply, and the groups of those.
_DECIDES = {
    "sampler": ("solver", "levels"), "schedule": ("levels",), "timestep_respacing": ("levels",),
    "guidance": ("guidance",), "thresholding": ("thresholding",),
}  # fmt: skip
_LISTED = ("sampler", "num_steps", "schedule", "guidance_scale", "strength", "temperature")
_GROUPS = {"sampler": SolverOptions, "noise levels": LevelOptions, "guidance": GuidanceOptions,
           "thresholding": ThresholdingOptions}  # fmt: skip


def overruled(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline's settings for one model, overridden by `changes`; all by name.

    Changing an option that decides which others apply (sampler, schedule, ...) drops the settings chosen along with it,
    except for num_steps and guidance_scale.
    """
    known = fields(SampleOptions)
    gone = {
        name for decides, groups in _DECIDES.items() if decides in changes
        for name in known if known[name].within in groups and name not in ("num_steps", "guidance_scale")
    }  # fmt: skip
    if "num_steps" in changes:
        gone.add("timestep_respacing")
    if changes.get("timestep_respacing"):
        gone.add("num_steps")
    return {name: value for name, value in settings.items() if name not in gone} | dict(changes)


def upsampling(changes: Mapping[str, Any]) -> SampleOptions:
    """The options of an upsampler: GLIDE's ("fast27" DDIM, no guidance), with changes by name.

    Raises:
        GlideError: invalid options.
    """
    respaced = {"timestep_respacing": ""} if {"num_steps", "schedule"} & changes.keys() else {}
    return build(SampleOptions, {**respaced, **changes}, base=UPSAMPLER_DEFAULTS)


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds flags for both models' options, except --strength; `base_options` and `upsampler_options` read them."""
    for title, cls in _GROUPS.items():
        about = "models may bring settings of their own, which python -m convert inspect shows"
        add_arguments(parser.add_argument_group(title, about if cls is SolverOptions else None), cls)
    add_arguments(parser.add_argument_group("noise"), SampleOptions, only=("temperature", "clip_guidance_scale"))
    group = parser.add_argument_group("upsampler", "it takes all options from --sampler on too, as --upsampler_NAME")
    hidden = [name for name in flat(UPSAMPLER_DEFAULTS) if name not in _LISTED]
    add_arguments(group, SampleOptions, _PREFIX, names=_NAMES, hide=hidden, base=UPSAMPLER_DEFAULTS)


def base_options(flags: Mapping[str, Any], settings: Mapping[str, Any] = MappingProxyType({})) -> SampleOptions:
    """The base model's options from flags (`vars(args)`), on top of its pipeline's settings.

    Raises:
        GlideError: they are invalid.
    """
    return build(SampleOptions, overruled(base_flags(settings), base_flags(flags)))


def upsampler_options(flags: Mapping[str, Any], settings: Mapping[str, Any] = MappingProxyType({})) -> SampleOptions:
    """The upsampler's options; arguments and errors as for `base_options`."""
    try:
        return upsampling(overruled(upsampler_flags(settings), upsampler_flags(flags)))
    except GlideError as error:
        first, blank, rest = str(error).partition(" ")
        if first not in flag_fields():
            raise
        raise GlideError(f"{next(iter(upsampler_named({first: None})))}{blank}{rest}") from error


def base_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The base model's options among flags."""
    return given(flags, SampleOptions)


def upsampler_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The upsampler's options among flags, by the names without prefix."""
    return given(flags, SampleOptions, _PREFIX, names=_NAMES)


def of_upsampler(flag: str) -> bool:
    """Whether a flag belongs to the upsampler."""
    return flag.startswith((_PREFIX, *_NAMES.values()))


def flags(options: SampleOptions, upsampler_options: SampleOptions) -> dict[str, Any]:
    """All options of both models, by flag."""
    return flat(options) | upsampler_named(flat(upsampler_options))


def upsampler_named(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the upsampler, by flag."""
    return {_NAMES.get(name, _PREFIX + name): value for name, value in options.items()}


def flag_fields() -> dict[str, Field]:
    """The fields of both models' options, by flag."""
    known = fields(SampleOptions)
    return dict(known) | upsampler_named(known)


def metadata(options: SampleOptions | None, upsampler_options: SampleOptions | None) -> dict[str, str]:
    """How an image was generated: the main flags, and those that differ from the defaults.

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
        named |= upsampler_named(changed)
    return {name: str(value) for name, value in named.items()}


def _changed(options: SampleOptions, base: SampleOptions, also: Collection[str] = ()) -> dict[str, Any]:
    usual = flat(base)
    return {k: v for k, v in flat(options).items() if k in also or (v != usual[k] and v not in (None, ""))}
