"""One model drawing pictures: noise to images in one compiled program per (batch size, kind of solver)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from glide_jax.diffusion.denoiser import Denoiser, Gradient, Prediction, denoiser
from glide_jax.diffusion.forward import Image, Level
from glide_jax.diffusion.grid import Grid
from glide_jax.diffusion.guidance import Method, Strengths, guided, initial_memory, method_of, strengths_of
from glide_jax.diffusion.options import Thresholding
from glide_jax.diffusion.schedules import DiffusionConfig, Schedule
from glide_jax.diffusion.solvers import plan_steps
from glide_jax.diffusion.solvers.ddim import ddim_inversion
from glide_jax.diffusion.solvers.solver import Plan, Solver, run_steps
from glide_jax.diffusion.thresholding import paste, threshold
from glide_jax.errors import GlideError
from glide_jax.models import Conditioning, EncodedText, Glide, NoisedClip, Params
from glide_jax.parallel import batch_sharding
from glide_jax.randomness import fold, normal_per_example, stream_key
from glide_jax.sample.options import SampleOptions
from glide_jax.tokenizer import ClipTokenizer, GlideTokenizer

# Progress is reported about this many times a batch; each report is one call of the compiled program.
_REPORTS = 10

# Called with the number of evaluations just done, and the pictures as the model sees them now: x_0, in [-1, 1].
OnSteps = Callable[[int, Float[Array, "batch height width 3"]], object]
Pictures = Float[np.ndarray, "batch _height _width _channels"]


@dataclass(frozen=True)
class Inputs:
    """What one batch is drawn from; all pictures are in [-1, 1], one for each prompt.

    Attributes:
        prompts: one caption a picture.
        indices: number of each picture, which with the seed decides its noise: the same pair gives the same picture
            in any batch.
        negative_prompt: what guidance leads away from.
        low_res: small pictures, for an upsampler.
        inpaint_image, inpaint_mask: pictures of which the part with mask 1 is kept, for an inpainting model.
        init_image: pictures to start from, as far as `SampleOptions.strength` leaves them; an upsampler starts from
            its enlarged `low_res` where there is none.
        x_t: noise to start from, of unit variance, in place of drawn noise.
    """

    prompts: Sequence[str]
    indices: Sequence[int]
    negative_prompt: str = ""
    low_res: Pictures | None = None
    inpaint_image: Pictures | None = None
    inpaint_mask: Pictures | None = None
    init_image: Pictures | None = None
    x_t: Pictures | None = None


class ClipGuide(NamedTuple):
    """The noised CLIP's wish: pictures like these texts."""

    params: Params
    text: Float[Array, "batch n_embd"]
    scale: Float[Array, ""]


class _Request(NamedTuple):
    """All arguments of the compiled program that stay the same from step to step."""

    params: Params
    conditioning: Conditioning
    known: tuple[Image, Image] | None
    strengths: Strengths
    clip: ClipGuide | None
    seed: Int[Array, ""]
    indices: Int[Array, " batch"]


