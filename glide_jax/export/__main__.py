"""`python -m glide_jax.export`: see `glide_jax.export`."""

from collections.abc import Sequence
from pathlib import Path

from glide_jax.errors import run_cli


def main(argv: Sequence[str] | None = None) -> int:
    """Exports what the command line asks for.

    Raises:
        GlideError: there is no such model, options are invalid, or the folder cannot be written.
    """
    from glide_jax.compute import COMPUTE_TYPES, HELP  # noqa: PLC0415
    from glide_jax.export.write import PLATFORMS, write  # noqa: PLC0415
    from glide_jax.options import Parser  # noqa: PLC0415
    from glide_jax.sample import Pipeline, base_options, choose, metadata, upsampler_options  # noqa: PLC0415
    from glide_jax.sample.options import add_sampling_arguments  # noqa: PLC0415

    parse = Parser(
        prog="python -m glide_jax.export",
        description="Writes a sampler as a program (StableHLO) that needs no code of the model to run.",
    )
    add = parse.add_argument
    add("--checkpoint", metavar="DIR", help="base model or pipeline, as for sample.py (default: checkpoints/emoji)")
    add("--upsampler", metavar="DIR", help="upsampler behind it")
    add("--lora", action="append", default=[], metavar="PATH[:SCALE]", help="adapters for the base model")
    add("--dtype", default="float32", choices=COMPUTE_TYPES, help=f"{HELP} (default: %(default)s)")
    add("--platforms", nargs="+", default=PLATFORMS, choices=PLATFORMS, help="to run on (default: all three)")
    add("--output", type=Path, required=True, metavar="DIR", help="the new folder")
    add_sampling_arguments(parse)
    args = parse.parse_args(argv)
    base, upsampler, settings = choose(args.checkpoint, args.upsampler, args.lora)
    options, up_options = (of(vars(args), settings) for of in (base_options, upsampler_options))
    pipeline = Pipeline.from_checkpoints(base, upsampler, dtype=args.dtype, lora=args.lora)
    about = {"checkpoint": base, "upsampler": upsampler, "lora": args.lora, "dtype": args.dtype}
    about["options"] = metadata(options, up_options if upsampler else None)
    write(pipeline, args.output, options, up_options, platforms=args.platforms, about=about)
    size = sum(file.stat().st_size for file in args.output.iterdir())
    print(f"program of {size / 1e6:.1f} MB written to {args.output}")
    return 0


if __name__ == "__main__":
    run_cli(main)
