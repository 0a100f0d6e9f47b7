"""The published 64 -> 256 px upsampler, fine-tuned on LAION-style WebDataset shards.

    python train.py --config configs/glide_upsample.py --config.data.path='~/laion/{00000..00331}.tar'

The low-resolution input is made from the same crop as the target. Device: a GPU of 24 GB or more; on a smaller one
lower `--config.train.batch_size`. Time and loss: not measured yet.
"""

from ml_collections import ConfigDict

from configs import glide_base


def get_config(widths: str = "published", run_dir: str = "runs/glide_upsample") -> ConfigDict:
    """398,361,286 parameters; captions are never dropped, because the upsampler is sampled without guidance."""
    config = glide_base.get_config(widths, run_dir)
    config.model.image_size = 256
    config.model.num_res_blocks = 1 if widths == "tiny" else 2
    config.model.super_res = True
    config.diffusion.noise_schedule = "linear"
    config.data.uncond_p = 0.0
    config.train.batch_size = 8
    config.train.remat = "dots"
    config.train.preview.options.timestep_respacing = "fast27"
    config.train.preview.options.guidance_scale = 1.0
    return config
