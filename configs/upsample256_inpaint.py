"""The earlier name of `configs/glide_upsample_inpaint.py`, with its own run folder: old commands still resume."""

from functools import partial

from configs import glide_upsample_inpaint

get_config = partial(glide_upsample_inpaint.get_config, run_dir="runs/upsample256_inpaint")
