r"""The published 64 px base model, fine-tuned for inpainting on LAION-style WebDataset shards.

    python train.py --config configs/glide_base_inpaint.py --config.data.path='~/laion/{00000..00331}.tar' \
        --config.init_from=models/base

Starts from the plain base model, whose input layer gets zero-initialised channels, or from the published
`base-inpaint`. Device: as `configs/glide_base.py`. Time and loss: not measured yet.
"""

from ml_collections import ConfigDict

from configs import glide_base


def get_config(widths: str = "published", run_dir: str = "runs/glide_base_inpaint") -> ConfigDict:
    """385,037,638 parameters; masks are rectangles, strokes, everything (plain text-to-image) and nothing."""
    config = glide_base.get_config(widths, run_dir)
    config.model.inpaint = True
    config.train.max_steps = 20_000
    config.train.optimizer.learning_rate = 5e-5
    return config
