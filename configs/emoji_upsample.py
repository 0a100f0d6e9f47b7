"""The upsampler in `checkpoints/emoji/upsample`: 32 -> 128 px, from the 3-D animals and foods of the bundled images.

    python train.py --config configs/emoji_upsample.py:parts
    python train.py --config configs/emoji_upsample.py

First it trains on 64 px crops, then on whole images: for the same number of pixels, a batch of whole images has four
noise levels, one of crops sixteen. For other sizes change `image_size`, `low_res_size` and `attention_resolutions`.

Crops: 103 minutes on one CPU core shared with other work, validation loss 0.0464. Whole images: 5 minutes on two CPU
cores; the training loss (noise MSE) ends at 0.0048, the validation loss goes from 0.0288 to 0.0351 while the error of
upsampled held-out images falls from 11.2 to 10.7 grey levels (docs/emoji.md).
"""

from ml_collections import ConfigDict

from configs import emoji

STAGES = {
    "parts": {
        "run_dir": "runs/emoji_upsample_parts",
        "data.crop": "random",
        "model.image_size": 64,
        "model.low_res_size": 16,
        "model.attention_resolutions": (8,),
        "train.batch_size": 16,
        "train.max_steps": 1000,
        "train.optimizer.learning_rate": 1e-3,
        "train.optimizer.warmup_steps": 50,
        "train.optimizer.ema_decay": 0.995,
        "train.validate_every": 250,
    },
    "whole": {
        "run_dir": "runs/emoji_upsample",
        "init_from": "runs/emoji_upsample_parts",
        "data.crop": "center",
        "model.image_size": 128,
        "model.low_res_size": 32,
        "model.attention_resolutions": (16,),
        "train.batch_size": 4,
        "train.max_steps": 100,
        "train.optimizer.learning_rate": 3e-4,
        "train.optimizer.warmup_steps": 10,
        "train.optimizer.ema_decay": 0.99,
        "train.validate_every": 50,
    },
}


def get_config(stage: str = "whole") -> ConfigDict:
    """Blur and noise augment the low-resolution input, so that the upsampler tolerates a base model's errors."""
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}: use parts or whole")
    config = emoji.get_config()
    config.data.path = f"datasets/emoji/train-{emoji.GROUPS}-3d.tar"
    config.data.validation_path = f"datasets/emoji/val-{emoji.GROUPS}-3d.tar"
    config.data.captions_jsonl = config.data.caption_key = ""
    config.data.uncond_p = 0.0
    config.data.resize_ratio = 0.25
    config.data.hflip_p = 0.5
    config.model.super_res = True
    config.model.norm_groups = 32
    config.model.num_channels = 64
    config.model.channel_mult = (1, 1, 1, 1)
    config.model.xf_width = 64
    config.model.xf_layers = 1
    config.model.xf_heads = 2
    config.diffusion.prediction_type = "epsilon"
    config.diffusion.noise_schedule = "linear"
    config.train.optimizer.kind = "adamw"
    config.train.loss.velocity_cap = 5.0
    config.train.conditioning.low_res_blur = 0.6
    config.train.conditioning.low_res_noise = 0.1
    config.train.log_every = 25
    config.train.sample_every = 500
    config.train.save_every = 100
    config.train.preview.count = 8
    config.train.preview.options.timestep_respacing = "fast27"
    config.train.preview.options.guidance_scale = 1.0
    config.train.preview.options.temperature = 0.997
    config.train.preview.options.eta = 0.0
    config.train.preview.options.strength = 0.5
    config.update_from_flattened_dict(STAGES[stage])
    return config
