"""Trains or fine-tunes: `python train.py --config configs/emoji_finetune.py [--config.train.batch_size=8 ...]`."""

import argparse
import signal
import sys
import time
from collections.abc import Sequence

from glide_jax.errors import GlideError, run_cli
from glide_jax.options import Parser

_EXAMPLES = """\
examples:
  python train.py --config configs/emoji_finetune.py
  python train.py --config configs/emoji_finetune.py --config.train.batch_size=8 --config.run_dir=runs/mine
  python train.py --config configs/glide_base.py --dry_run

docs/options.md lists all options of a config.
"""


def parser() -> argparse.ArgumentParser:
    """All options of `train.py` but those of the config."""
    parse = Parser(
        prog="train.py",
        unknown=_instead,
        description="Trains or fine-tunes a model as a file of configs/ says.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parse.add_argument
    add("--config", metavar="FILE", help="a file of configs/; change its options by --config.NAME=VALUE")
    add("--dry_run", action="store_true",
        help="show the model, its memory and the first batch, and compile one step; train nothing")  # fmt: skip
    add("--coordinator_address", metavar="HOST:PORT", help="address of process 0, if no launcher provides it")
    add("--num_processes", type=int, help="number of processes in the run")
    add("--process_id", type=int, help="the number of this one, from 0")
    return parse


def _instead(word: str) -> str:
    """What to write instead of a word that is none of these options."""
    from glide_jax.config import named_alike  # noqa: PLC0415 (takes seconds)

    name = word.lstrip("-").partition("=")[0]
    if name.endswith(".py"):
        return f"write --config {word}"
    if meant := named_alike(name):
        return f"write {' or '.join(f'--config.{path}=VALUE' for path in meant)}"
    if word.startswith("-") or "=" in word:
        return "options of a config are written --config.NAME=VALUE (docs/migration.md has glide-finetune's)"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, checks the whole configuration, joins the other processes, then trains.

    Raises:
        GlideError: impossible options, or what training cannot start from.
    """
    begun = time.monotonic()
    args, changes = parsed(sys.argv[1:] if argv is None else argv)
    if args.config is None:
        raise GlideError("no configuration given: add --config configs/emoji_finetune.py (or another file of configs/)")
    # They take seconds to import; mistakes in flags and --help need not wait for them.
    from glide_jax.config import from_ml_collections, override, read_config  # noqa: PLC0415
    from glide_jax.files import keep_compiled_programs  # noqa: PLC0415
    from glide_jax.parallel import ending_alone, initialize_from_environment  # noqa: PLC0415
    from glide_jax.train import Trainer, dry_run, ending_at_once  # noqa: PLC0415

    options = read_config(args.config)
    for key, text in changes:
        override(options, key, text)
    config = from_ml_collections(options)
    keep_compiled_programs()
    # Until all processes are there only Ctrl-C needs help: it would wait for the others, SIGTERM ends a process.
    with ending_at_once(lambda: "while waiting for the other processes", [signal.SIGINT]):
        initialize_from_environment(args.coordinator_address, args.num_processes, args.process_id)
    with ending_alone():
        return dry_run(config) if args.dry_run else Trainer(config, begun).run()


def parsed(words: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str | None]]]:
    """The flags of `parser`, and names and values of `--config.NAME=VALUE` or `--config.NAME VALUE`.

    What is on or off may be `--config.NAME`, whose value is None, or `--noconfig.NAME`.

    Raises:
        GlideError: anything else.
    """
    own: list[str] = []
    changes: list[tuple[str, str | None]] = []
    waiting = False  # whether the next word may be the value of the option before it
    for word in words:
        name, equals, value = word.partition("=")
        if name.startswith("--noconfig.") and not equals:
            changes.append((name.removeprefix("--noconfig."), "false"))
        elif name.startswith("--config."):
            changes.append((name.removeprefix("--config."), value if equals else None))
        elif waiting and not word.startswith("--"):
            changes[-1] = (changes[-1][0], word)
        else:
            own.append(word)
        waiting = name.startswith("--config.") and not equals
    return parser().parse_known_args(own)[0], changes


if __name__ == "__main__":
    run_cli(main)
