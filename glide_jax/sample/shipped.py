"""The small model that comes with the repository."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from glide_jax.errors import GlideError

_BASE = Path("checkpoints/emoji/base")
# It is small and was trained for hours, not weeks: fresh noise at every step mends many of its mistakes.
SHIPPED_SAMPLER = "ddpm"


def shipped_model() -> str:
    """The checkpoint of the base model in `checkpoints/emoji`, for when none is given.

    Raises:
        GlideError: the working directory is not the repository's.
    """
    if not _BASE.is_dir():
        raise GlideError(f"no model: give --checkpoint DIR, or work in the repository's folder, which has {_BASE}")
    return str(_BASE)


def parse_with_shipped(parse: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses a command line that may name no model: then the shipped one draws, by `ddpm` where it names no sampler."""
    args = parse.parse_args(argv)
    if args.checkpoint is None and args.upsampler is None:
        parse.set_defaults(checkpoint=shipped_model(), sampler=SHIPPED_SAMPLER)
        args = parse.parse_args(argv)
    return args
