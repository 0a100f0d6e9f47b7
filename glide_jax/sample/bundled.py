"""The small models that come with the repository."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glide_jax.errors import GlideError

_FOLDER = Path("checkpoints/emoji")
# Flags. They are small and were trained for hours, not weeks: fresh noise at every step mends many mistakes of the base
# model, and the upsampler is not precise enough at high noise to keep an image's colours.
BUNDLED_SETTINGS: Mapping[str, Any] = {"sampler": "ddpm", "upsampler_strength": 0.5}


def bundled_models() -> tuple[str, str]:
    """The checkpoints of the base model and of the upsampler in `checkpoints/emoji`, for when none is given.

    Raises:
        GlideError: the working directory is not the repository's.
    """
    if not _FOLDER.is_dir():
        raise GlideError(f"no model: give --checkpoint DIR, or work in the repository's folder, which has {_FOLDER}")
    return str(_FOLDER / "base"), str(_FOLDER / "upsample")


def parse_with_bundled(parse: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses a command line; where it names no model, it means the bundled ones, by their settings if it gives none.

    The bundled upsampler has its strength behind other base models too.
    """
    args = parse.parse_args(argv)
    if args.checkpoint is None and args.upsampler is None:
        base, upsampler = bundled_models()
        parse.set_defaults(checkpoint=base, upsampler=upsampler, **BUNDLED_SETTINGS)
    elif args.upsampler is not None and Path(args.upsampler).resolve() == (_FOLDER / "upsample").resolve():
        parse.set_defaults(upsampler_strength=BUNDLED_SETTINGS["upsampler_strength"])
    return parse.parse_args(argv)
