"""The upsampler in `checkpoints/emoji/upsample`: 32 -> 128 px, from the 3-D animals and foods of the embedded pictures.

    python train.py --config configs/emoji_upsample.py:parts
    python train.py --config configs/emoji_upsample.py

First it learns from 64 px parts of the pictures: a batch of four whole ones has four noise levels in it, one of as many
pixels in parts has sixteen. Then it sees them whole. Other sizes are a matter of `image_size`, `low_res_size` and
`attention_resolutions`.
"""

from ml_collections import ConfigDict

from configs import emoji


def get_config(stage: str = "whole") -> ConfigDict:
    """Learns from pictures spoilt by blur and noise, so that it forgives what a base model gets wrong."""
    parts = {"parts": True, "whole": False}[stage]
    config = emoji.get_config()
    config.run_dir = "runs/emoji_upsample_parts" if parts else "runs/emoji_upsample"
    config.init_from = "" if parts else "runs/emoji_upsample_parts"
    config.data.path = f"datasets/emoji/train-{emoji.GROUPS}-3d.tar"
    config.data.validation_path = f"datasets/emoji/val-{emoji.GROUPS}-3d.tar"
    config.data.uncond_p = 0.0
    config.data.crop = "random" if parts else "center"
    config.data.resize_ratio = 0.25
    config.data.hflip_p = 0.5
    config.model.super_res = True
    config.model.image_size, config.model.low_res_size = (64, 16) if parts else (128, 32)
    config.model.channel_mult = (1, 1, 1, 1)
    config.model.attention_resolutions = (config.model.image_size // 8,)
    config.model.xf_width = 64
    config.model.xf_layers = 1
    config.model.xf_heads = 2
    config.diffusion.noise_schedule = "linear"
    config.train.batch_size = 16 if parts else 4
    config.train.max_steps = 1000 if parts else 100
    config.train.loss.velocity_cap = 5.0
    config.train.optimizer.learning_rate = 1e-3 if parts else 3e-4
    config.train.optimizer.warmup_steps = 50 if parts else 10
    config.train.optimizer.ema_decay = 0.995 if parts else 0.99
    config.train.conditioning.low_res_blur = 0.6
    config.train.conditioning.low_res_noise = 0.1
    config.train.log_every = 25
    config.train.sample_every = 500
    config.train.validate_every = 250 if parts else 50
    config.train.save_every = 100
    config.train.preview.count = 8
    config.train.preview.options.timestep_respacing = "fast27"
    config.train.preview.options.guidance_scale = 1.0
    config.train.preview.options.temperature = 0.997
    config.train.preview.options.eta = 0.0
    config.train.preview.options.strength = 0.5
    return config
