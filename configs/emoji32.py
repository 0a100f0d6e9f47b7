"""A small GLIDE on the embedded emoji set."""

from ml_collections import ConfigDict

from glide_jax.config import default_config


def get_config() -> ConfigDict:
    """See the module."""
    config = default_config()
    config.run_dir = "runs/emoji32"
    config.data.path = "datasets/emoji/train-food-*.tar"
    config.data.validation_path = "datasets/emoji/val-*.tar"
    config.model.image_size = 32
    config.model.num_channels = 32
    config.model.num_res_blocks = 1
    config.model.channel_mult = (1, 2, 3)
    config.model.attention_resolutions = (16, 8)
    config.model.num_head_channels = 32
    config.model.dropout = 0.0
    config.model.text_ctx = 16
    config.model.xf_width = 64
    config.model.xf_layers = 2
    config.model.xf_heads = 2
    config.train.batch_size = 32
    config.train.max_steps = 1500
    config.train.loss.kind = "hybrid"
    config.train.optimizer.learning_rate = 1e-3
    config.train.optimizer.warmup_steps = 50
    config.train.optimizer.lr_schedule = "cosine"
    config.train.optimizer.ema_decay = 0.995
    return config
