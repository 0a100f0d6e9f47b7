"""The command line of `evaluate.py`."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from glide_jax.cache import keep_compiled_programs
from glide_jax.data.shards.patterns import find_shards
from glide_jax.errors import GlideError
from glide_jax.evaluate.evaluation import SUFFIXES, Keeping, evaluate
from glide_jax.evaluate.extractor import ClipFeatures, Extractor
from glide_jax.evaluate.job import Job
from glide_jax.evaluate.run_folder import RunFolder, plain, write_json
from glide_jax.evaluate.scorer import NoisedClipScorer, Scorer
from glide_jax.evaluate.scores import clip_scores, distance_scores
from glide_jax.evaluate.sheet import write_sheet
from glide_jax.evaluate.view import View, device_facts
from glide_jax.sample import LoadedClip, Pipeline, checkpoint_step, parse_with_shipped
from glide_jax.sample.cli import (
    add_sampler_options,
    add_upsampler_options,
    picture_metadata,
    read_prompts,
    sample_options,
    upsampler_options,
    warn_of_cuts,
)

_EXAMPLES = """\
examples:
  python evaluate.py --prompt_file datasets/prompts/emoji.txt --num_images 4
  python evaluate.py --checkpoint glide/base --upsampler glide/upsample --prompts "a red bicycle|a corgi" --clip_rerank
  python evaluate.py --checkpoint glide/base --prompts "a corgi" --clip_rerank --clip_model ViT-B-32 --clip_checkpoint b32.pt
  python evaluate.py --checkpoint glide/base --prompts "a corgi" --clip glide/clip-text glide/clip-image --clip_rerank --clip_model noised
  python evaluate.py --resume out/evaluate/00003
