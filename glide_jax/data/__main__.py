"""`python -m glide_jax.data check PATTERN`; see `glide_jax.data.check`."""

from glide_jax.data.check import main
from glide_jax.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
