"""The inputs of a batch of images, and what the model is given: encoded text, images, a CLIP signal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from glide_jax.diffusion.forward import Image
from glide_jax.diffusion.guidance import Guidance
from glide_jax.errors import GlideError
from glide_jax.models import Conditioning, EncodedText, Glide, NoisedClip, Params
from glide_jax.parallel import batch_sharding
from glide_jax.sample.prompts import Blend, Prompt, Text, parts
from glide_jax.tokenizer import ClipTokenizer, GlideTokenizer

Images = Float[np.ndarray, "batch _height _width _channels"]
_NO_CLIP = "clip_guidance_scale needs a noised CLIP: give its text and image checkpoints"


@dataclass(frozen=True)
class Inputs:
    """The inputs of one batch; all images are in [-1, 1], one for each prompt.

    Attributes:
        prompts: one for each image.
        indices: the number of each image, which decides its noise together with the seed: the same pair gives the same
            image in any batch.
        negative_prompt: what guidance steers away from: one for all images, or one for each.
        low_res: low-resolution inputs, for an upsampler.
        inpaint_image, inpaint_mask: images of which the part with mask 1 is kept; only an inpainting model sees them.
        init_image: images to start from, noised according to `SampleOptions.strength`; by default an upsampler starts
            from its enlarged `low_res`.
        x_t: noise of unit variance to start from, instead of the seed's.
        size: (height, width) of the images; None is the model's own.
    """

    prompts: Sequence[Prompt]
    indices: Sequence[int]
    negative_prompt: Prompt | Sequence[Prompt] = ""
    low_res: Images | None = None
    inpaint_image: Images | None = None
    inpaint_mask: Images | None = None
    init_image: Images | None = None
    x_t: Images | None = None
    size: tuple[int, int] | None = None


class ClipGuide(NamedTuple):
    """The noised CLIP's guidance signal, towards images that fit these texts."""

    params: Params
    text: Float[Array, "batch n_embd"]
    scale: Float[Array, ""]


class Arguments(NamedTuple):
    """The arguments of the compiled loop that stay the same from step to step.

    Attributes:
        params: of the model.
        conditioning: with guidance, of twice the batch: the prompts' rows, then the negative prompt's.
        known: the image to keep parts of, and the mask that is 1 there.
        guidance: None evaluates the model under the condition alone.
        clip: None is without.
        seed, indices: what decides noise.
    """

    params: Params
    conditioning: Conditioning
    known: tuple[Image, Image] | None
    guidance: Guidance | None
    clip: ClipGuide | None
    seed: Int[Array, ""]
    indices: Int[Array, " batch"]


