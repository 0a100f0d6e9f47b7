"""The one family of models that tests compute with: 8 pixels, one level, every kind of layer.

A process makes each of them once: a second `random_model` of the same options shares the first one's compiled programs.
"""

from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import jax
import numpy as np

from glide_jax.checkpoint import save_weights
from glide_jax.diffusion.schedules import DiffusionConfig
from glide_jax.models import ClipImageConfig, ClipTextConfig, Glide, LoraConfig, ModelConfig, NoisedClip
from glide_jax.models.lora import GROUP, fingerprint
from glide_jax.sample import LoadedClip, LoadedModel, Stage

BASE = ModelConfig(
    image_size=8, num_channels=32, num_res_blocks=1, channel_mult=(1,), attention_resolutions=(8,),
    num_head_channels=16, dropout=0.0, text_ctx=8, xf_width=16, xf_layers=1, xf_heads=2,
)  # fmt: skip
UPSAMPLER = replace(BASE, image_size=16, super_res=True, low_res_size=8, attention_resolutions=())
INPAINT = replace(BASE, inpaint=True)
CLIP_TEXT = ClipTextConfig(n_embd=16, n_head_text=2, n_head_state_text=8, n_xf_blocks_text=1)
CLIP_IMAGE = ClipImageConfig(image_size=8, n_embd=16, n_head_image=2, n_head_state_image=8, n_xf_blocks_image=1)


def random_weights(abstract, seed=1, scale=0.1):
    """Weights without zero layers, so that text and time reach the output."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: scale * random.standard_normal(leaf.shape, np.float32), abstract)


@cache
def random_model(config=BASE, dtype="float32", clip=False, mesh=None, **diffusion):
    """A stage and its weights; with `clip`, one that `random_clip` may guide."""
    model = Glide(config, dtype)
    stage = Stage(model, DiffusionConfig(**diffusion), random_clip().model if clip else None, mesh)
    return LoadedModel(stage, jax.device_put(_weights_of(config)))


@cache
def _weights_of(config, seed=1):
    return random_weights(Glide(config).abstract_params(), seed)


@cache
def random_clip():
    """Both towers of a noised CLIP that sees what `BASE` generates."""
    model = NoisedClip(CLIP_TEXT, CLIP_IMAGE)
    return LoadedClip(model, jax.device_put(random_weights(model.abstract_params())))


def save_model(path, config=BASE, seed=1, **diffusion):
    """Writes `random_model(config)`, or another of other weights, as a checkpoint and returns its path."""
    record = {"model": asdict(config), "diffusion": asdict(DiffusionConfig(**diffusion))}
    save_weights(Path(path), _weights_of(config, seed), record)
    return str(path)


def save_lora(path, base, config=BASE, sampling=None, **options):
    """Writes adapters of what `save_model` wrote at `base`, as a run leaves them, and returns their path.

    `sampling` is how they say that images are to be sampled, if they do.
    """
    lora = LoraConfig(**{"rank": 1} | options)
    adapters = random_weights(Glide(config, lora=lora).abstract_params()[GROUP])
    entry = asdict(lora) | {"base": str(base), "base_sha256": fingerprint(_weights_of(config))}
    record = {"model": asdict(config), "diffusion": asdict(DiffusionConfig()), "lora": entry}
    record |= {"sampling": sampling} if sampling else {}
    save_weights(Path(path), {GROUP: adapters}, record)
    return str(path)


def save_clip(path):
    """Writes both towers of `random_clip` and returns their paths."""
    clip = random_clip()
    save_weights(path / "text", {"text": clip.params["text"]}, {"clip_text": asdict(CLIP_TEXT)})
    save_weights(path / "image", {"image": clip.params["image"]}, {"clip_image": asdict(CLIP_IMAGE)})
    return [str(path / "text"), str(path / "image")]
