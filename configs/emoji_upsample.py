"""A small upsampler, 32 -> 128 px, on the embedded 3-D pictures; 40,000 of them, at 2 a second on two CPU cores.

    python train.py --config configs/emoji_upsample.py

`python sample.py --checkpoint checkpoints/emoji/base --upsampler runs/emoji_upsample` puts it after the small base
model. Other sizes are a matter of `image_size` and `low_res_size`.
"""

from ml_collections import ConfigDict

from configs import emoji


def get_config() -> ConfigDict:
    """Learns from pictures spoilt by blur and noise, so that it forgives what a base model gets wrong."""
    config = emoji.get_config()
    config.run_dir = "runs/emoji_upsample"
    config.data.path = f"datasets/emoji/train-{emoji.GROUPS}-3d.tar"
    config.data.validation_path = f"datasets/emoji/val-{emoji.GROUPS}-3d.tar"
    config.data.uncond_p = 0.0
    config.model.image_size = 128
    config.model.super_res = True
    config.model.low_res_size = 32
    config.model.channel_mult = (1, 1, 1, 1)
    config.model.attention_resolutions = (16,)
    config.model.xf_width = 64
    config.model.xf_layers = 1
    config.model.xf_heads = 2
    config.diffusion.noise_schedule = "linear"
    config.train.batch_size = 4
    config.train.max_steps = 10_000
    config.train.loss.velocity_cap = 0.0
    config.train.optimizer.warmup_steps = 200
    config.train.optimizer.ema_decay = 0.999
    config.train.conditioning.low_res_blur = 0.6
    config.train.conditioning.low_res_noise = 0.1
    config.train.log_every = 100
    config.train.sample_every = 1000
    config.train.validate_every = 500
    config.train.save_every = 500
    config.train.preview.count = 8
    config.train.preview.options.timestep_respacing = "fast27"
    config.train.preview.options.guidance_scale = 1.0
    config.train.preview.options.temperature = 0.997
    config.train.preview.options.eta = 0.0
    return config
