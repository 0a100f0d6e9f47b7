"""Trains or fine-tunes: `python train.py --config configs/emoji_finetune.py [--config.train.batch_size=8 ...]`."""

import argparse
import signal
import time
from collections.abc import Sequence

from glide_jax.errors import GlideError, run_cli

_EXAMPLES = """\
examples:
  python train.py --config configs/emoji_finetune.py
  python train.py --config configs/emoji_finetune.py --config.train.batch_size=8 --config.run_dir=runs/mine
  python train.py --config configs/glide_base.py --dry_run

docs/options.md lists all options of a page.
"""


def parser() -> argparse.ArgumentParser:
    """All options of `train.py` but those of the page."""
    parse = argparse.ArgumentParser(
        prog="train.py",
        description="Trains or fine-tunes a model as a page of configs/ says.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parse.add_argument
    add("--config", metavar="FILE", help="a page of configs/; change its options by --config.NAME=VALUE")
    add("--dry_run", action="store_true",
        help="show the model, its memory and the first batch, and compile one step; train nothing")  # fmt: skip
    add("--coordinator_address", metavar="HOST:PORT", help="of process 0, where no launcher says it")
    add("--num_processes", type=int, help="how many processes train together")
    add("--process_id", type=int, help="the number of this one, from 0")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, checks the whole configuration, joins the other processes, then trains.

    Raises:
        GlideError: impossible options, or what training cannot start from.
    """
    begun = time.monotonic()
    args, rest = parser().parse_known_args(argv)
    changes = overrides(rest)
    if args.config is None:
        raise GlideError("no configuration given: add --config configs/emoji_finetune.py (or another page of configs/)")
    # They take seconds to import; mistakes in flags and --help need not wait for them.
    from glide_jax.config import from_ml_collections, override, read_page  # noqa: PLC0415
    from glide_jax.files import keep_compiled_programs  # noqa: PLC0415
    from glide_jax.parallel import initialize_from_environment  # noqa: PLC0415
    from glide_jax.train import Trainer, dry_run, ending_at_once  # noqa: PLC0415

    page = read_page(args.config)
    for key, text in changes:
        override(page, key, text)
    config = from_ml_collections(page)
    keep_compiled_programs()
    # Until all processes are there only Ctrl-C needs help: it would wait for the others, SIGTERM ends a process.
    with ending_at_once(lambda: "while waiting for the other processes", [signal.SIGINT]):
        initialize_from_environment(args.coordinator_address, args.num_processes, args.process_id)
    return dry_run(config) if args.dry_run else Trainer(config, begun).run()


def overrides(rest: Sequence[str]) -> list[tuple[str, str | None]]:
    """Names and values of `--config.NAME=VALUE` or `--config.NAME VALUE`; raises `GlideError` at anything else.

    What is on or off may be `--config.NAME`, whose value is None, or `--noconfig.NAME`.
    """
    found: list[tuple[str, str | None]] = []
    for i, word in enumerate(rest):
        name, equals, value = word.partition("=")
        if name.startswith("--noconfig.") and not equals:
            found.append((name.removeprefix("--noconfig."), "false"))
        elif name.startswith("--config."):
            found.append((name.removeprefix("--config."), value if equals else None))
        elif i and not word.startswith("--") and found and found[-1][1] is None:
            found[-1] = (found[-1][0], word)
        else:
            raise GlideError(f"unexpected argument {word!r}; options of a page are written --config.NAME=VALUE")
    return found


if __name__ == "__main__":
    run_cli(main)
