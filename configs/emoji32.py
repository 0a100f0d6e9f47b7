"""A small text-to-image model from scratch on the embedded pictures: a quarter of an hour on two CPU cores.

    python train.py --config configs/emoji32.py

It learns the 120 foods of the 3-D style; the whole set (`--config.data.path='datasets/emoji/train-*.tar'`) takes hours.
"""

from ml_collections import ConfigDict

from glide_jax.config import default_config


def get_config() -> ConfigDict:
    """After its 850 updates many colours follow the caption, shapes hardly (docs/emoji32.md has the figures)."""
    config = default_config()
    config.run_dir = "runs/emoji32"
    config.data.path = "datasets/emoji/train-food-3d.tar"
    config.data.validation_path = "datasets/emoji/val-food-3d.tar"
    config.data.uncond_p = 0.1

    config.model.image_size = 32
    # Not 32: with one channel a group, group norm would take every channel's mean, and with it the colours, away.
    config.model.num_channels = 64
    config.model.channel_mult = (1, 1, 2)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (16, 8)
    config.model.num_head_channels = 32
    config.model.resblock_updown = False
    config.model.dropout = 0.0
    config.model.text_ctx = 16
    config.model.xf_width = 64
    config.model.xf_layers = 1
    config.model.xf_heads = 2

    config.train.batch_size = 16
    config.train.max_steps = 850
    config.train.loss.kind = "hybrid"
    config.train.loss.velocity_cap = 100.0
    config.train.optimizer.learning_rate = 1.5e-3
    config.train.optimizer.lr_schedule = "cosine"
    config.train.optimizer.warmup_steps = 50
    config.train.optimizer.b2 = 0.99
    config.train.optimizer.ema_decay = 0.995
    config.train.log_every = 25
    config.train.sample_every = 400
    config.train.validate_every = 200
    config.train.save_every = 200
    config.train.preview.options.num_steps = 25
    config.train.preview.options.eta = 1.0
    return config
