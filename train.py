"""Trains or fine-tunes a model: `python train.py --config configs/emoji32.py [--config.train.batch_size=8 ...]`."""

import sys
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from glide_jax.config import from_ml_collections
from glide_jax.errors import GlideError, run_cli
from glide_jax.train import Trainer

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A page of configs/; change options by --config.NAME=VALUE."
)


def main() -> int:
    """Parses the flags, checks the whole configuration, then trains."""
    return Trainer(from_ml_collections(_parse(sys.argv))).run()


def _parse(argv: list[str]) -> Any:
    app.define_help_flags()
    try:
        rest = flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        raise GlideError(f"unknown configuration key {_line(error)}") from error
    except (flags.Error, TypeError, ValueError, OSError) as error:
        raise GlideError(_line(error)) from error
    if len(rest) > 1:
        raise GlideError(f"unexpected argument {rest[1]!r}; options are written --config.NAME=VALUE")
    if _CONFIG.value is None:
        raise GlideError("no configuration given: add --config configs/emoji32.py (or another page of configs/)")
    return _CONFIG.value


def _line(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else error).strip('"').split())


if __name__ == "__main__":
    run_cli(main)
