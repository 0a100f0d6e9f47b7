"""Draws in the browser: `python app.py --checkpoint runs/emoji32`."""

from glide_jax.errors import run_cli
from glide_jax.ui.cli import main

if __name__ == "__main__":
    run_cli(main)
