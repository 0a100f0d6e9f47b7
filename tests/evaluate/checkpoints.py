"""Small random models as checkpoint folders."""

from dataclasses import asdict, replace

from glide_jax.checkpoint import save_weights
from glide_jax.diffusion.schedules import DiffusionConfig
from tests.sample.models import BASE, CLIP_IMAGE, CLIP_TEXT, random_clip, random_model

UPSAMPLER = replace(BASE, image_size=32, super_res=True, low_res_size=16)


def save_model(path, config=BASE, **diffusion):
    record = {"model": asdict(config), "diffusion": asdict(DiffusionConfig(**diffusion))}
    save_weights(path, random_model(config, **diffusion).params, record)
    return str(path)


def save_clip(path):
    clip = random_clip()
    save_weights(path / "text", {"text": clip.params["text"]}, {"clip_text": asdict(CLIP_TEXT)})
    save_weights(path / "image", {"image": clip.params["image"]}, {"clip_image": asdict(CLIP_IMAGE)})
    return [str(path / "text"), str(path / "image")]
