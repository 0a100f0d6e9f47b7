"""The published 64 px base model, fine-tuned on LAION-style WebDataset shards.

    python train.py --config configs/glide_base.py --config.data.path='~/laion/{00000..00331}.tar'

To start from the published weights, convert them once and add `--config.init_from=DIR`; without it the model trains
from scratch. Device: a GPU of 24 GB or more at this batch size; on a smaller one add `--config.train.remat=full` or
lower `--config.train.batch_size`. Time and loss on a GPU: not measured yet. Two CPU cores take 12.6 s a step of two
images in float32 (tests/benchmarks/RESULTS.md).
"""

from ml_collections import ConfigDict

from glide_jax.config import default_config

# Widths for a dry run of everything else on a CPU: `--config configs/glide_base.py:tiny`.
TINY = {
    "num_channels": 32,
    "num_res_blocks": 1,
    "num_head_channels": 16,
    "text_ctx": 32,
    "xf_width": 32,
    "xf_layers": 2,
    "xf_heads": 2,
}


def get_config(widths: str = "published", run_dir: str = "runs/glide_base") -> ConfigDict:
    """385,030,726 parameters; noise MSE only, as in glide-finetune."""
    config = default_config()
    config.run_dir = run_dir
    if widths == "tiny":
        config.model.update(TINY)
    elif widths != "published":
        raise ValueError(f"unknown widths {widths!r}: use published or tiny")
    config.data.filters.min_size = 256
    config.data.filters.min_aspect = 0.5
    config.data.filters.max_aspect = 2.0
    config.data.filters.nsfw_labels = ("NSFW", "LIKELY")
    config.data.crop = "random"
    config.data.uncond_p = 0.2
    config.train.batch_size = 32
    config.train.dtype = "bfloat16"
    config.train.max_steps = 100_000
    config.train.optimizer.learning_rate = 1e-4
    config.train.optimizer.weight_decay = 0.0
    config.train.optimizer.ema_decay = 0.9999
    return config