class Stage:
    """A model with its noise schedule; weights are passed to each call, so that training can draw previews.

    Args:
        model: the network.
        diffusion: the schedule it was trained on.
        clip: network whose gradient may guide it.
        mesh: devices to spread a batch over where it divides evenly; by default the first one.
    """

    def __init__(
        self, model: Glide, diffusion: DiffusionConfig, clip: NoisedClip | None = None, mesh: Mesh | None = None
    ) -> None:
        self.model, self.diffusion, self.clip, self.mesh = model, diffusion, clip, mesh
        self.schedule = Schedule.from_config(diffusion)
        self._encode = jax.jit(model.encode_text)
        self._encode_clip = None if clip is None else jax.jit(clip.encode_text)
        self._start = jax.jit(self._start_impl, static_argnums=(0, 1))
        self._run = jax.jit(self._run_impl, static_argnums=(0, 1, 2), donate_argnums=4)

    def grid(self, options: SampleOptions, *, from_picture: bool = False) -> Grid | None:
        """The levels to visit; `from_picture` leaves out those that `strength` skips, None if that is all.

        Raises:
            GlideError: steps or sigmas that the schedule cannot give.
        """
        grid = Grid.from_options(self.schedule, options)
        count = round(options.strength * len(grid)) if from_picture else len(grid)
        return grid.last(count) if count else None

    def count_evaluations(self, options: SampleOptions, *, from_picture: bool = False) -> int:
        """How often the model is evaluated for a picture; raises `GlideError` as `grid` does."""
        grid = self.grid(options, from_picture=from_picture)
        return 0 if grid is None else len(plan_steps(options, grid)[1])

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
        """Draws one picture for each prompt, as one batch.

        Args:
            params: the model's weights.
            inputs: what to draw.
            options: sampler, levels, guidance.
            seed: in [0, 2^31).
            clip_params: the weights of `clip`, needed if `options.clip_guidance_scale` is not 0.
            on_steps: called about ten times, with the number of evaluations just done and the last prediction of
                x_0, which stays on the device; what it raises ends the sampling.

        Returns:
            Pictures in [-1, 1].
        """
        picture = self._starting_picture(inputs) if options.strength < 1 else None
        grid = self.grid(options, from_picture=picture is not None)
        if grid is None:
            assert picture is not None
            return picture
        solver, plan = plan_steps(options, grid)
        method = self._method(options)
        request = self._request(params, inputs, options, seed, clip_params)
        x_t = None if inputs.x_t is None else self._put(inputs.x_t)
        scales = jax.tree.map(jnp.float32, (plan.start, options.temperature))
        carry = self._start(solver, method, request, picture, x_t, *scales)
        thresholding = Thresholding(options.thresholding, options.dynamic_thresholding_ratio)
        carry = self._loop((solver, method, thresholding), request, carry, plan, on_steps)
        return jnp.clip(solver.finish(carry[0]), -1.0, 1.0)

    def invert(
        self, params: Params, inputs: Inputs, options: SampleOptions, *, on_steps: OnSteps | None = None
    ) -> Float[Array, "batch height width 3"]:
        """The noise from which DDIM at eta 0 would draw `inputs.init_image`: to be given as `Inputs.x_t`.

        The levels are those of `options`; its sampler and thresholding have no part in it.
        """
        solver, plan = ddim_inversion(Grid.from_options(self.schedule, options))
        method = self._method(options)
        request = self._request(params, inputs, options, 0, None)
        picture = self._put(inputs.init_image)
        carry = (solver.init(picture), (initial_memory(method, picture), jnp.zeros_like(picture)))
        return solver.finish(self._loop((solver, method, None), request, carry, plan, on_steps)[0])

    def _starting_picture(self, inputs: Inputs) -> Image | None:
        """What sampling starts from below strength 1; the known part of it is as it is known."""
        if inputs.init_image is not None:
            picture = self._put(inputs.init_image)
        elif inputs.low_res is not None:
            shape = (len(inputs.low_res), *self._shape())
            picture = jnp.clip(jax.image.resize(self._put(inputs.low_res), shape, "cubic"), -1.0, 1.0)
        else:
            return None
        if inputs.inpaint_image is None or inputs.inpaint_mask is None:
            return picture
        return paste(picture, self._put(inputs.inpaint_image), self._put(inputs.inpaint_mask))

    def _method(self, options: SampleOptions) -> Method:
        """A model without text has nothing to be guided by."""
        return method_of(options) if self.model.config.xf_width else Method("none")

    def _loop(
        self,
        static: tuple[Solver, Method, Thresholding | None],
        request: _Request,
        carry: tuple[Any, Any],
        plan: Plan,
        on_steps: OnSteps | None,
    ) -> tuple[Any, Any]:
        rows = jax.tree.map(jnp.asarray, plan.on_device())
        size = -(-len(plan) // _REPORTS) if on_steps else len(plan)
        for first in range(0, len(plan), size):
            end = min(first + size, len(plan))
            carry = self._run(*static, request, carry, rows, jnp.int32(first), jnp.int32(end))
            if on_steps:
                on_steps(end - first, jnp.clip(jax.block_until_ready(carry)[1][1], -1.0, 1.0))
        return carry

    def _request(
        self, params: Params, inputs: Inputs, options: SampleOptions, seed: int, clip_params: Params | None
    ) -> _Request:
        paired = self._method(options).kind != "none"
        text = self._text(params, inputs.prompts, inputs.negative_prompt if paired else None)
        given = (inputs.low_res, inputs.inpaint_image, inputs.inpaint_mask)
        pictures = [None if given is None else self._put(np.asarray(given, np.float32)) for given in given]
        twice = [_twice(picture) if paired else picture for picture in pictures]
        known = None if pictures[1] is None or pictures[2] is None else (pictures[1], pictures[2])
        return _Request(
            params,
            Conditioning(self._put(text), *twice),
            known,
            strengths_of(options),
            self._clip_guide(inputs.prompts, options.clip_guidance_scale, clip_params),
            jnp.int32(seed),
            self._put(jnp.asarray(inputs.indices, jnp.int32)),
        )

    def _put(self, tree: PyTree) -> Any:
        """Splits the leading axis over the mesh, if there is one that divides it."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        sharding, devices = batch_sharding(self.mesh), self.mesh.size
        return jax.tree.map(lambda x: jax.device_put(x, sharding) if len(x) % devices == 0 else jnp.asarray(x), tree)

    def _text(self, params: Params, prompts: Sequence[str], negative: str | None) -> EncodedText | None:
        """Encodes each distinct prompt once; rows are the prompts, then as many negative ones if guided."""
        against = [] if negative is None else [negative]
        encoded = {prompt: self._encode_one(params, prompt) for prompt in {*prompts, *against}}
        rows = [encoded[prompt] for prompt in [*prompts, *against * len(prompts)]]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)

    def _encode_one(self, params: Params, prompt: str) -> EncodedText | None:
        tokens, mask = GlideTokenizer().padded(prompt, self.model.config.text_ctx)
        return self._encode(params, jnp.asarray(tokens), jnp.asarray(mask))

    def _clip_guide(self, prompts: Sequence[str], scale: float, params: Params | None) -> ClipGuide | None:
        if scale == 0:
            return None
        if self.clip is None or self.clip.image is None or self._encode_clip is None or params is None:
            raise GlideError("clip_guidance_scale needs a noised CLIP: give its text and image checkpoints")
        if self.clip.image.image_size != self.model.config.image_size:
            raise GlideError(
                f"the noised CLIP sees pictures of {self.clip.image.image_size} pixels and cannot guide a model"
                f" of {self.model.config.image_size}"
            )
        text = self._encode_clip(params, *ClipTokenizer().padded(list(prompts)))
        return ClipGuide({"image": params["image"]}, self._put(text), jnp.float32(scale))

    def _stream(self, seed: Int[Array, ""], name: str) -> PRNGKeyArray:
        """A base model and its upsampler draw different noise."""
        return stream_key(seed, f"{name}/{self.model.config.image_size}")

    def _shape(self) -> tuple[int, int, int]:
        return (self.model.config.image_size, self.model.config.image_size, 3)

    def _start_impl(
        self,
        solver: Solver,
        method: Method,
        request: _Request,
        picture: Image | None,
        x_t: Image | None,
        start: Any,
        temperature: Float[Array, ""],
    ) -> tuple[Any, Any]:
        noise = x_t
        if noise is None:
            noise = temperature * normal_per_example(self._stream(request.seed, "x_T"), request.indices, self._shape())
        x = start.noise_alone * noise if picture is None else start.picture * picture + start.noise * noise
        return solver.init(x), (initial_memory(method, x), jnp.zeros_like(x))

    def _run_impl(
        self,
        solver: Solver,
        method: Method,
        thresholding: Thresholding | None,
        request: _Request,
        carry: tuple[Any, Any],
        rows: Any,
        first: Int[Array, ""],
        end: Int[Array, ""],
    ) -> tuple[Any, Any]:
        under = request.conditioning
        batch = len(request.indices)
        conditional = jax.tree.map(lambda x: x[:batch], under)
        predict = guided(
            method,
            request.strengths,
            partial(self._network, request.params, conditional),
            partial(self._network, request.params, under),
        )

        def process(x_0: Image) -> Image:
            if thresholding is not None:
                x_0 = threshold(x_0, thresholding)
            return x_0 if request.known is None else paste(x_0, *request.known)

        key = self._stream(request.seed, "sampler")
        noise = lambda number: normal_per_example(fold(key, number), request.indices, self._shape())  # noqa: E731
        denoise = _remembering_x_0(denoiser(predict, process, self._gradient(request.clip)))
        return run_steps(solver, denoise, noise, carry, rows, first, end)

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


def _remembering_x_0(denoise: Denoiser) -> Denoiser:
    """The same, with its memory paired with the last x_0, for previews."""

    def remembering(x_t: Image, level: Level, memory: tuple[Any, Image]) -> tuple[Prediction, tuple[Any, Image]]:
        prediction, kept = denoise(x_t, level, memory[0])
        return prediction, (kept, prediction.x_0)

    return remembering


def _twice(pictures: Array | None) -> Array | None:
    return None if pictures is None else jnp.concatenate([pictures, pictures])
