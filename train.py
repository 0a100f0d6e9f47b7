"""Trains or fine-tunes: `python train.py --config configs/emoji_finetune.py [--config.train.batch_size=8 ...]`."""

import sys
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from glide_jax.errors import GlideError, run_cli

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A page of configs/; change options by --config.NAME=VALUE."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Show the model, its memory and the first batch, and compile one step; train nothing."
)
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0, where no launcher says it.")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes train together.")
_PROCESS = flags.DEFINE_integer("process_id", None, "The number of this one, from 0.")


def main() -> int:
    """Parses the flags, checks the whole configuration, joins the other processes, then trains."""
    page = _parse(sys.argv)
    # They take seconds to import; mistakes in flags and --help need not wait for them.
    from glide_jax.config import from_ml_collections  # noqa: PLC0415
    from glide_jax.parallel import initialize_from_environment  # noqa: PLC0415
    from glide_jax.train import Trainer, dry_run  # noqa: PLC0415

    config = from_ml_collections(page)
    initialize_from_environment(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    return dry_run(config) if _DRY_RUN.value else Trainer(config).run()


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
        raise GlideError("no configuration given: add --config configs/emoji_finetune.py (or another page of configs/)")
    return _CONFIG.value


def _line(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else error).strip('"').split())


if __name__ == "__main__":
    run_cli(main)
