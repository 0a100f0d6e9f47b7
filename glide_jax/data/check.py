"""Inspects a data set before training: counts, sizes, captions, and a sheet of what the model will see."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from glide_jax import progress
from glide_jax.data.buckets import open_buckets
from glide_jax.data.config import DataConfig, FilterConfig
from glide_jax.data.examples import Shapes
from glide_jax.data.loader import open_data, open_indexed
from glide_jax.data.order import Order
from glide_jax.data.source import BadSample, Source, image_size
from glide_jax.errors import GlideError
from glide_jax.images import Pixels, grid, save_png
from glide_jax.options import Parser, add_arguments, build, given
from glide_jax.tokenizer import GlideTokenizer

_SURVEYED = 1000  # samples, chosen at random, for the statistics
_NAMED = 10  # unusable samples, for each reason
_TOKENIZED = 10_000  # characters shown of a caption
_SHEET = 64
_SHEET_TEXT_CTX = 128
_CELL = 96
_PERCENTILES = {"least": 0, "5%": 5, "median": 50, "95%": 95, "most": 100}
# Flags of the command line, as in --config.data.NAME.
_OPTIONS = (
    "source", "preset", "image_key", "caption_key", "captions_jsonl", "crop", "buckets", "trim_white",
    "revalidate",
)  # fmt: skip


@dataclass(slots=True)
class Survey:
    """Statistics of samples chosen at random.

    Attributes:
        widths, heights: of images, in pixels.
        characters, tokens: lengths of captions.
        faults: the names of unusable samples, by reason.
    """

    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    characters: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """The number of unusable samples."""
        return sum(map(len, self.faults.values()))

    @property
    def read(self) -> int:
        """The number of samples read, usable or not."""
        return len(self.widths) + self.bad


def survey(source: Source, seed: int = 0) -> Survey:
    """Reads up to 1000 samples of a source with the headers of their images."""
    found, count = Survey(), min(_SURVEYED, len(source))
    order, tokenizer = Order(len(source), seed), GlideTokenizer()
    for number in progress.tracked("reading samples", range(count), count, shown_from=_SURVEYED):
        try:
            sample = source[order[number]]
            width, height = image_size(sample.image)
        except BadSample as bad:
            found.faults.setdefault(str(bad), []).append(source.named(order[number]))
            continue
        found.widths.append(width)
        found.heights.append(height)
        found.characters += [len(caption) for caption in sample.captions]
        found.tokens += [len(tokenizer.encode(caption[:_TOKENIZED])) for caption in sample.captions]
    return found


def describe(source: Source, found: Survey, text_ctx: int) -> list[str]:
    """The report, line by line."""
    lines = [f"{len(source)} sample{'s' * (len(source) != 1)} with an image and a caption"]
    lines += [f"  left out, {reason}: {count}" for reason, count in source.counts.most_common()]
    lines.append(f"{found.read} of them read, {found.read - found.bad} are usable")
    for reason, names in sorted(found.faults.items(), key=lambda item: -len(item[1])):
        lines.append(f"  unusable, {reason}: {len(names)}")
        lines += [f"    {name}" for name in names[:_NAMED]]
        lines += [f"    and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    if not found.widths:
        return lines
    longer = np.mean(np.array(found.tokens) >= text_ctx)
    return [
        *lines,
        f"{'':24}" + "".join(f"{name:>9}" for name in _PERCENTILES),
        _percentiles("shorter side, pixels", np.minimum(found.widths, found.heights)),
        _percentiles("width / height", np.divide(found.widths, found.heights)),
        _percentiles("caption, characters", found.characters),
        _percentiles("caption, tokens", found.tokens),
        f"captions of {text_ctx} tokens or more, which are cut: {longer:.1%}",
    ]


def _percentiles(
    label: str, values: Sequence[int] | Float[np.ndarray, " samples"] | Int[np.ndarray, " samples"]
) -> str:
    numbers = np.percentile(values, list(_PERCENTILES.values()))
    return f"{label:24}" + "".join(f"{number:9.3g}" if number < 1000 else f"{number:9.0f}" for number in numbers)


def contact_sheet(
    config: DataConfig, image_size: int, low_res_size: int | None = None, seed: int = 0, count: int = _SHEET
) -> Pixels:
    """Some training examples as the model will see them, with captions; for an upsampler, next to their inputs."""
    size = 1 if len(config.sizes) > 1 else count  # a batch has only one of several sizes
    with open_data(
        replace(config, cache_mb=0), image_size=image_size, low_res_size=low_res_size, text_ctx=_SHEET_TEXT_CTX,
        batch_size=size, seed=seed,
    ) as stream:  # fmt: skip
        batches = list(islice(stream, count // size))
    images = [image for batch in batches for image in batch.arrays["image"]]
    if low_res_size is not None:
        factor = image_size // low_res_size
        low_res = [image for batch in batches for image in batch.arrays["low_res"]]
        enlarged = [image.repeat(factor, axis=0).repeat(factor, axis=1) for image in low_res]
        images = [np.concatenate(pair, axis=1) for pair in zip(enlarged, images, strict=True)]
    return grid(images, [caption for batch in batches for caption in batch.captions], cell=_CELL)


def check(
    config: DataConfig, sheet: Path, image_size: int, low_res_size: int | None, text_ctx: int
) -> tuple[list[str], bool]:
    """Checks a data set and, if any of its samples is usable, writes its contact sheet.

    Returns:
        The report, line by line, and whether training would go on: it stops at more unusable samples than `bad_share`.

    Raises:
        GlideError: sizes do not fit together, the data set cannot be opened, or the sheet cannot be written.
    """
    for size in config.sizes or (None,):
        Shapes(image_size, text_ctx, low_res_size, size)  # before minutes of reading
    if sheet.is_dir():
        raise GlideError(f"--sheet {sheet} is a folder: give a file, as {sheet / 'sheet.png'}")
    source = open_indexed(config)
    found = survey(source)
    lines = describe(source, found, text_ctx)
    if config.sizes and found.widths:
        buckets = open_buckets(source, config.sizes, seed=0, revalidate=config.revalidate)
        lines += [f"bucket {size}: {count} images, {count / len(source):.1%}" for size, count in buckets.counts.items()]
        lines += [f"in no bucket, {reason}: {count}" for reason, count in buckets.left_out.most_common()]
    if found.widths:
        count = min(_SHEET, len(source))
        usable = replace(config, revalidate=False, bad_share=1.0)
        save_png(sheet, contact_sheet(usable, image_size, low_res_size, count=count))
        lines.append(f"{count} random samples as the model sees them: {sheet}")
    goes_on = found.bad <= config.bad_share * found.read
    if not goes_on:
        share = f"{found.bad / found.read:.0%}"
        lines.append(f"training would stop: {share} are unusable, and --config.data.bad_share is {config.bad_share:g}")
    return lines, goes_on


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m glide_jax.data")
    command = parser.add_subparsers(required=True, metavar="check").add_parser(
        "check", help="check all shards, print counts and statistics, write a contact sheet"
    )
    command.add_argument("path", metavar="pattern", help="shards, folder or TFDS name, as in --config.data.path")
    add_arguments(command, DataConfig, only=_OPTIONS)
    add_arguments(command, FilterConfig, "filters.")
    command.add_argument("--image_size", type=int, default=64, help="side of the model's images (64)")
    command.add_argument("--low_res_size", type=int, help="side of an upsampler's input")
    command.add_argument("--text_ctx", type=int, default=128, help="the model's tokens a caption (128)")
    command.add_argument("--sheet", type=Path, default=Path("data_check.png"), help="contact sheet (data_check.png)")
    return parser


def main() -> int:
    """Runs the command line; returns 1 if training would stop."""
    args = _parser().parse_args()
    filters = build(FilterConfig, given(vars(args), FilterConfig, "filters."), "filters.")
    config = build(DataConfig, given(vars(args), DataConfig) | {"filters": filters, "uncond_p": 0.0}, "data.")
    lines, goes_on = check(config, args.sheet, args.image_size, args.low_res_size, args.text_ctx)
    print("\n".join(lines))
    return 0 if goes_on else 1
