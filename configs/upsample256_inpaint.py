r"""The published 64 -> 256 px upsampler taught to complete pictures, on LAION-style WebDataset shards.

    python train.py --config configs/upsample256_inpaint.py --config.data.path='~/laion/{00000..00331}.tar' \
        --config.init_from=models/upsample

Starts from the plain upsampler, whose input layer gets new channels of zeros, or from the published `upsample-inpaint`.
"""

from ml_collections import ConfigDict

from configs import upsample256


def get_config(widths: str = "published") -> ConfigDict:
    """398,368,198 parameters; the small picture is whole, as the base model completes it first."""
    config = upsample256.get_config(widths)
    config.run_dir = "runs/upsample256_inpaint"
    config.model.inpaint = True
    config.train.max_steps = 20_000
    config.train.optimizer.learning_rate = 5e-5
    return config
