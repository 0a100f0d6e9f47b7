"""The earlier name of `configs/glide_base_inpaint.py`, with its own run folder: old commands still resume."""

from functools import partial

from configs import glide_base_inpaint

get_config = partial(glide_base_inpaint.get_config, run_dir="runs/base64_inpaint")
