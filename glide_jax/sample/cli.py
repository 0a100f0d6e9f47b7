"""The command line of `sample.py`."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from glide_jax import progress, sample
from glide_jax.cache import keep_compiled_programs
from glide_jax.diffusion.options import SAMPLERS, SCHEDULES, canonical_name
from glide_jax.errors import GlideError
from glide_jax.files import lines, read_text
from glide_jax.images import grid, save_png
from glide_jax.sample.compare import compare
from glide_jax.sample.options import UPSAMPLER_DEFAULTS, SampleOptions
from glide_jax.sample.shipped import parse_with_shipped
from glide_jax.tokenizer import GlideTokenizer

_EXAMPLES = """\
examples:
  python sample.py --prompt "a 3d render of a turtle" --num_samples 4
  python sample.py --checkpoint glide/base --upsampler glide/upsample --prompt "a red bicycle" --sampler dpmpp_2m
  python sample.py --checkpoint glide/base --prompt "a hedgehog" --compare ddim,plms,dpmpp_2m --steps 10,20,50
  python sample.py --checkpoint glide/base --prompt "the same in snow" --init_image house.jpg --strength 0.6
  python sample.py --checkpoint glide/base-inpaint --prompt "a corgi" --image sofa.jpg --mask sofa-mask.png
  python sample.py --upsampler glide/upsample --prompt "a corgi" --image small.png
