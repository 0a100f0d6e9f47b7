"""`python -m glide_jax.data check PATTERN`: what is in a data set, and what the model will see of it."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from glide_jax.data.check import check
from glide_jax.data.config import DataConfig
from glide_jax.data.filters import FilterConfig
from glide_jax.data.presets import PRESETS
from glide_jax.errors import run_cli


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m glide_jax.data")
    command = parser.add_subparsers(required=True, metavar="check").add_parser(
        "check", help="check all shards, print counts and statistics, write a contact sheet"
    )
    command.add_argument("pattern", help="shards, folder or TFDS name, as in --config.data.path")
    command.add_argument("--source", default="webdataset", choices=("webdataset", "folder", "tfds"))
    command.add_argument("--preset", default="simple", choices=tuple(PRESETS))
    command.add_argument("--image_key", default="", help="as in --config.data.image_key")
    command.add_argument("--caption_key", default="", help="as in --config.data.caption_key")
    command.add_argument("--captions_jsonl", default="", help="as in --config.data.captions_jsonl")
    command.add_argument("--crop", default="center", choices=("center", "random", "squash"))
    command.add_argument("--trim_white", action="store_true", help="cut white borders off first")
    for field in fields(FilterConfig):
        listed = field.default == ()
        command.add_argument(
            f"--filters.{field.name}",
            type=str if listed else type(field.default),
            nargs="+" if listed else None,
            metavar="WORD" if listed else "BOUND",
            help=f"as in --config.data.filters.{field.name}",
        )
    command.add_argument("--revalidate", action="store_true", help="check every shard anew")
    command.add_argument("--image_size", type=int, default=64, help="side of the model's pictures (64)")
    command.add_argument("--low_res_size", type=int, help="side of an upsampler's input")
    command.add_argument("--text_ctx", type=int, default=128, help="the model's tokens a caption (128)")
    command.add_argument("--sheet", type=Path, default=Path("data_check.png"), help="contact sheet (data_check.png)")
    return parser


def main() -> None:
    """Runs the command line."""
    options = vars(_parser().parse_args())
    shown = {name: options.pop(name) for name in ("sheet", "image_size", "low_res_size", "text_ctx")}
    bounds = {field.name: options.pop(f"filters.{field.name}") for field in fields(FilterConfig)}
    given: dict[str, Any] = {
        name: tuple(bound) if isinstance(bound, list) else bound for name, bound in bounds.items() if bound is not None
    }
    config = DataConfig(path=options.pop("pattern"), uncond_p=0.0, filters=FilterConfig(**given), **options)
    print("\n".join(check(config, **shown)))


if __name__ == "__main__":
    run_cli(main)
