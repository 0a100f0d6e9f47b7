"""Distance of each sampler's samples from a known distribution, by noise schedule and number of steps.

    python tests/benchmarks/schedules.py

The data is a mixture of four narrow Gaussians on a line, whose best denoiser is known in closed form; the figure is the
mean distance between the sorted samples and the quantiles of the data (Wasserstein-1), for data in [-1, 1].
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from glide_jax.diffusion.denoiser import Estimate, denoiser, threshold
from glide_jax.diffusion.levels import NoiseLevels
from glide_jax.diffusion.options import LevelOptions, SolverOptions
from glide_jax.diffusion.schedules import DiffusionConfig, Schedule
from glide_jax.diffusion.solvers import plan_steps
from glide_jax.diffusion.solvers.solver import run_steps, start

MEANS, STD = np.array([-0.8, -0.2, 0.3, 0.9]), 0.05
COUNT = 4096
SAMPLERS = ("ddim", "euler_ancestral", "plms", "heun", "dpmpp_2m", "unipc", "dpmpp_2m_sde", "dpmpp_3m_sde")
SCHEDULES = ("leading", "trailing", "karras", "exponential")
STEPS = (10, 20, 50)


def mixture(x_t, level, memory):
    x, sigma = x_t / level.alpha, level.sigma / level.alpha
    spread = STD**2 + sigma**2
    weights = jax.nn.softmax(-jnp.square(x[..., None] - MEANS) / (2 * spread), axis=-1)
    centre = (weights * MEANS).sum(-1)
    x_0 = centre + STD**2 / spread * (x - centre)
    return Estimate(x_0, (x - x_0) / sigma, None, jnp.full_like(x, 0.5)), memory


def distance(process, sampler, schedule, steps, quantiles, z):
    grid = NoiseLevels.from_options(process, LevelOptions(num_steps=steps, schedule=schedule))
    solver, plan = plan_steps(SolverOptions(sampler), grid)
    key = jax.random.key(0)
    carry = jax.jit(
        lambda x: run_steps(
            solver, denoiser(mixture, threshold), lambda k: jax.random.normal(jax.random.fold_in(key, k), z.shape),
            start(solver, x), plan.on_device(), 0, len(plan),
        )
    )(plan.start.noise_alone * z)  # fmt: skip
    drawn = np.sort(np.clip(np.asarray(carry.state[0]).ravel(), -1, 1))
    return np.abs(drawn - quantiles).mean()


def main() -> None:
    shares = (np.arange(COUNT) + 0.5) / COUNT
    fine = np.linspace(-1.5, 1.5, 200_001)
    quantiles = np.interp(shares, np.mean([norm.cdf((fine - mean) / STD) for mean in MEANS], axis=0), fine)
    z = jnp.asarray(norm.ppf(shares), jnp.float32).reshape(COUNT, 1, 1, 1)
    for name in ("squaredcos_cap_v2", "linear"):
        process = Schedule.from_config(DiffusionConfig(noise_schedule=name))
        columns = [f"{schedule} {steps}" for schedule in SCHEDULES for steps in STEPS]
        print(f"\n{name}\n| sampler | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
        for sampler in SAMPLERS:
            cells = [
                f"{distance(process, sampler, schedule, steps, quantiles, z):.4f}"
                for schedule in SCHEDULES
                for steps in STEPS
            ]
            print(f"| {sampler} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