"""
_DEFAULTS = SampleOptions()
_UP_OPTIONS = {"upsampler_sampler": "sampler", "upsampler_num_steps": "num_steps", "upsampler_schedule": "schedule",
               "upsampler_guidance_scale": "guidance_scale", "upsampler_strength": "strength",
               "upsample_temp": "temperature"}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """All options of `sample.py`, with help that teaches."""
    parse = argparse.ArgumentParser(
        prog="sample.py",
        description="Draws pictures from captions with trained or converted GLIDE models.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_models_and_prompts(parse)
    add_sampler_options(parse)
    _add_pictures(parse)
    add_upsampler_options(parse)
    return parse


def _add_models_and_prompts(parse: argparse.ArgumentParser) -> None:
    add = parse.add_argument_group("models and prompts").add_argument
    add("--checkpoint", metavar="DIR",
        help="base model: a run folder, one of its checkpoints, or a converted model (default: the small model in "
        "checkpoints/emoji/base)")  # fmt: skip
    add("--upsampler", metavar="DIR",
        help="upsampler that enlarges what the base model draws (default: none, but checkpoints/emoji/upsample where "
        "--checkpoint is not given either)")  # fmt: skip
    add("--clip", nargs=2, metavar=("TEXT", "IMAGE"), help="both towers of the noised CLIP, to guide by")
    add("--prompt", action="append", default=[], help="caption to draw; may be given several times")
    add("--prompt_file", type=Path, metavar="FILE", help="text file with one caption a line")
    add("--negative_prompt", default="", help="what to stay away from (with guidance)")
    add("--num_samples", type=int, default=1, help="pictures a caption (default: %(default)s)")
    add("--seed", type=int, default=0, help="the same seed draws the same pictures (default: %(default)s)")
    add("--output", type=Path, default=Path("out"), metavar="DIR",
        help="folder for the pictures and grid.png (default: %(default)s)")  # fmt: skip
    add("--batch_size", type=int, default=16, help="pictures drawn at once (default: %(default)s)")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="compute type (default: %(default)s)")
    add("--compare", metavar="A,B,...", help="draw the first caption by each of these samplers into one labelled grid")
    add("--steps", metavar="N,M,...", default="10,20,50", help="with --compare: step counts (default: %(default)s)")


def add_sampler_options(parse: argparse.ArgumentParser) -> None:
    """Adds the flags of `SampleOptions`, to be read by `sample_options`."""
    _add_sampler(parse)
    _add_guidance(parse)


def _add_sampler(parse: argparse.ArgumentParser) -> None:
    add = parse.add_argument_group("sampler").add_argument
    add("--sampler", default=_DEFAULTS.sampler, metavar="NAME",
        help="ddim is a safe choice; dpmpp_2m and unipc need fewest steps; ddpm, euler_ancestral and dpmpp_2m_sde add "
        f"fresh noise, which mends mistakes. All: {', '.join(SAMPLERS)} (default: %(default)s)")  # fmt: skip
    add("--num_steps", type=int, default=_DEFAULTS.num_steps, help="noise levels to visit (default: %(default)s)")
    add("--schedule", default="", choices=SCHEDULES,
        help="which levels: timesteps in some spacing, or sigmas (default: leading for ddim, ddpm, plms, prk, euler "
        "and euler_ancestral, karras for the others)")  # fmt: skip
    add("--timestep_respacing", default="", metavar="SPEC",
        help='in place of both: "fast27", "ddim50", "10,10,3,2,2"')  # fmt: skip
    add("--sigma_min", type=float, help="lower end of karras, exponential, polyexponential")
    add("--sigma_max", type=float, help="upper end (default: the model's, at most 80)")
    add("--rho", type=float, help="power of karras (default 7) and polyexponential (default 1)")
    add("--eta", type=float, help="share of fresh noise, 0 to 1: ddim (default 0), ancestral and sde ones (default 1)")
    add("--s_churn", type=float, help="noise added before steps of euler, heun, dpm_2 (default: 0)")
    add("--s_tmin", type=float, help="lowest sigma at which s_churn acts")
    add("--s_tmax", type=float, help="highest sigma at which s_churn acts")
    add("--s_noise", type=float, help="standard deviation of added noise (default: 1)")


def _add_guidance(parse: argparse.ArgumentParser) -> None:
    add = parse.add_argument_group("guidance").add_argument
    add("--guidance_scale", type=float, default=_DEFAULTS.guidance_scale,
        help="how hard to follow the caption; 1 is plainly and takes half the time (default: %(default)s)")  # fmt: skip
    add("--guidance", default=_DEFAULTS.guidance, choices=("cfg", "cfg++", "apg"),
        help="apg saturates less at high scales; cfg++ takes a scale of 0 to 1 (default: %(default)s)")  # fmt: skip
    add("--guidance_interval", nargs=2, type=float, default=(0.0, math.inf), metavar=("LOW", "HIGH"),
        help="guide only between these sigmas (default: always)")  # fmt: skip
    add("--guidance_rescale", type=float, default=0.0,
        help="0 to 1: take back the contrast that guidance adds (default: %(default)s)")  # fmt: skip
    add("--apg_eta", type=float, default=_DEFAULTS.apg_eta, help="apg: share of the parallel part (%(default)s)")
    add("--apg_momentum", type=float, default=_DEFAULTS.apg_momentum, help="apg: momentum (%(default)s)")
    add("--apg_norm_threshold", type=float, default=0.0, help="apg: greatest length of an update (0: any)")
    add("--thresholding", default=_DEFAULTS.thresholding, choices=("static", "dynamic", "none"),
        help="how the predicted picture is kept in range (default: %(default)s)")  # fmt: skip
    add("--dynamic_thresholding_ratio", type=float, default=_DEFAULTS.dynamic_thresholding_ratio,
        help="quantile for dynamic thresholding (default: %(default)s)")  # fmt: skip
    add("--clip_guidance_scale", type=float, default=0.0, help="strength of --clip (default: %(default)s)")


def _add_pictures(parse: argparse.ArgumentParser) -> None:
    add = parse.add_argument_group("from pictures").add_argument
    add("--init_image", metavar="FILE", help="picture to start from, of any size (image to image)")
    add("--strength", type=float, default=0.6, help="how far to leave it, 0 to 1 (default: %(default)s)")
    add("--image", metavar="FILE", help="picture to complete by an inpainting model, or to enlarge")
    add("--mask", metavar="FILE", help="white (255, or 1) where that image is kept, black (0) where it is drawn anew")


def add_upsampler_options(parse: argparse.ArgumentParser) -> None:
    """Adds the flags of the second stage, to be read by `upsampler_options`."""
    add = parse.add_argument_group("upsampler").add_argument
    add("--upsampler_sampler", help="as --sampler (default: ddim)")
    add("--upsampler_num_steps", type=int, help="as --num_steps (default: GLIDE's 27 uneven steps, fast27)")
    add("--upsampler_schedule", choices=SCHEDULES, help="as --schedule")
    add("--upsampler_guidance_scale", type=float, help="as --guidance_scale (default: 1)")
    add("--upsampler_strength", type=float,
        help="below 1: start from the small picture, enlarged and noised, and go through this share of the steps; "
        "quicker, keeps its colours (default: 1, from noise; for checkpoints/emoji/upsample 0.5)")  # fmt: skip
    add("--upsample_temp", type=float, help=f"factor of its starting noise (default: {UPSAMPLER_DEFAULTS.temperature})")


def main(argv: Sequence[str] | None = None) -> int:
    """Draws what the command line asks for and writes PNG files and a grid.

    Raises:
        GlideError: no prompts, unreadable files, no such checkpoint, impossible options, unwritable folder.
    """
    args = parse_with_shipped(parser(), argv)
    keep_compiled_programs()
    prompts = [*args.prompt, *read_prompts(args.prompt_file)]
    if not prompts and args.checkpoint is not None:
        raise GlideError('nothing to draw: give --prompt "a caption" or --prompt_file FILE')
    options = sample_options(args)
    if args.init_image is None:
        del options["strength"]
    samplers, steps = _comparison(args)
    pipeline = sample.Pipeline.from_checkpoints(
        args.checkpoint, args.upsampler, clip_text=args.clip and args.clip[0], clip_image=args.clip and args.clip[1],
        dtype=args.dtype, batch_size=args.batch_size,
    )  # fmt: skip
    warn_of_cuts(prompts, pipeline)
    common = {"seed": args.seed, "upsampler_options": upsampler_options(args)}
    if args.checkpoint is None:
        samples = _enlarge(pipeline, args, prompts)
        _write(samples, args.output, upsampler_metadata(args))
        return 0
    pictures = {name: getattr(args, name) for name in ("negative_prompt", "init_image", "image", "mask")}
    if samplers:
        with progress.bar("comparing", len(samplers) * len(steps)) as bar:
            sheet, lines = compare(pipeline, prompts[0], samplers, steps, bar, **pictures, **common, **options)
        save_png(args.output / "comparison.png", sheet)
        print("\n".join([*lines, f"comparison.png is in {args.output}"]))
        return 0
    count = len(prompts) * args.num_samples
    total = pipeline.count_evaluations(
        count, options, common["upsampler_options"], from_picture=args.init_image is not None
    )
    with progress.bar("sampling", total) as bar:
        on_steps = lambda done, _: bar.update(done)  # noqa: E731
        samples = pipeline(prompts, num_images=args.num_samples, on_steps=on_steps, **pictures, **common, **options)
    _write(samples, args.output, picture_metadata(args, options))
    return 0


def _comparison(args: argparse.Namespace) -> tuple[list[str], list[int]]:
    if args.compare is None:
        return [], []
    try:
        steps = [int(part) for part in args.steps.split(",")]
    except ValueError:
        raise GlideError(f"--steps {args.steps!r} must be numbers with commas between, as 10,20,50") from None
    if args.timestep_respacing:
        raise GlideError("--compare varies --num_steps: leave out --timestep_respacing")
    samplers = args.compare.split(",")
    for sampler in samplers:
        canonical_name(sampler)
    return samplers, steps


def _enlarge(pipeline: "sample.Pipeline", args: argparse.Namespace, prompts: list[str]) -> "sample.Samples":
    if args.image is None:
        raise GlideError("an upsampler alone enlarges a picture: give --image FILE, or a base model with --checkpoint")
    options = upsampler_options(args)
    with progress.bar("enlarging", pipeline.count_evaluations(1, {}, options)) as bar:
        on_steps = lambda done, _: bar.update(done)  # noqa: E731
        return pipeline.upsample([args.image], prompts or "", seed=args.seed, on_steps=on_steps, **options)


def sample_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `args` says of `SampleOptions`; raises `GlideError` where it is impossible."""
    options = {field.name: getattr(args, field.name) for field in fields(SampleOptions) if hasattr(args, field.name)}
    options["guidance_interval"] = tuple(map(float, options["guidance_interval"]))
    SampleOptions(**options)
    return options