"""  # noqa: E501
NOISED = "noised"
# What may differ when a run goes on: nothing of it changes pictures by more than rounding.
_FREE = {"resume", "dry_run", "batch_size", "clip_batch_size", "reference", "features", "inception_checkpoint"}


def parser() -> argparse.ArgumentParser:
    """All options of `evaluate.py`."""
    parse = argparse.ArgumentParser(
        prog="evaluate.py",
        description="Draws many prompts into a numbered folder, ranks them by CLIP, and goes on if interrupted.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_run(parse)
    _add_clip(parse)
    _add_reference(parse)
    add_sampler_options(parse)
    add_upsampler_options(parse)
    return parse


def _add_run(parse: argparse.ArgumentParser) -> None:
    group = parse.add_argument_group("models, prompts, output")
    add = group.add_argument
    add("--checkpoint", metavar="DIR",
        help="base model: a run folder, one of its checkpoints, or a converted model (default: the small model in "
        "checkpoints/emoji/base)")  # fmt: skip
    add("--upsampler", metavar="DIR",
        help="upsampler that enlarges what the base model draws (default: none, but checkpoints/emoji/upsample where "
        "--checkpoint is not given either)")  # fmt: skip
    prompts = group.add_mutually_exclusive_group()
    prompts.add_argument("--prompts", metavar="A|B", help="captions with | between them")
    prompts.add_argument("--prompt_file", type=Path, metavar="FILE", help="text file with one caption a line")
    add("--negative_prompt", default="", help="what to stay away from (with guidance)")
    add("--num_images", type=int, help="pictures a caption, without --clip_rerank (default: 1)")
    add("--seed", type=int, default=0, help="the same seed draws the same pictures (default: %(default)s)")
    add("--output_dir", type=Path, default=Path("out/evaluate"), metavar="DIR",
        help="a numbered folder is made in it (default: %(default)s)")  # fmt: skip
    add("--output_format", default="jpg", choices=SUFFIXES, help="of pictures and grids (default: %(default)s)")
    add("--batch_size", type=int, default=16, help="pictures drawn at once (default: %(default)s)")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="compute type (default: %(default)s)")
    add("--resume", type=Path, metavar="DIR",
        help="folder of an interrupted run: goes on with its settings and draws the same pictures")  # fmt: skip
    add(
        "--dry_run", action="store_true", help="check everything but the weights, say what would be done, write nothing"
    )


def _add_clip(parse: argparse.ArgumentParser) -> None:
    add = parse.add_argument_group("CLIP").add_argument
    add("--clip_rerank", action="store_true", help="draw --clip_candidates pictures a caption, keep the best")
    add("--clip_model", default="ViT-L-14", metavar="NAME[/TAG]",
        help="OpenCLIP's name of a model, and of its weights; or a folder with open_clip_config.json; or noised, for "
        "the one given with --clip (default: %(default)s)")  # fmt: skip
    add("--clip_checkpoint", type=Path, metavar="FILE", help="weights of --clip_model, in place of a download")
    add("--clip_candidates", type=int, default=32, help="pictures to choose from (default: %(default)s)")
    add("--clip_top_k", type=int, default=8, help="pictures kept (default: %(default)s)")
    add("--clip_batch_size", type=int, default=16, help="pictures scored at once (default: %(default)s)")
    add("--clip", nargs=2, metavar=("TEXT", "IMAGE"),
        help="both towers of the noised CLIP, to guide by (--clip_guidance_scale) or rank by")  # fmt: skip


def _add_reference(parse: argparse.ArgumentParser) -> None:
    add = parse.add_argument_group("distance from a reference set").add_argument
    add("--reference", metavar="PATH", help="folder of pictures, or shards, to measure the kept pictures against")
    add("--features", default="clip", choices=("clip", "inception"),
        help="those of --clip_model, or Inception's: FID and KID (default: %(default)s)")  # fmt: skip
    add("--inception_checkpoint", type=Path, metavar="FILE", help="for --features inception: inception-2015-12-05.pt")


@dataclass(frozen=True)
class _Plan:
    """A command line that has been checked."""

    args: argparse.Namespace
    job: Job
    keeping: Keeping
    folder: RunFolder | None


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the command line asks for.

    Raises:
        GlideError: impossible options, unreadable files, no such model, an unwritable folder.
    """
    plan, view = _plan(argv), View()
    args = plan.args
    if _loads_clip(args) and args.clip_model != NOISED:
        # torch holds the scorer on the same device: JAX must not take most of its memory at once.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    view.facts("evaluation", _facts(plan))
    load_scorer = _scorer_loader(args, view)
    if args.dry_run:
        view.note("dry run: nothing was drawn or written")
        return 0
    view.facts("device", device_facts())
    keep_compiled_programs()
    scorer = load_scorer()
    extractor = _extractor(args, scorer)
    pipeline = Pipeline.from_checkpoints(
        args.checkpoint, args.upsampler, clip_text=args.clip and args.clip[0], clip_image=args.clip and args.clip[1],
        dtype=args.dtype, batch_size=args.batch_size,
    )  # fmt: skip
    warn_of_cuts(plan.job.prompts, pipeline)
    pipeline.count_evaluations(1, plan.job.options, plan.job.upsampler_options)
    folder = _run(plan, pipeline, scorer if args.clip_rerank else None, view)
    _report(plan, folder, extractor, view)
    return 0


def _run(plan: _Plan, pipeline: Pipeline, scorer: Scorer | None, view: View) -> RunFolder:
    devices = device_facts()
    folder = plan.folder or RunFolder.create(
        plan.args.output_dir, plan.job.prompts, _config(plan.args), devices["device"]
    )
    sampler = picture_metadata(plan.args, dict(plan.job.options))
    try:
        records = evaluate(pipeline, plan.job, folder, plan.keeping, scorer, sampler, view)
    except KeyboardInterrupt:
        view.note(f"interrupted; to go on: python evaluate.py --resume {folder.path}")
        raise
    how = ", ".join(f"{name} {value}" for name, value in sampler.items())
    write_sheet(folder, records, plan.keeping.suffix, [how, f"seed {plan.job.seed}"])
    return folder


