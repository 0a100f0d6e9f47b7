r"""The published 64 px base model taught to complete pictures, on LAION-style WebDataset shards.

    python train.py --config configs/base64_inpaint.py --config.data.path='~/laion/{00000..00331}.tar' \
        --config.init_from=models/base

Starts from the plain base model, whose input layer gets new channels of zeros, or from the published `base-inpaint`.
"""

from ml_collections import ConfigDict

from configs import base64


def get_config(widths: str = "published") -> ConfigDict:
    """385,037,638 parameters; masks are rectangles, strokes, everything (plain text to image) and nothing."""
    config = base64.get_config(widths)
    config.run_dir = "runs/base64_inpaint"
    config.model.inpaint = True
    config.train.max_steps = 20_000
    config.train.optimizer.learning_rate = 5e-5
    return config
