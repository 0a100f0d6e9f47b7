"""Larger models of the bundled emoji images, for some minutes of a data-centre GPU: a 32 px base and its upsampler.

    python train.py --config configs/emoji_large.py --config.train.max_minutes=5
    python train.py --config configs/emoji_large.py:upsampler --config.train.max_minutes=2

They train until the time is over, with the cosine of the learning rate over it. Loss on a GPU: not measured yet.
"""

from ml_collections import ConfigDict

from configs import emoji

# All but activities, which `configs/emoji_finetune.py` shows the model afterwards.
GROUPS = "{animals,food,objects,travel}"


def get_config(variant: str = "base") -> ConfigDict:
    """64 px parts of images teach the upsampler, which enlarges four times, to 128 px."""
    if variant not in ("base", "upsampler"):
        raise ValueError(f"unknown variant {variant!r}: use base or upsampler")
    config = emoji.get_config()
    config.run_dir = "runs/emoji_large" if variant == "base" else f"runs/emoji_large_{variant}"
    for split in ("train", "val"):
        name = "path" if split == "train" else "validation_path"
        config.data[name] = f"datasets/emoji/{split}-{GROUPS}-{{3d,flat,drawing}}.tar"
    config.model.num_channels = 96
    config.model.channel_mult = (1, 2, 2)
    config.model.dropout = 0.1
    config.model.xf_width = 256
    config.model.xf_layers = 4
    config.train.dtype = "bfloat16"
    config.train.batch_size = 256
    config.train.max_steps = 100_000
    config.train.optimizer.warmup_steps = 300
    config.train.log_every = 100
    config.train.sample_every = 2000
    config.train.validate_every = 1000
    config.train.save_every = 1000
    if variant == "upsampler":
        config.data.uncond_p = 0.0
        config.data.crop = "random"
        config.data.resize_ratio = 0.25
        config.data.hflip_p = 0.5
        config.model.super_res = True
        config.model.image_size = 64
        config.model.low_res_size = 16
        config.model.num_channels = 64
        config.model.channel_mult = (1, 1, 1, 1)
        config.model.attention_resolutions = (8,)
        config.model.xf_width = 64
        config.model.xf_layers = 1
        config.model.xf_heads = 2
        config.diffusion.noise_schedule = "linear"
        config.train.conditioning.low_res_blur = 0.6
        config.train.conditioning.low_res_noise = 0.1
    return config