def _report(plan: _Plan, folder: RunFolder, extractor: Extractor | None, view: View) -> None:
    """The scores of the whole, and where everything is."""
    records = folder.records()
    kept = sum(len(record.kept) for record in records)
    view.note(f"{kept} pictures of {len(records)} prompts and index.html are in {folder.path}")
    scores = clip_scores(records)
    if extractor is not None:
        scores += distance_scores(folder, records, plan.args.reference, extractor)
    if not scores:
        return
    write_json(folder.path / "scores.json", {
        "scores": [entry.to_json() for entry in scores],
        "reference": plan.args.reference, "features": None if extractor is None else extractor.name,
    })  # fmt: skip
    for entry in scores:
        view.note(str(entry))


def _plan(argv: Sequence[str] | None) -> _Plan:
    args = parser().parse_args(argv)
    folder = None
    if args.resume is not None:
        folder = RunFolder.open(args.resume)
        args = _resumed(argv, folder)
    else:
        args = parse_with_shipped(parser(), argv)
    prompts = folder.prompts if folder is not None else _prompts(args)
    if args.checkpoint is None:
        raise GlideError("an upsampler alone draws nothing: give --checkpoint DIR (a base model) as well")
    _check_clip(args)
    _check_reference(args)
    args.inception_checkpoint = args.inception_checkpoint and Path(args.inception_checkpoint).absolute()
    args.clip_checkpoint = args.clip_checkpoint and Path(args.clip_checkpoint).absolute()
    args.checkpoint = str(checkpoint_step(args.checkpoint))
    args.upsampler = args.upsampler and str(checkpoint_step(args.upsampler))
    kinds = ("clip_text", "clip_image")
    args.clip = args.clip and [str(checkpoint_step(*each)) for each in zip(args.clip, kinds, strict=True)]
    if args.batch_size < 1 or args.clip_batch_size < 1:
        raise GlideError("--batch_size and --clip_batch_size must be at least 1")
    count = args.clip_candidates if args.clip_rerank else 1 if args.num_images is None else args.num_images
    job = Job(prompts, count, args.seed, args.negative_prompt, sample_options(args), upsampler_options(args))
    keeping = Keeping(args.clip_top_k if args.clip_rerank else count, SUFFIXES[args.output_format])
    return _Plan(args, job, keeping, folder)


def _prompts(args: argparse.Namespace) -> tuple[str, ...]:
    given = read_prompts(args.prompt_file) if args.prompts is None else args.prompts.split("|")
    prompts = tuple(prompt.strip() for prompt in given)
    if not all(prompts):
        raise GlideError(f"--prompts {args.prompts!r} has an empty caption: write them as 'a cat|a dog'")
    return prompts


def _check_clip(args: argparse.Namespace) -> None:
    if not args.clip_rerank:
        return
    if args.num_images is not None:
        raise GlideError("with --clip_rerank, --clip_candidates says how many are drawn: leave out --num_images")
    if not 1 <= args.clip_top_k <= args.clip_candidates:
        raise GlideError(
            f"--clip_top_k {args.clip_top_k} must be between 1 and --clip_candidates {args.clip_candidates}"
        )
    if args.clip_model == NOISED and args.clip is None:
        raise GlideError("--clip_model noised ranks by the noised CLIP: give --clip TEXT IMAGE")


def _check_reference(args: argparse.Namespace) -> None:
    if args.reference is None:
        return
    if args.output_format != "png":
        raise GlideError("JPEG artefacts would enter the distance: with --reference give --output_format png")
    if args.features == "inception" and args.inception_checkpoint is None:
        raise GlideError("--features inception needs --inception_checkpoint FILE (inception-2015-12-05.pt)")
    if args.features == "clip" and args.clip_model == NOISED and args.clip is None:
        raise GlideError("--clip_model noised measures by the noised CLIP: give --clip TEXT IMAGE")
    if not Path(args.reference).expanduser().is_dir():
        find_shards(args.reference)


