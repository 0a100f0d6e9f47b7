"""A text-to-image model of the embedded pictures, 32 px: all groups but `activities`, which is left to fine-tuning.

    python train.py --config configs/emoji.py

Many hours on two CPU cores, at some 20 pictures a second.
"""

from ml_collections import ConfigDict

from configs import emoji32

GROUPS = "{animals,food,travel,objects}"


def get_config() -> ConfigDict:
    """The model of `configs/emoji32.py` with a wider text transformer, at a rate that stays."""
    config = emoji32.get_config()
    config.run_dir = "runs/emoji"
    config.data.path = f"datasets/emoji/train-{GROUPS}-{{3d,flat,drawing}}.tar"
    config.data.validation_path = f"datasets/emoji/val-{GROUPS}-{{3d,flat,drawing}}.tar"
    config.model.xf_width = 128
    config.model.xf_layers = 2
    config.model.xf_heads = 4
    config.train.max_steps = 60_000
    config.train.optimizer.learning_rate = 1e-3
    config.train.optimizer.lr_schedule = "constant"
    config.train.optimizer.warmup_steps = 200
    config.train.optimizer.ema_decay = 0.999
    config.train.log_every = 100
    config.train.sample_every = 2000
    config.train.validate_every = 1000
    config.train.save_every = 500
    config.train.keep_checkpoints_every = 10_000
    return config
