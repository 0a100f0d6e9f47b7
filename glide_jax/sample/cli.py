"""The command line of `sample.py`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from glide_jax import progress
from glide_jax.diffusion.solvers import SAMPLERS
from glide_jax.errors import GlideError
from glide_jax.images import grid, save_png
from glide_jax.sample.options import SampleOptions
from glide_jax.sample.pipeline import Pipeline, Samples
from glide_jax.tokenizer import GlideTokenizer

_DEFAULTS = SampleOptions()


def parser() -> argparse.ArgumentParser:
    """All options of `sample.py`, with help that teaches."""
    parse = argparse.ArgumentParser(
        prog="sample.py",
        description="Draws pictures from captions with a trained or converted GLIDE model.",
        epilog='example: python sample.py --checkpoint runs/emoji32 --prompt "a 3d render of a turtle" --num_samples 4',
    )
    add = parse.add_argument
    add("--checkpoint", required=True, help="run folder, one of its checkpoints, or a converted model")
    add("--prompt", action="append", default=[], help="caption to draw; may be given several times")
    add("--prompt_file", type=Path, help="text file with one caption a line")
    add("--num_samples", type=int, default=1, help="pictures a caption (default: %(default)s)")
    add(
        "--output",
        type=Path,
        default=Path("out"),
        help="folder for the pictures and grid.png (default: %(default)s)",
    )
    add("--sampler", default=_DEFAULTS.sampler, help=f"{', '.join(SAMPLERS)} (default: %(default)s)")
    add(
        "--num_steps",
        type=int,
        default=_DEFAULTS.num_steps,
        help="evenly spaced steps (default: %(default)s)",
    )
    add("--timestep_respacing", default="", help='in place of num_steps: "fast27", "ddim50", "10,10,3,2,2"')
    add("--guidance_scale", type=float, default=_DEFAULTS.guidance_scale,
        help="how hard to follow the caption; 1 is plainly (default: %(default)s)")  # fmt: skip
    add("--eta", type=float, default=_DEFAULTS.eta, help="noise of ddim, 0 to 1 (default: %(default)s)")
    add("--seed", type=int, default=0, help="the same seed draws the same pictures (default: %(default)s)")
    add("--batch_size", type=int, default=16, help="pictures drawn at once (default: %(default)s)")
    add(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="compute type (default: %(default)s)",
    )
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Draws what the command line asks for and writes PNG files and a grid.

    Raises:
        GlideError: no prompts, unreadable prompt file, no such checkpoint, impossible options, unwritable folder.
    """
    args = parser().parse_args(argv)
    prompts = [*args.prompt, *_read_prompts(args.prompt_file)]
    if not prompts:
        raise GlideError('nothing to draw: give --prompt "a caption" or --prompt_file FILE')
    options = {
        name: getattr(args, name) for name in ("sampler", "num_steps", "timestep_respacing", "guidance_scale", "eta")
    }
    steps = SampleOptions(**options).count_steps()
    pipeline = Pipeline.from_checkpoints(args.checkpoint, dtype=args.dtype, batch_size=args.batch_size)
    _warn_of_cuts(prompts, pipeline.base.stage.model.config.text_ctx)
    total = len(prompts) * args.num_samples * steps
    with progress.bar("sampling", total) as bar:
        samples = pipeline(prompts, num_images=args.num_samples, seed=args.seed, on_steps=bar.update, **options)
    _write(
        samples,
        args.output,
        {name: str(value) for name, value in options.items()} | {"checkpoint": args.checkpoint},
    )
    print(f"{len(samples.images)} pictures and grid.png are in {args.output}")
    return 0


def _read_prompts(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise GlideError(f"cannot read --prompt_file {path}: {error}") from error


def _warn_of_cuts(prompts: Sequence[str], text_ctx: int) -> None:
    for prompt in prompts:
        if cut := GlideTokenizer().truncated(prompt, text_ctx):
            print(f"warning: the prompt is too long for this model; it does not see {cut!r}")


def _write(samples: Samples, output: Path, options: dict[str, str]) -> None:
    for image, prompt, index in zip(samples.images, samples.prompts, samples.indices, strict=True):
        metadata = {"prompt": prompt, "seed": str(samples.seed), "index": str(index), **options}
        save_png(output / f"{index:04d}.png", image, metadata)
    save_png(output / "grid.png", grid(list(samples.images), samples.prompts, cell=128))
