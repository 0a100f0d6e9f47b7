"""Generates, ranks and scores images of many prompts: `python evaluate.py --prompts "a cup|a hat"`."""

from glide_jax.errors import run_cli
from glide_jax.evaluate.cli import main

if __name__ == "__main__":
    run_cli(main)