def upsampler_options(args: argparse.Namespace) -> dict[str, Any]:
    """What was given of the upsampler's `SampleOptions`, to go over its defaults."""
    given = {name: getattr(args, flag) for flag, name in _UP_OPTIONS.items()}
    return {name: value for name, value in given.items() if value is not None}


def read_prompts(path: Path | None) -> list[str]:
    """The captions of a text file, one a line, empty lines left out; raises `GlideError` if it is unreadable."""
    return [] if path is None else lines(read_text(path, "--prompt_file"))


def warn_of_cuts(prompts: Sequence[str], pipeline: "sample.Pipeline") -> None:
    """Says which ends of prompts the model does not see, if any."""
    for prompt in prompts:
        if cut := unseen_end(prompt, pipeline):
            print(f"warning: the prompt is too long for this model; it does not see {cut!r}")


def unseen_end(prompt: str, pipeline: "sample.Pipeline") -> str:
    """The end of a prompt that is too long for the first model; empty if it sees all."""
    model = pipeline.base or pipeline.upsampler
    assert model is not None
    return GlideTokenizer().truncated(prompt, model.stage.model.config.text_ctx)


def picture_metadata(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, str]:
    """What tells how a picture was made: everything but defaults."""
    kept = {"sampler", "num_steps", "schedule", "guidance_scale"}
    named = {name: value for name, value in options.items() if name in kept or value != getattr(_DEFAULTS, name)}
    named["schedule"] = SampleOptions(**options).spacing
    for name in ("checkpoint", "negative_prompt", "init_image", "image", "mask", "dtype"):
        if (value := getattr(args, name, None)) not in (None, ""):
            named[name] = value
    return {name: str(value) for name, value in named.items()} | upsampler_metadata(args)


def upsampler_metadata(args: argparse.Namespace) -> dict[str, str]:
    """What tells how a picture was enlarged: everything but defaults; nothing where it was not."""
    given = {name: getattr(args, name, None) for name in ("upsampler", *_UP_OPTIONS)}
    return {name: str(value) for name, value in given.items() if value not in (None, "")} if given["upsampler"] else {}


def _write(samples: "sample.Samples", output: Path, metadata: dict[str, str]) -> None:
    for image, prompt, index in zip(samples.images, samples.prompts, samples.indices, strict=True):
        own = {"prompt": prompt, "seed": str(samples.seed), "index": str(index)}
        save_png(output / f"{index:04d}.png", image, own | metadata)
    save_png(output / "grid.png", grid(list(samples.images), samples.prompts, cell=128))
    print(f"{len(samples.images)} pictures and grid.png are in {output}")
