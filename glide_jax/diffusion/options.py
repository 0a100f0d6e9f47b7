"""What a user may choose of a sampler, and how choices are checked; no arrays, so that it is quickly imported."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

from glide_jax.errors import GlideError


class Sampler(NamedTuple):
    """A sampler as its user sees it.

    Attributes:
        options: which of `SolverOptions` it takes.
        schedule: the schedule that suits it: timesteps for methods of first order and PNDM, sigmas for the others.
            On a known distribution the multistep ones come 3 to 8 times closer in 20 steps with "karras" than with
            "leading", DDIM 2 times closer with "leading" (docs/samplers.md).
        with_cfgpp: whether the noise that it goes on with need not be the one that made x_0.
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
        GlideError: unknown; the nearest names are listed.
    """
    name = _ALIASES.get(sampler, sampler)
    if name not in SAMPLERS:
        near = difflib.get_close_matches(sampler, [*SAMPLERS, *_ALIASES], n=3) or SAMPLERS
        raise GlideError(f"sampler {sampler!r} is unknown; did you mean {' or '.join(near)}?")
    return name


def sampler_options(sampler: str) -> tuple[str, ...]:
    """Names of the options that a sampler takes; raises `GlideError` as `canonical_name`."""
    return SAMPLERS[canonical_name(sampler)].options


def default_schedule(sampler: str) -> str:
    """The schedule that suits a sampler; raises `GlideError` as `canonical_name`."""
    return SAMPLERS[canonical_name(sampler)].schedule


@dataclass(frozen=True)
class SolverOptions:
    """A method and its own options; those left at None take the method's default.

    Attributes:
        sampler: one of `SAMPLERS`, or a usual short name ("euler_a", "dpm++", "standard").
        eta: share of ancestral noise, in [0, 1]: ddim (default 0), the ancestral and the SDE methods (default 1).
        s_churn, s_tmin, s_tmax: noise added before steps of euler, heun and dpm_2, and between which sigmas.
        s_noise: standard deviation of added noise, of all those methods but ddim.
    """

    sampler: str = "ddim"
    eta: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None

    def __post_init__(self) -> None:
        for name in self.given:
            if name not in sampler_options(self.sampler):
                takers = [sampler for sampler in SAMPLERS if name in sampler_options(sampler)]
                raise GlideError(f"sampler {self.sampler} has no {name}; {', '.join(takers)} do")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise GlideError(f"eta must be in [0, 1], not {self.eta}")
        for name in ("s_churn", "s_noise"):
            if (getattr(self, name) or 0) < 0:
                raise GlideError(f"{name} must be at least 0, not {getattr(self, name)}")

    @property
    def given(self) -> dict[str, float]:
        """The options that are not left at None."""
        values = {name: getattr(self, name) for name in ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise")}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class GridOptions:
    """How many levels, and which.

    Attributes:
        num_steps: number of levels.
        schedule: "leading" takes t = 0, s, 2s, ... with s = T // num_steps, and so stops short of the last timesteps,
            where no network can tell x_0 and its guess tints the picture; "linspace" spans 0 to T - 1 evenly;
            "trailing" counts down from T - 1 in steps of T / num_steps (Lin et al. 2023, arXiv:2305.08891);
            "karras", "exponential" and "polyexponential" space sigma from sigma_max to sigma_min. Empty is the choice
            of `spacing`.
        timestep_respacing: in place of both, as the reference writes it: "50", "10,10,3,2,2", "ddim50" or "fast27".
        sigma_min, sigma_max: ends of a sigma schedule; by default the model's own, with at most 80 at the top.
        rho: power of "karras" (default 7) and "polyexponential" (default 1).
    """

    num_steps: int = 50
    schedule: str = ""
    timestep_respacing: str = ""
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float | None = None

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise GlideError(f"num_steps must be at least 1, not {self.num_steps}")
        if self.schedule not in ("", *SCHEDULES):
            raise GlideError(f"schedule {self.schedule!r} is unknown (known: {', '.join(SCHEDULES)})")
        spaces_sigma = self.spacing in SIGMA_SCHEDULES and not self.timestep_respacing
        for name in ("sigma_min", "sigma_max", "rho"):
            value = getattr(self, name)
            if value is not None and (not spaces_sigma or (name == "rho" and self.spacing == "exponential")):
                chosen = f"timestep_respacing {self.timestep_respacing}" if self.timestep_respacing else self.spacing
                raise GlideError(f"{name} has no effect on {chosen}: leave it out, or choose schedule karras")
            if value is not None and value <= 0:
                raise GlideError(f"{name} must be positive, not {value}")

    @property
    def spacing(self) -> str:
        """The schedule in force."""
        return self.schedule or "leading"


@dataclass(frozen=True)
class GuidanceOptions:
    """How hard and in what way the caption is followed.

    Attributes:
        guidance_scale: 1 follows the caption plainly, more follows it harder; 0 not at all.
        guidance: "cfg" (Ho & Salimans 2022, arXiv:2207.12598); "cfg++", with a scale in [0, 1] and the unconditional
            noise to go on with (Chung et al. 2024, arXiv:2406.08070; ddim, euler and euler_ancestral only); or "apg",
            adaptive projected guidance, which does without the over-saturation of high scales (Sadat et al. 2024,
            arXiv:2410.02416).
        guidance_rescale: 0 to 1, how far the guided noise gets the spread of the conditional one (Lin et al. 2023,
            arXiv:2305.08891).
        guidance_interval: sigmas (low, high] between which to guide; outside, the caption is followed plainly and at
            half the cost (Kynkaanniemi et al. 2024, arXiv:2404.07724).
        apg_eta: share kept of the part of the update parallel to the prediction.
        apg_momentum: of the average of updates; negative pushes away from earlier ones.
        apg_norm_threshold: greatest length of an update, over a whole picture; 0 is none.
    """

    guidance_scale: float = 3.0
    guidance: Literal["cfg", "cfg++", "apg"] = "cfg"
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, math.inf)
    apg_eta: float = 0.0
    apg_momentum: float = -0.5
    apg_norm_threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.guidance not in ("cfg", "cfg++", "apg"):
            raise GlideError(f"guidance {self.guidance!r} is unknown: use cfg, cfg++ or apg")
        if self.guidance == "cfg++" and not 0 <= self.guidance_scale <= 1:
            raise GlideError(f"with guidance cfg++, guidance_scale must be in [0, 1], not {self.guidance_scale}")
        if not 0 <= self.guidance_rescale <= 1:
            raise GlideError(f"guidance_rescale must be in [0, 1], not {self.guidance_rescale}")
        if not 0 <= self.guidance_interval[0] < self.guidance_interval[1]:
            raise GlideError(f"guidance_interval must ascend from at least 0, not {self.guidance_interval}")
        if self.apg_norm_threshold < 0:
            raise GlideError(f"apg_norm_threshold must be at least 0, not {self.apg_norm_threshold}")


@dataclass(frozen=True)
class Thresholding:
    """How x_0 is kept within the range of pictures.

    Attributes:
        thresholding: "static" clips to [-1, 1], as GLIDE does; "dynamic" clips each picture at its own quantile s
            of |x_0|, at least 1, and divides by s (Saharia et al. 2022, arXiv:2205.11487, sec. 2.3); "none".
        dynamic_thresholding_ratio: that quantile.
    """

    thresholding: Literal["static", "dynamic", "none"] = "static"
    dynamic_thresholding_ratio: float = 0.995

    def __post_init__(self) -> None:
        if self.thresholding not in ("static", "dynamic", "none"):
            raise GlideError(f"thresholding {self.thresholding!r} is unknown: use static, dynamic or none")
        if not 0 < self.dynamic_thresholding_ratio <= 1:
            raise GlideError(f"dynamic_thresholding_ratio must be in (0, 1], not {self.dynamic_thresholding_ratio}")
