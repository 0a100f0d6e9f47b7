"""Sampling options for users, and how they are checked; no arrays here, so that it imports quickly."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple

from glide_jax.errors import GlideError
from glide_jax.options import Options, nearest, option


class Sampler(NamedTuple):
    """A sampler as users see it.

    Attributes:
        options: the `SolverOptions` it takes.
        schedule: its default schedule: timesteps for first-order methods and PNDM, sigmas for the others. On a
            known distribution and in 20 steps, multistep methods get 3 to 8 times closer with "karras" than with
            "leading", DDIM 2 times closer with "leading" (docs/samplers.md).
        with_cfgpp: whether it can continue with other noise than that implied by x_0.
    """

    options: tuple[str, ...] = ()
    schedule: str = "karras"
    with_cfgpp: bool = False


_ANCESTRAL = ("eta", "s_noise")
_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")
SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "ddim": Sampler(("eta",), "leading", with_cfgpp=True),
        "ddpm": Sampler((), "leading"),
        "plms": Sampler((), "leading"),
        "euler": Sampler(_CHURN, "leading", with_cfgpp=True),
        "euler_ancestral": Sampler(_ANCESTRAL, "leading", with_cfgpp=True),
        "heun": Sampler(_CHURN),
        "dpmpp_2m": Sampler(),
        "dpmpp_2m_sde": Sampler(_ANCESTRAL),
        "dpmpp_3m_sde": Sampler(_ANCESTRAL),
        "dpmpp_2s_ancestral": Sampler(_ANCESTRAL),
        "dpmpp_sde": Sampler(_ANCESTRAL),
        "unipc": Sampler(),
        "prk": Sampler((), "leading"),
        "dpm_2": Sampler(_CHURN),
        "dpm_2_ancestral": Sampler(_ANCESTRAL),
        "lms": Sampler(),
    }
)
# Names of glide-finetune and of web front ends.
_ALIASES = {
    "standard": "plms",
    "euler_a": "euler_ancestral",
    "dpm++": "dpmpp_2m",
    "dpmpp_2s_a": "dpmpp_2s_ancestral",
    "dpm_2_a": "dpm_2_ancestral",
}
TIMESTEP_SCHEDULES = ("leading", "linspace", "trailing")
SIGMA_SCHEDULES = ("karras", "exponential", "polyexponential")
SCHEDULES = (*TIMESTEP_SCHEDULES, *SIGMA_SCHEDULES)


def canonical_name(sampler: str) -> str:
    """The name in `SAMPLERS` of a sampler or of a short name for one.

    Raises:
        GlideError: an unknown name; the nearest ones are listed.
    """
    name = _ALIASES.get(sampler, sampler)
    if name not in SAMPLERS:
        raise GlideError(f"sampler {sampler!r} is unknown; {_meant(sampler)}")
    return name


def _meant(sampler: str) -> str:
    """Advice on an unknown name, perhaps that of k-diffusion (sample_heun), diffusers (DDIMScheduler) or a web page."""
    plain = re.sub("sample_|scheduler|discrete", "", sampler.lower().replace("++", "pp"))
    plain = re.sub("[^a-z0-9]+", "_", plain).strip("_")
    name, karras = plain.removesuffix("_karras"), plain.endswith("_karras")
    if name in (*SAMPLERS, *_ALIASES):
        return f"did you mean {name}" + (", with schedule karras?" if karras else "?")
    return nearest(name, [*SAMPLERS, *_ALIASES])


def sampler_options(sampler: str) -> tuple[str, ...]:
    """Names of the options that a sampler takes; raises `GlideError` as `canonical_name` does."""
    return SAMPLERS[canonical_name(sampler)].options


def default_schedule(sampler: str) -> str:
    """A sampler's default schedule; raises `GlideError` as `canonical_name` does."""
    return SAMPLERS[canonical_name(sampler)].schedule


