"""One model drawing pictures: noise to images in one compiled program per (batch size, solver, chunk of steps)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from glide_jax.diffusion.denoiser import Network, denoiser
from glide_jax.diffusion.guidance import classifier_free
from glide_jax.diffusion.schedules import DiffusionConfig, Schedule
from glide_jax.diffusion.solvers import make_plan
from glide_jax.diffusion.solvers.solver import Solver, run_steps
from glide_jax.models import Conditioning, EncodedText, Glide, Params
from glide_jax.randomness import fold, normal_per_example, stream_key
from glide_jax.sample.options import SampleOptions
from glide_jax.tokenizer import GlideTokenizer

# Progress is reported about this many times a batch; each report is one call of the compiled chunk.
_REPORTS = 10

OnSteps = Callable[[int], object]


class Stage:
    """A model with its noise schedule; weights are passed to each call, so that training can draw previews.

    Args:
        model: the network.
        diffusion: the schedule it was trained on.
    """

    def __init__(self, model: Glide, diffusion: DiffusionConfig) -> None:
        self.model = model
        self.schedule = Schedule.from_config(diffusion)
        self._encode = jax.jit(model.encode_text)
        self._start = jax.jit(self._start_impl, static_argnums=0)
        self._chunk = jax.jit(self._chunk_impl, static_argnums=(0, 1), donate_argnums=4)

    def sample(
        self,
        params: Params,
        prompts: Sequence[str],
        indices: Sequence[int],
        options: SampleOptions,
        *,
        seed: int,
        low_res: Float[np.ndarray, "batch low_height low_width 3"] | None = None,
        on_steps: OnSteps | None = None,
    ) -> Float[Array, "batch height width 3"]:
        """Draws one picture for each prompt, as one batch.

        Args:
            params: the model's weights.
            prompts: one caption a picture.
            indices: number of each picture, which with the seed decides its noise: the same pair gives the same
                picture in any batch.
            options: sampler, steps, guidance.
            seed: in [0, 2^31).
            low_res: small pictures in [-1, 1], for an upsampler.
            on_steps: called with the number of steps just done.

        Returns:
            Pictures in [-1, 1].
        """
        solver, plan = make_plan(options.sampler, self.schedule, options.respacing, options.eta)
        guided = options.guidance_scale != 1.0 and self.model.config.xf_width > 0
        conditioning = Conditioning(self._text(params, prompts, guided), _pair(low_res, guided))
        picture_indices = jnp.asarray(indices, jnp.int32)
        carry = self._start(solver, jnp.int32(seed), picture_indices)
        size = -(-len(plan) // _REPORTS) if on_steps else len(plan)
        rows, active = plan.padded(size)
        scale = jnp.float32(options.guidance_scale)
        for first in range(0, len(active), size):
            chunk = slice(first, first + size)
            chunk_rows = jax.tree.map(lambda column: column[chunk], rows)  # noqa: B023
            carry = self._chunk(
                solver, guided, params, conditioning, carry, chunk_rows, jnp.int32(first), active[chunk], scale,
                jnp.int32(seed), picture_indices,
            )  # fmt: skip
            if on_steps:
                jax.block_until_ready(carry)
                on_steps(int(active[chunk].sum()))
        return jnp.clip(solver.finish(carry[0]), -1.0, 1.0)

    def _text(self, params: Params, prompts: Sequence[str], guided: bool) -> EncodedText | None:
        """Encodes each distinct prompt once; rows are the prompts, then as many empty ones if guided."""
        encoded = {prompt: self._encode_one(params, prompt) for prompt in {*prompts, *([""] if guided else [])}}
        rows = [encoded[prompt] for prompt in prompts] + ([encoded[""]] * len(prompts) if guided else [])
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)

    def _encode_one(self, params: Params, prompt: str) -> EncodedText | None:
        tokens, mask = GlideTokenizer().padded(prompt, self.model.config.text_ctx)
        return self._encode(params, tokens, mask)

    def _shape(self) -> tuple[int, int, int]:
        return (self.model.config.image_size, self.model.config.image_size, 3)

    def _start_impl(self, solver: Solver, seed: Int[Array, ""], indices: Int[Array, " batch"]) -> tuple[Any, Any]:
        return solver.init(normal_per_example(stream_key(seed, "x_T"), indices, self._shape())), None

    def _chunk_impl(
        self,
        solver: Solver,
        guided: bool,
        params: Params,
        conditioning: Conditioning,
        carry: tuple[Any, Any],
        rows: Any,
        first: Int[Array, ""],
        active: Bool[Array, " steps"],
        scale: Float[Array, ""],
        seed: Int[Array, ""],
        indices: Int[Array, " batch"],
    ) -> tuple[Any, Any]:
        network: Network = partial(self._network, params, conditioning)
        if guided:
            network = classifier_free(network, scale)
        key = stream_key(seed, "sampler")
        noise = lambda number: normal_per_example(fold(key, number), indices, self._shape())  # noqa: E731
        return run_steps(solver, denoiser(network), noise, carry, rows, first, active)

    def _network(
        self,
        params: Params,
        conditioning: Conditioning,
        x: Float[Array, "rows h w 3"],
        t: Float[Array, " rows"],
    ) -> Float[Array, "rows h w 6"]:
        return self.model(params, x, t, conditioning)


def _pair(pictures: np.ndarray | None, guided: bool) -> Array | None:
    if pictures is None:
        return None
    return jnp.concatenate([pictures, pictures]) if guided else jnp.asarray(pictures)
