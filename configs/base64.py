"""The earlier name of `configs/glide_base.py`, with its own run folder: old commands still resume."""

from functools import partial

from configs import glide_base

get_config = partial(glide_base.get_config, run_dir="runs/base64")
