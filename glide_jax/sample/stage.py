"""One model generating images, in one compiled program per (batch size, kind of solver)."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from glide_jax.diffusion.denoiser import Gradient, denoiser, paste, threshold
from glide_jax.diffusion.forward import Image, Level, q_sample
from glide_jax.diffusion.guidance import Guidance, guidance, guided, initial_memory
from glide_jax.diffusion.levels import NoiseLevels
from glide_jax.diffusion.options import SIGMA_SCHEDULES, GuidanceOptions, ThresholdingOptions
from glide_jax.diffusion.schedules import DiffusionConfig, Schedule
from glide_jax.diffusion.solvers import plan_steps
from glide_jax.diffusion.solvers.ddpm import ddim_inversion
from glide_jax.diffusion.solvers.solver import Carry, Plan, Row, Solver, Start, run_steps, start
from glide_jax.errors import GlideError
from glide_jax.models import Conditioning, EncodedText, Glide, NoisedClip, Params
from glide_jax.randomness import fold, normal_per_example, stream_key
from glide_jax.sample.conditioning import Arguments, ClipGuide, Conditioner, Inputs
from glide_jax.sample.options import SampleOptions
from glide_jax.sample.prompts import Prompt

# Progress is reported about this many times per batch; each report is one call of the compiled program.
_REPORTS = 10
# The most an image may contribute to the variance at the first level for sampling to start from noise alone.
_MOST_SIGNAL = 0.05
# Noise levels at which attention is read.
_LOOKS = 10

# Called with the number of evaluations just done and the current prediction of the images, in [-1, 1].
OnSteps = Callable[[int, Float[Array, "batch height width 3"]], object]


class Stage:
    """A model with its noise schedule; weights are passed to each call, so that training can draw previews.

    Args:
        model: the network.
        diffusion: the schedule it was trained on.
        clip: network whose gradient can guide it.
        mesh: devices to spread a batch over where it divides evenly; by default the first one.
    """

    def __init__(
        self, model: Glide, diffusion: DiffusionConfig, clip: NoisedClip | None = None, mesh: Mesh | None = None
    ) -> None:
        self.model, self.diffusion, self.clip = model, diffusion, clip
        self.schedule = Schedule.from_config(diffusion)
        self._conditioner = Conditioner(model, clip, mesh, diffusion.diffusion_steps)
        self._start = jax.jit(self._start_impl, static_argnums=(0, 1))
        self._run = jax.jit(self._run_impl, static_argnums=(0, 1), donate_argnums=3)
        self._look = jax.jit(self._look_impl)

    def levels(self, options: SampleOptions, *, from_image: bool = False) -> NoiseLevels | None:
        """The levels to visit; `from_image` leaves out those that `strength` skips, and gives None if none remain.

        Raises:
            GlideError: steps or sigmas that the schedule cannot provide, or a single step from noise alone at a level
                with almost no noise.
        """
        levels = NoiseLevels.from_options(self.schedule, options.levels_in_force)
        if not from_image or options.strength == 1:
            if len(levels) == 1 and levels.timesteps[0] == 0:
                raise GlideError(
                    f"{_chosen(options)} is a single step at t = 0, which cannot make an image from noise: take more"
                    " steps, or schedule trailing"
                )
            return levels
        count = max(math.floor(options.strength * len(levels) + 0.5), options.strength > 0)
        return levels.last(count) if count else None

    def doubt(self, options: SampleOptions, *, from_image: bool = False) -> str:
        """A warning if sampling starts from noise alone at a level where some of the image should show; else "".

        Raises:
            GlideError: as `levels` does.
        """
        levels = self.levels(options, from_image=from_image)
        if levels is None or (from_image and options.strength < 1) or levels.alphas_cumprod[0] <= _MOST_SIGNAL:
            return ""
        first, share = levels.timesteps[0], levels.alphas_cumprod[0]
        return (
            f"{_chosen(options)} starts from noise alone at t = {first:.0f}, where the model expects {share:.0%} of the"
            f" variance to come from an image: schedule trailing starts at t = {self.schedule.diffusion_steps - 1}"
        )

    def count_evaluations(self, options: SampleOptions, *, from_image: bool = False) -> int:
        """The number of model evaluations per image; raises `GlideError` as `levels` does."""
        levels = self.levels(options, from_image=from_image)
        return 0 if levels is None else len(plan_steps(options.solver, levels)[1])

    def check(self, prompts: Sequence[Prompt], options: SampleOptions, *, from_image: bool = False) -> None:
        """Raises `GlideError` if `sample` would refuse these; no weights are needed."""
        self.count_evaluations(options, from_image=from_image)
        if options.clip_guidance_scale:
            self._conditioner.check_clip(prompts)

    def sample(
        self,
        params: Params,
        inputs: Inputs,
        options: SampleOptions,
        *,
        seed: int = 0,
        clip_params: Params | None = None,
        on_steps: OnSteps | None = None,
    ) -> Float[Array, "batch height width 3"]:
        """Generates one image for each prompt, as one batch.

        Args:
            params: the model's weights.
            inputs: what to generate.
            options: sampler, levels, guidance.
            seed: in [0, 2^31).
            clip_params: weights of `clip`, needed if `options.clip_guidance_scale` is not 0.
            on_steps: called about ten times, with the number of evaluations just done and the last prediction of
                x_0, which stays on the device; what it raises ends the sampling.

        Returns:
            Images in [-1, 1].
        """
        image = self._start_image(inputs) if options.strength < 1 else None
        levels = self.levels(options, from_image=image is not None)
        if levels is None:
            assert image is not None
            return image
        arguments = self._conditioner.arguments(
            params, inputs, self._guidance(options.guidance), seed, options.clip_guidance_scale, clip_params
        )
        x_t = None if inputs.x_t is None else self._conditioner.put(inputs.x_t)
        solver, plan, carry = self._begun(arguments, options, levels, image, x_t, inputs.size)
        carry = self._loop(solver, options.thresholding, arguments, carry, plan, on_steps)
        return jnp.clip(carry.state[0], -1.0, 1.0)

    def generate(
        self,
        params: Params,
        text: EncodedText | None,
        against: EncodedText | None,
        options: SampleOptions,
        *,
        seed: Int[Array, ""],
        indices: Int[Array, " batch"],
        low_res: Float[Array, "batch low_height low_width 3"] | None = None,
    ) -> Float[Array, "batch height width 3"]:
        """`sample` as one function of arrays, to be traced or differentiated as a whole; the batch may be symbolic.

        Args:
            params: the model's weights.
            text: each row's own.
            against: a single row, what guidance steers away from.
            options: sampler, levels, guidance.
            seed, indices: they decide the noise.
            low_res: an upsampler's input.
        """
        if options.clip_guidance_scale:
            raise GlideError("clip_guidance_scale needs the noised CLIP, which is not part of the function")
        batch, how = indices.shape[0], self._guidance(options.guidance)
        if how is not None:
            rows = lambda x: jnp.broadcast_to(x, (batch, *x.shape[1:]))  # noqa: E731
            text = jax.tree.map(lambda own, other: jnp.concatenate([own, rows(other)]), text, against)
        twice = low_res if low_res is None or how is None else jnp.concatenate([low_res, low_res])
        image = None if options.strength == 1 or low_res is None else self._enlarged(low_res)
        levels = self.levels(options, from_image=image is not None)
        if levels is None:
            assert image is not None
            return image
        arguments = Arguments(params, Conditioning(text, twice), None, how, None, seed, indices)
        solver, plan, carry = self._begun(arguments, options, levels, image)
        rows = jax.tree.map(jnp.asarray, plan.on_device())
        # A loop of known length, unlike that of `_loop`, has a gradient.
        carry = self._run_impl(solver, options.thresholding, arguments, carry, rows, 0, len(plan))
        return jnp.clip(carry.state[0], -1.0, 1.0)

    def invert(
        self, params: Params, inputs: Inputs, options: SampleOptions, *, on_steps: OnSteps | None = None
    ) -> Float[Array, "batch height width 3"]:
        """The noise from which DDIM at eta 0 would generate `inputs.init_image`, for use as `Inputs.x_t`.

        The levels are those of `options`; its sampler and thresholding play no part.
        """
        solver, plan = ddim_inversion(NoiseLevels.from_options(self.schedule, options.levels_in_force))
        arguments = self._conditioner.arguments(params, inputs, self._guidance(options.guidance), 0)
        image = self._conditioner.put(inputs.init_image)
        carry = start(solver, image, initial_memory(arguments.guidance, image))
        return self._loop(solver, None, arguments, carry, plan, on_steps).state[0]

    def text_attention(
        self, params: Params, inputs: Inputs, *, seed: int = 0
    ) -> Float[Array, "batch height width ctx"]:
        """`Glide.text_attention` for `inputs.init_image` with its prompts, averaged over ten levels of fresh noise."""
        arguments = self._conditioner.arguments(params, inputs, None, seed)
        return self._look(arguments, self._conditioner.put(inputs.init_image))

    def _guidance(self, options: GuidanceOptions) -> Guidance | None:
        """None for a model without text, which has nothing to be guided by."""
        return guidance(options) if self.model.config.xf_width else None

    def _start_image(self, inputs: Inputs) -> Image | None:
        """The image to start from below strength 1; its known part is the known image."""
        put = self._conditioner.put
        if inputs.init_image is not None:
            image = put(inputs.init_image)
        elif inputs.low_res is not None:
            image = self._enlarged(put(inputs.low_res))
        else:
            return None
        if inputs.inpaint_image is None or inputs.inpaint_mask is None:
            return image
        return paste(image, put(inputs.inpaint_image), put(inputs.inpaint_mask))

    def _enlarged(self, low_res: Float[Array, "batch low_height low_width 3"]) -> Float[Array, "batch height width 3"]:
        batch, height, width, _ = low_res.shape
        config = self.model.config
        height, width = (edge * config.image_size // config.low_res_size for edge in (height, width))
        return jnp.clip(jax.image.resize(low_res, (batch, height, width, 3), "cubic"), -1.0, 1.0)

    def _begun(
        self,
        arguments: Arguments,
        options: SampleOptions,
        levels: NoiseLevels,
        image: Image | None,
        x_t: Image | None = None,
        size: tuple[int, int] | None = None,
    ) -> tuple[Solver, Plan, Carry]:
        solver, plan = plan_steps(options.solver, levels)
        scales = jax.tree.map(jnp.float32, (plan.start, options.temperature))
        shape = (*(size or 2 * (self.model.config.image_size,)), 3)
        return solver, plan, self._start(solver, shape, arguments, image, x_t, *scales)

    def _loop(
        self,
        solver: Solver,
        thresholding: ThresholdingOptions | None,
        arguments: Arguments,
        carry: Carry,
        plan: Plan,
        on_steps: OnSteps | None,
    ) -> Carry:
        rows = jax.tree.map(jnp.asarray, plan.on_device())
        size = -(-len(plan) // _REPORTS) if on_steps else len(plan)
        for first in range(0, len(plan), size):
            end = min(first + size, len(plan))
            carry = self._run(solver, thresholding, arguments, carry, rows, jnp.int32(first), jnp.int32(end))
            if on_steps:
                on_steps(end - first, jnp.clip(jax.block_until_ready(carry).x_0, -1.0, 1.0))
        return carry

    def _stream(self, seed: Int[Array, ""], name: str) -> PRNGKeyArray:
        """A base model and its upsampler use different noise."""
        return stream_key(seed, f"{name}/{self.model.config.image_size}")

    def _start_impl(
        self,
        solver: Solver,
        shape: tuple[int, int, int],
        arguments: Arguments,
        image: Image | None,
        x_t: Image | None,
        scales: Start,
        temperature: Float[Array, ""],
    ) -> Carry:
        noise = x_t
        if noise is None:
            key = self._stream(arguments.seed, "x_T")
            noise = temperature * normal_per_example(key, arguments.indices, shape)
        x = scales.noise_alone * noise if image is None else scales.image * image + scales.noise * noise
        return start(solver, x, initial_memory(arguments.guidance, x))

    def _run_impl(
        self,
        solver: Solver,
        thresholding: ThresholdingOptions | None,
        arguments: Arguments,
        carry: Carry,
        rows: Row,
        first: Int[Array, ""] | int,
        end: Int[Array, ""] | int,
    ) -> Carry:
        conditional = jax.tree.map(lambda x: x[: arguments.indices.shape[0]], arguments.conditioning)
        estimate = guided(
            arguments.guidance,
            partial(self._network, arguments.params, conditional),
            partial(self._network, arguments.params, arguments.conditioning),
            self.schedule.prediction_type,
        )

        def process(x_0: Image) -> Image:
            if thresholding is not None:
                x_0 = threshold(x_0, thresholding)
            return x_0 if arguments.known is None else paste(x_0, *arguments.known)

        key = self._stream(arguments.seed, "sampler")
        shape = carry.state[0].shape[1:]
        noise = lambda number: normal_per_example(fold(key, number), arguments.indices, shape)  # noqa: E731
        denoise = denoiser(estimate, process, self._gradient(arguments.clip))
        return run_steps(solver, denoise, noise, carry, rows, first, end)

    def _look_impl(self, arguments: Arguments, images: Image) -> Float[Array, "batch height width ctx"]:
        batch, steps = len(images), len(self.schedule.timesteps)
        table, key = Level.table(self.schedule), self._stream(arguments.seed, "attention")

        def look(number: Int[Array, ""]) -> Array:
            level = table.at(jnp.full(batch, (2 * number + 1) * steps // (2 * _LOOKS)))
            noise = normal_per_example(fold(key, number), arguments.indices, images.shape[1:])
            noisy = q_sample(images, noise, level)
            return self.model.text_attention(arguments.params, noisy, level.t, arguments.conditioning)

        return jax.lax.map(look, jnp.arange(_LOOKS)).mean(axis=0)

    def _gradient(self, guide: ClipGuide | None) -> Gradient | None:
        if guide is None:
            return None
        assert self.clip is not None
        clip = self.clip
        return lambda x, t: clip.guidance(guide.params, x, t, guide.text, guide.scale)

    def _network(
        self, params: Params, conditioning: Conditioning, x: Image, t: Float[Array, " rows"]
    ) -> Float[Array, "rows h w 6"]:
        return self.model(params, x, t, conditioning)


def _chosen(options: SampleOptions) -> str:
    """The options that decide the first level."""
    levels = options.levels_in_force
    if levels.timestep_respacing:
        return f"timestep_respacing {levels.timestep_respacing}"
    if levels.schedule in SIGMA_SCHEDULES and levels.sigma_max is not None:
        return f"sigma_max {levels.sigma_max:g}"
    return f"num_steps {levels.num_steps} with schedule {levels.schedule}"
