r"""The published 64 -> 256 px upsampler, fine-tuned for inpainting on LAION-style WebDataset shards.

    python train.py --config configs/glide_upsample_inpaint.py --config.data.path='~/laion/{00000..00331}.tar' \
        --config.init_from=models/upsample

Starts from the plain upsampler, whose input layer gets zero-initialised channels, or from the published
`upsample-inpaint`. Device: as `configs/glide_upsample.py`. Time and loss: not measured yet.
"""

from ml_collections import ConfigDict

from configs import glide_upsample


def get_config(widths: str = "published", run_dir: str = "runs/glide_upsample_inpaint") -> ConfigDict:
    """398,368,198 parameters; the low-resolution input is unmasked, because the base model inpaints it first."""
    config = glide_upsample.get_config(widths, run_dir)
    config.model.inpaint = True
    config.train.max_steps = 20_000
    config.train.optimizer.learning_rate = 5e-5
    return config