@dataclass(frozen=True)
class SolverOptions(Options):
    """A sampler and its own options; None means the sampler's default."""

    sampler: Annotated[
        str,
        option(
            "ddim is a safe choice; dpmpp_2m and unipc need few steps; ddpm, euler_ancestral and dpmpp_2m_sde add"
            f" fresh noise, which corrects errors. All: {', '.join(SAMPLERS)}",
            metavar="NAME",
        ),
    ] = "ddim"
    eta: Annotated[
        float | None,
        option(
            "eta (stochasticity), 0 = deterministic: ddim (default 0), ancestral and sde samplers (default 1)",
            low=0,
            high=1,
        ),
    ] = None
    s_churn: Annotated[
        float | None, option("noise added before steps of euler, heun and dpm_2 (default 0)", low=0, most=1000)
    ] = None
    s_tmin: Annotated[float | None, option("lowest sigma at which s_churn acts", low=0, most=1e5)] = None
    s_tmax: Annotated[float | None, option("highest sigma at which s_churn acts", low=0, most=1e5)] = None
    s_noise: Annotated[float | None, option("standard deviation of added noise (default 1)", low=0, most=10)] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.given:
            if name not in sampler_options(self.sampler):
                takers = [sampler for sampler in SAMPLERS if name in sampler_options(sampler)]
                raise GlideError(f"sampler {self.sampler} has no {name}; {', '.join(takers)} do")
        canonical_name(self.sampler)

    @property
    def given(self) -> dict[str, float]:
        """The options that are not None."""
        values = {name: value for name, value in vars(self).items() if name != "sampler"}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class LevelOptions(Options):
    """The number of noise levels to visit, and their spacing.

    "leading" takes t = 0, s, 2s, ... with s = T // num_steps, and so leaves out the last timesteps, where a network can
    only guess x_0 and its guess tints the image; "linspace" spans 0 to T - 1 evenly; "trailing" counts down from
    T - 1 in steps of T / num_steps (Lin et al. 2023, arXiv:2305.08891); "karras", "exponential" and "polyexponential"
    space sigma from sigma_max to sigma_min.
    """

    num_steps: Annotated[int, option("number of sampling steps", low=1, metavar="N")] = 50
    schedule: Annotated[
        str,
        option(
            "spacing of timesteps, or schedule of sigmas (default: leading for ddim, ddpm, plms, prk, euler and"
            " euler_ancestral, karras for the others)",
            choices=("", *SCHEDULES),
        ),
    ] = ""
    timestep_respacing: Annotated[
        str, option('replaces both; glide-text2im writes it as "fast27", "ddim50", "10,10,3,2,2"', metavar="SPEC")
    ] = ""
    sigma_min: Annotated[
        float | None,
        option("lower end of karras, exponential, polyexponential (default: the model's)", above=0, most=1e3),
    ] = None
    sigma_max: Annotated[float | None, option("upper end (default: the model's, at most 80)", above=0, most=1e5)] = None
    rho: Annotated[
        float | None, option("power of karras (default 7) and polyexponential (default 1)", above=0, most=100)
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.schedule and not self.timestep_respacing:
            return  # the sampler's own: see `SampleOptions.levels_in_force`
        in_force = level_options(self.schedule, self.timestep_respacing)
        for name in ("sigma_min", "sigma_max", "rho"):
            if getattr(self, name) is not None and name not in in_force:
                chosen = f"timestep_respacing {self.timestep_respacing}" if self.timestep_respacing else self.schedule
                raise GlideError(f"{name} has no effect on {chosen}: leave it out, or choose schedule karras")


def level_options(schedule: str, timestep_respacing: str = "") -> tuple[str, ...]:
    """The options among sigma_min, sigma_max and rho that have an effect."""
    if timestep_respacing or schedule not in SIGMA_SCHEDULES:
        return ()
    return ("sigma_min", "sigma_max", *(("rho",) if schedule != "exponential" else ()))


@dataclass(frozen=True)
class GuidanceOptions(Options):
    """How closely, and by which method, the prompt is followed.

    "cfg" is classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598); "cfg++" takes a scale in [0, 1] and
    continues with the unconditional noise (Chung et al. 2024, arXiv:2406.08070); "apg" is adaptive projected guidance,
    which avoids the over-saturation of high scales (Sadat et al. 2024, arXiv:2410.02416). `guidance_rescale` is that of
    Lin et al. 2023 (arXiv:2305.08891), applied to what the network predicts, so it matters most for v;
    `guidance_interval` is that of Kynkaanniemi et al. 2024 (arXiv:2404.07724).
    """

    guidance_scale: Annotated[
        float,
        option(
            "how closely to follow the prompt (classifier-free guidance); 1 is without, twice as fast",
            low=0,
            most=30,
        ),
    ] = 3.0
    guidance: Annotated[
        Literal["cfg", "cfg++", "apg"],
        option(
            "apg saturates less at high scales; cfg++ takes a scale of 0 to 1, with ddim, euler and euler_ancestral"
        ),
    ] = "cfg"
    guidance_interval: Annotated[
        tuple[float, float],
        option("guide only at sigmas in (LOW, HIGH]; outside, a step costs half (default: always)", low=0),
    ] = (0.0, math.inf)
    guidance_rescale: Annotated[
        float, option("rescale to the conditional std, from 0 (off) to 1 (wholly)", low=0, high=1)
    ] = 0.0
    apg_eta: Annotated[
        float, option("apg: share to keep of the update's part parallel to the prediction", low=-1, high=1)
    ] = 0.0
    apg_momentum: Annotated[
        float, option("apg: momentum of the updates; negative pushes away from earlier ones", low=-1, high=1)
    ] = -0.5
    apg_norm_threshold: Annotated[float, option("apg: norm threshold (0: off)", low=0, most=1e4)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance == "cfg++" and not 0 <= self.guidance_scale <= 1:
            raise GlideError(f"with guidance cfg++, guidance_scale must be in [0, 1], not {self.guidance_scale}")
        if not 0 <= self.guidance_interval[0] < self.guidance_interval[1]:
            raise GlideError(f"guidance_interval must ascend from at least 0, not {self.guidance_interval}")


@dataclass(frozen=True)
class ThresholdingOptions(Options):
    """How x_0 is kept in the range of images.

    "static" clips to [-1, 1], as GLIDE does; "dynamic" clips each image at s, a quantile of its own |x_0| but at
    least 1, and divides by s (Saharia et al. 2022, arXiv:2205.11487, sec. 2.3).
    """

    thresholding: Annotated[
        Literal["static", "dynamic", "none"], option("how the predicted image is kept in range")
    ] = "static"
    dynamic_thresholding_ratio: Annotated[float, option("quantile for dynamic thresholding", above=0, high=1)] = 0.995
