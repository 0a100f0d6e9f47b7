"""How pictures are drawn."""

from dataclasses import dataclass

from glide_jax.diffusion.options import (
    SAMPLERS,
    SCHEDULES,
    GridOptions,
    GuidanceOptions,
    SolverOptions,
    Thresholding,
    canonical_name,
    default_schedule,
    sampler_options,
)
from glide_jax.errors import GlideError

__all__ = ["SAMPLERS", "SCHEDULES", "UPSAMPLER_DEFAULTS", "SampleOptions", "sampler_options"]


@dataclass(frozen=True)
class SampleOptions(SolverOptions, GridOptions, GuidanceOptions, Thresholding):
    """Options of one sampling stage: which sampler, over which noise levels, with what guidance and thresholding.

    Attributes:
        strength: where a picture to start from is given, the share of the levels to go through, from 0 (the picture
            as it is) to 1 (pure noise: nothing of it is left) (Meng et al. 2021, arXiv:2108.01073). Below 1 an
            upsampler starts from the picture that it enlarges (Chung et al. 2021, arXiv:2112.05146).
        temperature: factor of the starting noise; GLIDE's upsampler uses 0.997 (torch: upsample_temp).
        clip_guidance_scale: strength of the noised CLIP's gradient, where one is loaded; 0 is off.
    """

    strength: float = 1.0
    temperature: float = 1.0
    clip_guidance_scale: float = 0.0

    def __post_init__(self) -> None:
        for part in (SolverOptions, GridOptions, GuidanceOptions, Thresholding):
            part.__post_init__(self)
        if self.guidance == "cfg++" and not SAMPLERS[canonical_name(self.sampler)].with_cfgpp:
            able = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.with_cfgpp)
            raise GlideError(f"guidance cfg++ works with {able}, not with {self.sampler}")
        if not 0 <= self.strength <= 1:
            raise GlideError(f"strength must be in [0, 1], not {self.strength}")
        if self.temperature <= 0:
            raise GlideError(f"temperature must be positive, not {self.temperature}")

    @property
    def spacing(self) -> str:
        """The schedule in force: the sampler's own where none is given."""
        return self.schedule or default_schedule(self.sampler)


UPSAMPLER_DEFAULTS = SampleOptions(timestep_respacing="fast27", guidance_scale=1.0, temperature=0.997)
