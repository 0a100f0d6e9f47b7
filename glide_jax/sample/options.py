"""How pictures are drawn."""

from dataclasses import dataclass

from glide_jax.diffusion.respacing import space_timesteps
from glide_jax.diffusion.solvers import SAMPLERS
from glide_jax.errors import GlideError


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """Options of one sampling stage.

    Attributes:
        sampler: one of `glide_jax.diffusion.solvers.SAMPLERS`.
        num_steps: timesteps 0, s, 2s, ... with s = T // num_steps ("leading" spacing); used where
            `timestep_respacing` is empty. They stop short of the last timesteps on purpose: at t = 999 of the cosine
            schedule no network can tell x_0, and the saturated guess would tint the picture.
        timestep_respacing: which timesteps to visit, as the reference writes it: "50", "10,10,3,2,2", "ddim50" or
            "fast27".
        guidance_scale: 1 follows the caption plainly, more follows it harder; classifier-free guidance is off at 1.
        eta: share of ancestral noise of "ddim", in [0, 1].
    """

    sampler: str = "ddim"
    num_steps: int = 50
    timestep_respacing: str = ""
    guidance_scale: float = 3.0
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise GlideError(f"num_steps must be at least 1, not {self.num_steps} (samplers: {', '.join(SAMPLERS)})")

    @property
    def respacing(self) -> str:
        """The respacing string that is in force."""
        return self.timestep_respacing or f"leading{self.num_steps}"

    def count_steps(self, diffusion_steps: int = 1000) -> int:
        """How many steps that is; raises `GlideError` where the respacing cannot be given."""
        return len(space_timesteps(diffusion_steps, self.respacing))
