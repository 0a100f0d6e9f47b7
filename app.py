"""Generates images in the browser: `python app.py`."""

from glide_jax.errors import run_cli
from glide_jax.ui.app import main

if __name__ == "__main__":
    run_cli(main)
