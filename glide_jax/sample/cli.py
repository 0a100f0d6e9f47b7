"""The command line of `sample.py`."""

import argparse
import secrets
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from glide_jax import progress, sample
from glide_jax.compute import COMPUTE_TYPES, HELP
from glide_jax.errors import GlideError
from glide_jax.files import check_folder, keep_compiled_programs, lines, read_text
from glide_jax.images import check_animation, grid, save_animation, save_png, to_uint8
from glide_jax.options import Parser, add_arguments, fields
from glide_jax.sample.compare import Axis, Cell, cells, compare
from glide_jax.sample.options import (
    IMAGE_STRENGTH,
    SampleOptions,
    add_sampling_arguments,
    base_options,
    metadata,
    upsampler_options,
)
from glide_jax.sample.pretrained import parse_with_settings
from glide_jax.sample.samples import CELL

_EXAMPLES = """\
examples:
  python sample.py --prompt "a 3d render of a turtle" --num_samples 4
  python sample.py --checkpoint models/base --upsampler models/upsample --prompt "a red bicycle" --sampler dpmpp_2m
  python sample.py --checkpoint hf://someone/their-glide --prompt "a red bicycle"
  python sample.py --checkpoint models/base --prompt "a hedgehog" --xy num_steps=10,20,50 sampler=ddim,plms,dpmpp_2m
  python sample.py --checkpoint models/base --prompt "a house in the snow" --init_image house.jpg --strength 0.6
  python sample.py --checkpoint models/base-inpaint --prompt "a corgi" --image sofa.jpg --mask sofa-mask.png
  python sample.py --upsampler models/upsample --prompt "a corgi" --image small.png
"""
_FAR = 2  # times the side the model was trained on
# What an image file's metadata has besides its settings.
_WRITTEN = (
    "checkpoint", "upsampler", "negative_prompt", "prompt_weights", "interpolate", "init_image", "image", "mask",
    "height", "width", "dtype",
)  # fmt: skip
# Flags that only a base model can use, besides its sampling options.
_BASE_ONLY = (
    "negative_prompt", "interpolate", "num_samples", "init_image", "mask", "height", "width", "clip", "animate",
    "attention", "xy",
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """All options of `sample.py`."""
    parse = Parser(
        prog="sample.py",
        unnamed="--prompt",
        description="Generates images from prompts with trained or converted GLIDE models.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_models_and_prompts(parse)
    _add_images(parse)
    add_sampling_arguments(parse)
    return parse


def _add_models_and_prompts(parse: argparse.ArgumentParser) -> None:
    add = parse.add_argument_group("models and prompts").add_argument
    add("--checkpoint", metavar="DIR",
        help="base model: a run folder, one of its checkpoints, a converted model, or a safetensors file of one; or a "
        "whole pipeline: a folder, or hf://USER/NAME of the Hugging Face Hub (default: checkpoints/emoji)")  # fmt: skip
    add("--upsampler", metavar="DIR",
        help="upsampler that enlarges what the base model generates (default: that of the pipeline, if "
        "--checkpoint is one)")  # fmt: skip
    add(
        "--lora",
        action="append",
        default=[],
        metavar="PATH[:SCALE]",
        help="adapters (LoRA) for that base model: a run that trained them, or their safetensors file; may be given "
        "several times",
    )
    add("--clip", nargs=2, metavar=("TEXT", "IMAGE"), help="both towers of the noised CLIP, for guidance")
    add("--prompt", action="append", default=[], help="text to generate an image of; may be given several times")
    add("--prompt_file", type=Path, metavar="FILE", help="text file with one prompt per line")
    add("--negative_prompt", default="", help="what to avoid (with guidance)")
    add("--prompt_weights", action="store_true",
        help='stress or weaken words: "a (red:1.5) bicycle"; otherwise brackets are ordinary text')  # fmt: skip
    add("--interpolate", type=int, metavar="N",
        help="N images from each prompt to the next, from the same noise; --animate shows them in turn")  # fmt: skip
    add("--num_samples", type=int, default=1, help="images per prompt (default: %(default)s)")
    add("--seed", type=int, default=0,
        help="the same seed generates the same images; -1 draws one (default: %(default)s)")  # fmt: skip
    for name in ("height", "width"):
        said = f"{name} of the base model's images, which an upsampler multiplies (default: what it was trained on)"
        add(f"--{name}", type=int, metavar="N", help=said)
    add("--output", type=Path, default=Path("out"), metavar="DIR",
        help="folder for the images and grid.png (default: %(default)s)")  # fmt: skip
    add("--animate", type=Path, metavar="FILE",
        help="also shows how the images form; with --interpolate, all in turn: .gif, .webp, .png, .mp4")  # fmt: skip
    add("--attention", action="append", default=[], metavar="WORD",
        help="also shows where the base model attends to this word; may be given several times")  # fmt: skip
    add("--batch_size", type=int, default=16, help="images generated at once (default: %(default)s)")
    add("--dtype", default="float32", choices=COMPUTE_TYPES, help=f"{HELP} (default: %(default)s)")
    add("--xy", nargs="+", action="extend", metavar="OPTION=A,B,...",
        help="generate the first prompt with these values of one option, or of two, in one labelled grid")  # fmt: skip


def _add_images(parse: argparse.ArgumentParser) -> None:
    group = parse.add_argument_group("from images")
    add = group.add_argument
    add("--init_image", metavar="FILE", help="image to start from, of any size (image to image)")
    add_arguments(group, SampleOptions, only=("strength",), base=SampleOptions(strength=IMAGE_STRENGTH))
    add("--image", metavar="FILE", help="image to inpaint with an inpainting model, or to enlarge")
    add("--mask", metavar="FILE", help="white (255, or 1) where that image is kept, black (0) where it is inpainted")


def main(argv: Sequence[str] | None = None) -> int:
    """Generates images as the command line asks, and writes PNG files and a grid.

    Raises:
        GlideError: no prompts, unreadable files, no such checkpoint, invalid options, or an unwritable folder.
    """
    args = parse_with_settings(parser(), argv)
    keep_compiled_programs()
    if args.seed == -1:
        args.seed = secrets.randbelow(2**31)
    if args.checkpoint is None:
        _check_alone(args)
    _check_together(args)
    prompts = _prompts(args)
    if args.prompt_weights:
        args.negative_prompt = sample.weighted(args.negative_prompt)
    if not prompts and args.checkpoint is not None:
        empty = f"{args.prompt_file} has no prompts: " if args.prompt_file else ""
        raise GlideError(f'nothing to generate: {empty}give --prompt "a caption" or --prompt_file FILE')
    args.strength = None if args.init_image is None else IMAGE_STRENGTH if args.strength is None else args.strength
    options, up_options = (of(vars(args), args.settings) for of in (base_options, upsampler_options))
    axes = [Axis.parse(text) for text in args.xy or ()]
    compared = cells(axes, vars(args), args.settings) if axes else []
    _check_animated(args, len(prompts) * args.num_samples)
    for folder in (args.output, *([] if args.animate is None else [args.animate.parent])):
        check_folder(folder)
    open_models = partial(
        sample.Pipeline.from_checkpoints,
        args.checkpoint, args.upsampler, clip_text=args.clip and args.clip[0], clip_image=args.clip and args.clip[1],
        dtype=args.dtype, batch_size=args.batch_size, lora=args.lora,
    )  # fmt: skip
    # Reading weights may take minutes, so everything that can be checked without them comes first.
    _check_request(open_models(weights=False), args, prompts, compared or [Cell("", args.seed, options, up_options)])
    pipeline = open_models()
    if args.checkpoint is None:
        _enlarge(pipeline, args, prompts, up_options)
    elif compared:
        sheet, figures = compare(pipeline, prompts[0], compared, len(axes[0].values), **_inputs(pipeline, args))
        save_png(args.output / "comparison.png", sheet)
        print("\n".join([*figures, f"comparison.png is in {args.output}"]))
    else:
        _generate(pipeline, args, prompts, options, up_options)
    return 0


def _check_request(
    pipeline: "sample.Pipeline", args: argparse.Namespace, prompts: list["sample.Prompt"], cells: Sequence[Cell]
) -> None:
    """Raises `GlideError` if a pipeline, still without weights, would refuse the request; prints its warnings."""
    texts, from_image = sample.texts(prompts), bool(args.init_image)
    found = (
        pipeline.doubts(each.options, each.upsampler_options, prompts=texts, from_image=from_image) for each in cells
    )
    for line in dict.fromkeys(chain.from_iterable(found)):
        print(f"warning: {line}")
    if args.checkpoint is None:
        pipeline.upsample_batches([args.image], prompts or "", cells[0].upsampler_options, args.seed)
        return
    assert pipeline.base is not None
    warn_of_size(pipeline, args)
    if args.attention:
        sample.check_words(texts, args.attention, pipeline.base)
    rows = [prompt for prompt in prompts for _ in range(args.num_samples)]
    inputs = _inputs(pipeline, args)
    for _, seed, options, up_options in cells:
        pipeline.batches(rows, range(len(rows)), seed=seed, options=options, upsampler_options=up_options, **inputs)


def _generate(
    pipeline: "sample.Pipeline",
    args: argparse.Namespace,
    prompts: list["sample.Prompt"],
    options: SampleOptions,
    up_options: SampleOptions,
) -> None:
    assert pipeline.base is not None
    count, walk = len(prompts) * args.num_samples, args.interpolate is not None
    settings = metadata(options, up_options if args.upsampler else None)
    print("settings:", " ".join(f"{name}={value}" for name, value in ({"seed": args.seed} | settings).items()))
    total = pipeline.count_evaluations(count, options, up_options, from_image=args.init_image is not None)
    frames: list[Any] = []
    with progress.bar(f"sampling, steps of {count} image{'s' * (count > 1)}", total) as bar:

        def on_steps(done: int, x_0: Any) -> None:
            bar.update(done)
            if args.animate is not None and not walk:
                frames.append(to_uint8(x_0))

        samples = pipeline(
            prompts, num_images=args.num_samples, options=options, upsampler_options=up_options, seed=args.seed,
            on_steps=on_steps, indices=[0] * count if walk else None, **_inputs(pipeline, args),
        )  # fmt: skip
    _write(samples, args, settings)
    if args.attention:
        _show_attention(pipeline.base, samples, args)
    if args.animate is not None:
        width = samples.images.shape[2]
        cell = -(-CELL // width) * width  # whose width is a fraction of the output's as well
        if walk:
            sheets = [grid([image], cell=cell) for image in samples.images]
        else:
            sheets = [grid(list(images), samples.prompts, cell=cell) for images in (*frames, samples.images)]
        save_animation(args.animate, sheets)
        print(f"{args.animate} shows " + ("the images one after the other" if walk else "how they form"))


def _inputs(pipeline: "sample.Pipeline", args: argparse.Namespace) -> dict[str, Any]:
    """The pipeline call's inputs besides the prompts."""
    given = {name: getattr(args, name) for name in ("negative_prompt", "init_image", "image", "mask")}
    return given | {"size": _size(pipeline, args)}


def _prompts(args: argparse.Namespace) -> list["sample.Prompt"]:
    """The prompts to generate from, as the options make them."""
    prompts = [*args.prompt, *(lines(read_text(args.prompt_file, "--prompt_file")) if args.prompt_file else [])]
    if args.prompt_weights:
        prompts = [sample.weighted(prompt) for prompt in prompts]
    return prompts if args.interpolate is None else sample.interpolated(prompts, args.interpolate)


def _show_attention(base: "sample.LoadedModel", samples: "sample.Samples", args: argparse.Namespace) -> None:
    small = samples.images if samples.small is None else samples.small
    maps = sample.attention_maps(base, small, samples.prompts, args.attention, seed=args.seed)
    cells, labels = [], []
    for image, prompt, of_image in zip(samples.images, samples.prompts, maps.swapaxes(0, 1), strict=True):
        pairs = list(zip(args.attention, of_image, strict=True))
        cells += [image, *(sample.heat_map(image, share) for _, share in pairs)]
        labels += [prompt, *(f"{word}\n{share.min():.1%} to {share.max():.1%}" for word, share in pairs)]
    save_png(args.output / "attention.png", grid(cells, labels, columns=1 + len(maps), cell=CELL))
    print(f"attention.png is in {args.output}")


def _size(pipeline: "sample.Pipeline", args: argparse.Namespace) -> tuple[int, int] | None:
    if args.height is None and args.width is None:
        return None
    assert pipeline.base is not None
    side = pipeline.base.stage.model.config.image_size
    return (side if args.height is None else args.height, side if args.width is None else args.width)


def warn_of_size(pipeline: "sample.Pipeline", args: argparse.Namespace) -> None:
    """Warns if a side is less than half, or more than twice, of what the base model was trained on."""
    if pipeline.base is None or (size := _size(pipeline, args)) is None:
        return
    side = pipeline.base.stage.model.config.image_size
    if min(size) * _FAR < side or max(size) > side * _FAR:
        print(f"warning: {size[0]} x {size[1]} is far from the {side} x {side} that this model was trained on")


def _check_alone(args: argparse.Namespace) -> None:
    """Raises `GlideError` if an upsampler alone is given no image to enlarge, or options it cannot use."""
    if args.image is None:
        raise GlideError("an upsampler alone enlarges an image: give --image FILE, or a base model with --checkpoint")
    usual = vars(parser().parse_args([]))
    unused = [f"--{name}" for name in (*_BASE_ONLY, *fields(SampleOptions)) if vars(args)[name] != usual[name]]
    if unused:
        raise GlideError(
            f"an upsampler alone cannot use {', '.join(unused)}: give a base model with --checkpoint, or leave these"
            " out (the upsampler's own options are --upsampler_NAME)"
        )


def _check_together(args: argparse.Namespace) -> None:
    """Raises `GlideError` if --interpolate, --prompt_weights, --attention and other options do not go together."""
    walk = args.interpolate is not None
    for flag, is_given in {"--interpolate": walk, "--attention": args.attention, "--animate": args.animate}.items():
        if is_given and args.xy:
            raise GlideError(f"{flag} does not go with --xy: leave one out")
    if args.num_samples < 1:
        raise GlideError(f"--num_samples must be at least 1, not {args.num_samples}")
    if walk and args.num_samples != 1:
        raise GlideError("--interpolate generates one image each: leave out --num_samples")
    if args.attention and (args.prompt_weights or walk or args.image):
        raise GlideError("--attention needs plain prompts: leave out --prompt_weights, --interpolate and --image")
    if args.clip_guidance_scale and (args.prompt_weights or walk):
        raise GlideError("--clip_guidance_scale needs plain prompts: leave out --prompt_weights and --interpolate")
    if args.strength is not None and args.init_image is None:
        raise GlideError("--strength needs an image to start from: give --init_image FILE")


def _check_animated(args: argparse.Namespace, count: int) -> None:
    """Raises `GlideError` if an animation is asked for and cannot be made."""
    if args.animate is None:
        return
    check_animation(args.animate)
    if args.interpolate is None and count > args.batch_size:
        raise GlideError(f"--animate shows images of one batch: ask for fewer, or raise --batch_size to {count}")


def _enlarge(
    pipeline: "sample.Pipeline", args: argparse.Namespace, prompts: list["sample.Prompt"], options: SampleOptions
) -> None:
    with progress.bar("upsampling, steps", pipeline.count_evaluations(1, None, options)) as bar:
        on_steps = lambda done, _: bar.update(done)  # noqa: E731
        samples = pipeline.upsample([args.image], prompts or "", options=options, seed=args.seed, on_steps=on_steps)
    _write(samples, args, metadata(None, options))


def _write(samples: "sample.Samples", args: argparse.Namespace, settings: dict[str, str]) -> None:
    output, how = args.output, {name: str(value) for name in _WRITTEN if (value := getattr(args, name))} | settings
    if args.lora:
        how["lora"] = " ".join(args.lora)
    samples.save(output, how)
    count = len(samples.images)
    print(f"{count} {'image and' if count == 1 else 'images and'} grid.png are in {output}")
    older = sum(path.stem.isdecimal() and int(path.stem) >= count for path in output.glob("[0-9]*.png"))
    if older:
        print(f"{older} older {'image is' if older == 1 else 'images are'} also in {output}")
