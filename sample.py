"""Generates images from prompts: `python sample.py --prompt "a 3d render of a turtle"`."""

from glide_jax.errors import run_cli
from glide_jax.sample.cli import main

if __name__ == "__main__":
    run_cli(main)
