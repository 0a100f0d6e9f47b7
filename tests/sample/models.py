"""Small models with weights that let text, time and pictures through."""

import jax

from glide_jax.diffusion.schedules import DiffusionConfig
from glide_jax.models import ClipImageConfig, ClipTextConfig, Glide, ModelConfig, NoisedClip
from glide_jax.sample import LoadedClip, LoadedModel, Stage

BASE = ModelConfig(
    image_size=16, num_channels=32, num_res_blocks=1, channel_mult=(1, 1), attention_resolutions=(8,),
    num_head_channels=16, dropout=0.0, text_ctx=8, xf_width=32, xf_layers=1, xf_heads=2,
)  # fmt: skip
CLIP_TEXT = ClipTextConfig(n_embd=16, n_head_text=2, n_head_state_text=8, n_xf_blocks_text=1)
CLIP_IMAGE = ClipImageConfig(image_size=16, n_embd=16, n_head_image=2, n_head_state_image=8, n_xf_blocks_image=1)


def random_weights(abstract, seed=1):
    """Weights without zero layers, so that text and time reach the output."""
    leaves, tree = jax.tree.flatten(abstract)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([0.1 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])


def random_model(config=BASE, dtype="float32", clip=None, mesh=None, **diffusion):
    model = Glide(config, dtype)
    stage = Stage(model, DiffusionConfig(**diffusion), None if clip is None else clip.model, mesh)
    return LoadedModel(stage, random_weights(model.abstract_params()))


def random_clip():
    model = NoisedClip(CLIP_TEXT, CLIP_IMAGE)
    return LoadedClip(model, random_weights(model.abstract_params()))