class Conditioner:
    """Encodes prompts and places inputs on the devices.

    Args:
        model: whose inputs they are.
        clip: encodes prompts for its own guidance.
        mesh: devices to spread a batch over where it divides evenly; by default the first one.
        diffusion_steps: the timesteps that the model was trained on, which must be the CLIP's too.
    """

    def __init__(self, model: Glide, clip: NoisedClip | None, mesh: Mesh | None, diffusion_steps: int) -> None:
        self._model, self._clip, self._mesh, self._diffusion_steps = model, clip, mesh, diffusion_steps
        self._encode = jax.jit(model.encode_text)
        self._encode_clip = None if clip is None else jax.jit(clip.encode_text)

    def put(self, tree: PyTree) -> Any:
        """Arrays on the devices: the leading axis is split over the mesh if there is one that divides it."""
        if self._mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        sharding, devices = batch_sharding(self._mesh), self._mesh.size
        return jax.tree.map(lambda x: jax.device_put(x, sharding) if len(x) % devices == 0 else jnp.asarray(x), tree)

    def arguments(
        self,
        params: Params,
        inputs: Inputs,
        guidance: Guidance | None,
        seed: int,
        clip_scale: float = 0.0,
        clip_params: Params | None = None,
    ) -> Arguments:
        """The arguments of the compiled loop for one batch.

        Args:
            params: of the model.
            inputs: of the batch.
            guidance: if there is one, all inputs are given twice.
            seed: in [0, 2^31).
            clip_scale, clip_params: of the noised CLIP's guidance; scale 0 is without.

        Raises:
            GlideError: the noised CLIP is missing, or sees images of another size or knows other timesteps.
        """
        negative = inputs.negative_prompt
        negatives = [negative] * len(inputs.prompts) if isinstance(negative, Prompt) else list(negative)
        text = self._text(params, [*inputs.prompts, *([] if guidance is None else negatives)])
        given = (inputs.low_res, inputs.inpaint_image, inputs.inpaint_mask)
        images = [None if each is None else self.put(np.asarray(each, np.float32)) for each in given]
        known = None if images[1] is None or images[2] is None else (images[1], images[2])
        seen = images if self._model.config.inpaint else images[:1]
        twice = [each if each is None or guidance is None else jnp.concatenate([each, each]) for each in seen]
        return Arguments(
            params,
            Conditioning(self.put(text), *twice),
            known,
            guidance,
            self._clip_guide(inputs.prompts, clip_scale, clip_params),
            jnp.int32(seed),
            self.put(jnp.asarray(inputs.indices, jnp.int32)),
        )

    def _text(self, params: Params, prompts: Sequence[Prompt]) -> EncodedText | None:
        """One row for each prompt; every distinct text is encoded once."""
        distinct = dict.fromkeys(prompts)
        texts = dict.fromkeys(text for prompt in distinct for text, _ in parts(prompt))
        encoded = {text: self._encode_one(params, text) for text in texts}
        mixed = {prompt: _mixed([(encoded[text], weight) for text, weight in parts(prompt)]) for prompt in distinct}
        return jax.tree.map(lambda *rows: jnp.concatenate(rows), *(mixed[prompt] for prompt in prompts))

    def _encode_one(self, params: Params, text: Text) -> EncodedText | None:
        tokenizer, text_ctx = GlideTokenizer(), self._model.config.text_ctx
        tokens, mask = tokenizer.padded(text.text, text_ctx)
        if text.unseen:
            hidden = tokenizer.touched(text.text, text.unseen, text_ctx)
            tokens, mask = np.where(hidden, tokenizer.end_token, tokens), mask & ~hidden
        return self._encode(params, jnp.asarray(tokens), jnp.asarray(mask))

    def check_clip(self, prompts: Sequence[Prompt]) -> list[str]:
        """The prompts as the noised CLIP reads them; raises `GlideError` where it cannot guide to them."""
        plain = [prompt for prompt in prompts if not isinstance(prompt, Blend)]
        if len(plain) < len(prompts):
            raise GlideError("the noised CLIP reads plain prompts: leave out clip_guidance_scale, or weights")
        if self._clip is None or self._clip.image is None:
            raise GlideError(_NO_CLIP)
        if self._clip.image.image_size != self._model.config.image_size:
            raise GlideError(
                f"the noised CLIP sees images of {self._clip.image.image_size} pixels and cannot guide a model"
                f" of {self._model.config.image_size}"
            )
        if self._clip.image.n_timesteps != self._diffusion_steps:
            raise GlideError(
                f"the noised CLIP knows {self._clip.image.n_timesteps} timesteps and cannot guide a model of"
                f" {self._diffusion_steps}"
            )
        return plain

    def _clip_guide(self, prompts: Sequence[Prompt], scale: float, params: Params | None) -> ClipGuide | None:
        if scale == 0:
            return None
        plain = self.check_clip(prompts)
        if params is None or self._encode_clip is None:
            raise GlideError(_NO_CLIP)
        text = self._encode_clip(params, *ClipTokenizer().padded(plain))
        return ClipGuide({"image": params["image"]}, self.put(text), jnp.float32(scale))


def _mixed(weighted: Sequence[tuple[EncodedText | None, float]]) -> EncodedText | None:
    """The weighted sum of encoded texts, in float32; a text alone stays as it is."""
    encoded, weights = zip(*weighted, strict=True)
    if len(encoded) == 1:
        return encoded[0]
    return jax.tree.map(
        lambda *leaves: sum(w * x.astype(jnp.float32) for w, x in zip(weights, leaves, strict=True)).astype(
            leaves[0].dtype
        ),
        *encoded,
    )