def _resumed(argv: Sequence[str] | None, folder: RunFolder) -> argparse.Namespace:
    """The settings that `folder` was begun with; raises `GlideError` where the command line says otherwise."""
    known, absent = vars(parser().parse_args([])), object()
    filled = parser().parse_args(argv, argparse.Namespace(**dict.fromkeys(known, absent)))
    given = {name: value for name, value in vars(filled).items() if value is not absent}
    stored = {name: value for name, value in folder.config.items() if name in known}
    judged = stored.get("clip_rerank") or stored.get("clip_guidance_scale")
    may_differ = _FREE if judged else _FREE | {"clip", "clip_model", "clip_checkpoint"}
    for name, value in given.items():
        if name not in may_differ and not _same(name, value, stored.get(name)):
            raise GlideError(
                f"--resume {folder.path} goes on with its own settings, and --{name} is {stored.get(name)!r} there:"
                f" leave it out, or start a new run"
            )
    free = {name: value for name, value in given.items() if name in may_differ}
    return argparse.Namespace(**known | stored | free)


def _same(name: str, given: Any, stored: Any) -> bool:
    if name in ("checkpoint", "upsampler"):
        step = Path(str(stored))
        return Path(given).resolve() in (step, *step.parents) or ("@" in str(given) and checkpoint_step(given) == step)
    return bool(plain(given) == stored)


def _config(args: argparse.Namespace) -> dict[str, Any]:
    config = {name: value for name, value in vars(args).items() if name not in ("resume", "dry_run")}
    return config | {"versions": {name: version(name) for name in ("jax", "jaxlib")}}


def _scorer_loader(args: argparse.Namespace, view: View) -> Callable[[], Scorer | None]:
    """What loads the scorer; its name is checked at once."""
    if not _loads_clip(args):
        return lambda: None
    return scorer_loader(args.clip_model, args.clip_checkpoint, args.clip, args.clip_batch_size, view.note)


def scorer_loader(
    model: str, checkpoint: Path | None, clip: Sequence[str] | None, batch_size: int, note: Callable[[str], None]
) -> Callable[[], Scorer]:
    """What loads a scorer, after its name was checked.

    Args:
        model, checkpoint, clip: as the options --clip_model, --clip_checkpoint and --clip say it.
        batch_size: pictures scored at once.
        note: told what is loaded, and what was corrected.

    Raises:
        GlideError: no such model, or its library is missing; the loader raises it for weights it cannot load.
    """
    if model == NOISED:
        if clip is None:
            raise GlideError("--clip_model noised is the noised CLIP: give --clip TEXT IMAGE")
        return lambda: NoisedClipScorer(LoadedClip.from_checkpoints(*clip), batch_size)
    from glide_jax.evaluate.clip_score import OpenClipScorer, find_model  # noqa: PLC0415

    name = find_model(model)
    if name.note is not None:
        note(f"note: {name.note}")

    def load() -> Scorer:
        note(f"loading OpenCLIP {name.model}")
        return OpenClipScorer(name, checkpoint, batch_size)

    return load


def _loads_clip(args: argparse.Namespace) -> bool:
    return bool(args.clip_rerank or (args.reference is not None and args.features == "clip"))


def _extractor(args: argparse.Namespace, scorer: Scorer | None) -> Extractor | None:
    if args.reference is None:
        return None
    if args.features == "inception":
        from glide_jax.evaluate.clip_score import InceptionFeatures  # noqa: PLC0415

        return InceptionFeatures(args.inception_checkpoint, args.clip_batch_size)
    return None if scorer is None else ClipFeatures(scorer)


def _facts(plan: _Plan) -> Mapping[str, object]:
    args, job = plan.args, plan.job
    facts: dict[str, object] = {"prompts": len(job.prompts), "pictures a prompt": job.num_images}
    if args.clip_rerank:
        facts |= {"kept": plan.keeping.count, "ranked by": args.clip_model}
    facts |= {"seed": job.seed, **picture_metadata(args, dict(job.options))}
    if plan.folder is not None:
        done = sum(plan.folder.done(index) for index in range(len(job.prompts)))
        facts["resumed"] = f"{plan.folder.path}, {done} of {len(job.prompts)} prompts done"
    return facts
