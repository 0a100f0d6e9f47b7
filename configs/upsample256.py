"""The published 64 -> 256 px upsampler, fine-tuned on LAION-style WebDataset shards.

    python train.py --config configs/upsample256.py --config.data.path='~/laion/{00000..00331}.tar'

The low-resolution input is made from the same crop as the target. Needs a GPU of 40 GB or more; on a smaller one
lower `--config.train.batch_size`.
"""

from ml_collections import ConfigDict

from configs import base64


def get_config(widths: str = "published") -> ConfigDict:
    """398,361,286 parameters; captions are never dropped, because upsamplers run without guidance."""
    config = base64.get_config(widths)
    config.run_dir = "runs/upsample256"
    config.model.image_size = 256
    config.model.num_res_blocks = 1 if widths == "tiny" else 2
    config.model.super_res = True
    config.diffusion.noise_schedule = "linear"
    config.data.uncond_p = 0.0
    config.train.batch_size = 8
    config.train.remat = "full"
    config.train.preview.options.timestep_respacing = "fast27"
    config.train.preview.options.guidance_scale = 1.0
    return config
