"""The command line of `evaluate.py`."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from glide_jax import hub
from glide_jax.compute import HELP, ComputeType
from glide_jax.errors import GlideError
from glide_jax.evaluate.evaluation import SUFFIXES, Job, evaluate
from glide_jax.evaluate.reference import ClipFeatures, Extractor, check_reference
from glide_jax.evaluate.run_folder import RunFolder, write_json
from glide_jax.evaluate.scorer import NOISED, Scorer, scorer_loader
from glide_jax.evaluate.scores import clip_scores, distance_scores
from glide_jax.evaluate.sheet import write_sheet
from glide_jax.evaluate.view import View, device_facts
from glide_jax.files import check_folder, keep_compiled_programs, lines, read_text
from glide_jax.options import Options, Parser, add_arguments, build, flat, from_json, given, option, to_json
from glide_jax.sample import (
    Pipeline,
    base_options,
    checkpoint_step,
    located,
    metadata,
    parse_with_settings,
    split_scale,
    upsampler_options,
)
from glide_jax.sample.options import add_sampling_arguments
from glide_jax.sample.options import flags as sampling_flags

_EXAMPLES = """\
examples:
  python evaluate.py --prompt_file datasets/prompts/emoji.txt --num_images 4
  python evaluate.py --checkpoint models/base --upsampler models/upsample --prompts "a red bicycle|a corgi" --clip_rerank
  python evaluate.py --checkpoint models/base --prompts "a corgi" --clip_rerank --clip_model ViT-B-32 --clip_checkpoint b32.pt
  python evaluate.py --checkpoint models/base --prompts "a corgi" --clip models/clip-text models/clip-image --clip_rerank --clip_model noised
  python evaluate.py --resume out/evaluate/00003
"""  # noqa: E501
# Options that may differ when a run is resumed; none of them changes images by more than rounding.
_FREE = {"batch_size", "clip_batch_size", "reference", "features", "inception_checkpoint"}
_OF_CLIP = {"clip", "clip_model", "clip_checkpoint"}
_COMMANDS = ("resume", "dry_run", "settings")  # these are about the command, not the run


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """Options of an evaluation other than those of sampling."""

    checkpoint: Annotated[str | None, option(
        "base model: a run folder, one of its checkpoints, or a converted model; or a whole pipeline: a folder, or"
        " hf://USER/NAME of the Hugging Face Hub (default: checkpoints/emoji)", metavar="DIR")] = None  # fmt: skip
    upsampler: Annotated[str | None, option(
        "upsampler that enlarges what the base model generates (default: that of the pipeline, if --checkpoint is one)",
        metavar="DIR")] = None  # fmt: skip
    lora: Annotated[tuple[str, ...], option(
        "adapters (LoRA) for the base model, from runs that trained them", metavar="PATH[:SCALE]")] = ()  # fmt: skip
    prompts: Annotated[str | None, option("prompts separated by |", metavar="A|B")] = None
    prompt_file: Annotated[str | None, option("text file with one prompt per line", metavar="FILE")] = None
    negative_prompt: Annotated[str, option("what to avoid (with guidance)")] = ""
    num_images: Annotated[int | None, option("images per prompt, without --clip_rerank (default: 1)", low=1)] = None
    seed: Annotated[int, option("the same seed generates the same images", low=0, below=2**31)] = 0
    output_dir: Annotated[str, option("a numbered folder is created in it", metavar="DIR")] = "out/evaluate"
    output_format: Annotated[Literal["jpg", "png"], option("format of images and grids")] = "jpg"
    batch_size: Annotated[int, option("images generated at once", low=1)] = 16
    dtype: Annotated[ComputeType, option(HELP)] = "float32"
    clip_rerank: Annotated[bool, option("generate --clip_candidates images per prompt, keep the best")] = False
    clip_model: Annotated[str, option(
        "OpenCLIP's name of a model, and of its weights; or a folder with open_clip_config.json; or noised, for the one"
        " given with --clip", metavar="NAME[/TAG]")] = "ViT-L-14"  # fmt: skip
    clip_checkpoint: Annotated[str | None, option(
        "weights of --clip_model, instead of a download", metavar="FILE")] = None  # fmt: skip
    clip_candidates: Annotated[int, option("images to choose from", low=1)] = 32
    clip_top_k: Annotated[int, option("images to keep", low=1)] = 8
    clip_batch_size: Annotated[int, option("images scored at once", low=1)] = 16
    clip: Annotated[tuple[str, str] | None, option(
        "both towers of the noised CLIP, for guidance (--clip_guidance_scale) or ranking",
        metavar=("TEXT", "IMAGE"))] = None  # fmt: skip
    reference: Annotated[str | None, option(
        "folder of images, or shards, to compare the kept images with", metavar="PATH")] = None  # fmt: skip
    features: Annotated[Literal["clip", "inception"], option(
        "those of --clip_model, or Inception's for FID and KID")] = "clip"  # fmt: skip
    inception_checkpoint: Annotated[str | None, option(
        "for --features inception: inception-2015-12-05.pt", metavar="FILE")] = None  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts is not None and self.prompt_file is not None:
            raise GlideError("--prompts and --prompt_file both name the prompts: give one of them")
        if self.prompts is not None and os.path.isfile(self.prompts):  # noqa: PTH113 (false for what is no file name)
            raise GlideError(f"--prompts {self.prompts} is a file: give --prompt_file {self.prompts}")
        if self.clip_rerank and self.num_images is not None:
            raise GlideError(
                "with --clip_rerank, --clip_candidates says how many are generated: leave out --num_images"
            )
        if self.clip_rerank and self.clip_top_k > self.clip_candidates:
            raise GlideError(
                f"--clip_top_k {self.clip_top_k} must be between 1 and --clip_candidates {self.clip_candidates}"
            )
        if self.loads_clip and self.clip_model == NOISED and self.clip is None:
            raise GlideError("--clip_model noised is the noised CLIP: give --clip TEXT IMAGE")
        if self.reference is None:
            return
        if self.output_format != "png":
            raise GlideError(
                "JPEG artefacts would enter the distance: --reference needs images generated with --output_format png"
            )
        if self.features == "inception" and self.inception_checkpoint is None:
            raise GlideError("--features inception needs --inception_checkpoint FILE (inception-2015-12-05.pt)")
        check_reference(self.reference)

    @property
    def loads_clip(self) -> bool:
        """Whether the model of --clip_model has to be loaded."""
        return self.clip_rerank or (self.reference is not None and self.features == "clip")


@dataclass(frozen=True)
class _Plan:
    """A checked command line, and its settings by flag as the run's folder stores them."""

    options: EvaluateOptions
    job: Job
    folder: RunFolder | None
    settings: Mapping[str, Any]


def parser() -> argparse.ArgumentParser:
    """All options of `evaluate.py`."""
    parse = Parser(
        prog="evaluate.py",
        unnamed="--prompts",
        description="Generates images for many prompts into a numbered folder, ranks them by CLIP, and can resume.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parse.add_argument_group("evaluation"), EvaluateOptions)
    parse.add_argument("--resume", metavar="DIR",
                       help="folder of an interrupted run: resumes with its settings, to the same images")  # fmt: skip
    parse.add_argument("--dry_run", action="store_true",
                       help="check everything but the weights, say what would be done, write nothing")  # fmt: skip
    add_sampling_arguments(parse)
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the command line asks for.

    Raises:
        GlideError: invalid options, unreadable files, no such model, or an unwritable folder.
    """
    args = parser().parse_args(argv)
    if args.resume is None:
        args = parse_with_settings(parser(), argv)
        folder, settings = None, _by_flag(args) | _sampling(args)
    else:
        folder = RunFolder.open(Path(args.resume))
        settings = _resumed(_by_flag(args), folder)
    plan, view = _plan(settings, folder), View()
    options = plan.options
    if options.loads_clip and options.clip_model != NOISED:
        # torch may hold the scorer on the same device, so JAX must not preallocate most of its memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    load_scorer = None
    if options.loads_clip:  # checks its name now
        checkpoint = None if options.clip_checkpoint is None else Path(options.clip_checkpoint)
        load_scorer = scorer_loader(options.clip_model, checkpoint, options.clip, options.clip_batch_size, view.note)
    view.facts("evaluation", _facts(plan))
    text, image = options.clip or (None, None)
    open_models = partial(
        Pipeline.from_checkpoints, options.checkpoint, options.upsampler, clip_text=text, clip_image=image,
        dtype=options.dtype, batch_size=options.batch_size, lora=options.lora,
    )  # fmt: skip
    _check_job(plan.job, open_models(weights=False), view)
    if args.dry_run:
        view.note("dry run: nothing was generated or written")
        return 0
    view.facts("device", device_facts())
    keep_compiled_programs()
    scorer = None if load_scorer is None else load_scorer()
    extractor = _extractor(options, scorer)
    pipeline = open_models()
    folder = _run(plan, pipeline, scorer if options.clip_rerank else None, view)
    _report(plan, folder, extractor, view)
    return 0


def _by_flag(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that are given."""
    return {name: value for name, value in vars(args).items() if value is not None and name not in _COMMANDS}


def _sampling(args: argparse.Namespace) -> dict[str, Any]:
    """All sampling options, by flag: those given, on top of the settings of the models' pipelines."""
    return sampling_flags(base_options(vars(args), args.settings), upsampler_options(vars(args), args.settings))


def _resumed(flags: Mapping[str, Any], folder: RunFolder) -> dict[str, Any]:
    """The settings stored in `folder`, updated from `flags`; raises `GlideError` if they change more than allowed."""
    stored = {name: from_json(value) for name, value in folder.config.items() if value is not None}
    judged = stored.get("clip_rerank") or stored.get("clip_guidance_scale")
    free = _FREE if judged else _FREE | _OF_CLIP
    for name, value in flags.items():
        if name not in free and not _same(name, value, stored.get(name)):
            raise GlideError(
                f"--resume {folder.path} has its own settings, and --{name} is {to_json(stored.get(name))!r} there:"
                " leave it out, or start a new run"
            )
    return stored | {name: value for name, value in flags.items() if name in free}


def _same(name: str, given: Any, stored: Any) -> bool:
    if name in ("checkpoint", "upsampler"):
        step, given = Path(str(stored)), located(given, "base" if name == "checkpoint" else name)[0]
        if hub.is_name(given):
            return bool(given == stored)
        return Path(given).resolve() in (step, *step.parents) or ("@" in str(given) and checkpoint_step(given) == step)
    return bool(to_json(given) == to_json(stored))


def _plan(settings: Mapping[str, Any], folder: RunFolder | None) -> _Plan:
    options = build(EvaluateOptions, given(settings, EvaluateOptions))
    prompts = _prompts(options) if folder is None else folder.prompts
    if options.checkpoint is None:
        raise GlideError("an upsampler alone generates nothing: give --checkpoint DIR (a base model) as well")
    options = _absolute(options)
    if folder is None:
        check_folder(Path(options.output_dir))
    count = options.clip_candidates if options.clip_rerank else options.num_images or 1
    job = Job(
        prompts, count, options.seed, options.negative_prompt, base_options(settings), upsampler_options(settings),
        options.clip_top_k if options.clip_rerank else None, SUFFIXES[options.output_format],
    )  # fmt: skip
    by_flag = flat(options) | sampling_flags(job.options, job.upsampler_options)
    return _Plan(options, job, folder, by_flag)


def _check_job(job: Job, pipeline: Pipeline, view: View) -> None:
    """Raises `GlideError` if a pipeline, still without weights, would refuse the job; shows its warnings."""
    pipeline.batches(
        job.prompts[:1], [0], seed=job.seed, negative_prompt=job.negative_prompt, options=job.options,
        upsampler_options=job.upsampler_options,
    )  # fmt: skip
    for line in pipeline.doubts(job.options, job.upsampler_options, prompts=job.prompts):
        view.note(f"warning: {line}")


def _prompts(options: EvaluateOptions) -> tuple[str, ...]:
    if options.prompt_file is not None:
        prompts = tuple(lines(read_text(Path(options.prompt_file), "--prompt_file")))
        if not prompts:
            raise GlideError(f"--prompt_file {options.prompt_file} is empty: write one prompt a line")
        return prompts
    prompts = tuple(prompt.strip() for prompt in options.prompts.split("|")) if options.prompts is not None else ()
    if not all(prompts):
        raise GlideError(f"--prompts {options.prompts!r} has an empty one: write them as 'a cat|a dog'")
    return prompts


def _absolute(options: EvaluateOptions) -> EvaluateOptions:
    """The same with absolute paths, and checkpoints resolved to steps: a run still training will have newer ones."""
    named: dict[str, Any] = {}
    for name in ("checkpoint", "upsampler"):
        path = getattr(options, name)
        if path and not hub.is_name(path):  # it names a commit
            named[name] = str(checkpoint_step(path))
    adapters = map(split_scale, options.lora)
    named["lora"] = tuple(f"{checkpoint_step(path)}:{scale}" for path, scale in adapters)
    for name in ("clip_checkpoint", "inception_checkpoint", "reference"):  # a pattern of shards stays as it is
        if (path := getattr(options, name)) and Path(path).expanduser().exists():
            named[name] = str(Path(path).expanduser().absolute())
    if options.clip is not None:
        text, image = options.clip
        named["clip"] = (str(checkpoint_step(text, "clip_text")), str(checkpoint_step(image, "clip_image")))
    return replace(options, **named)


def _extractor(options: EvaluateOptions, scorer: Scorer | None) -> Extractor | None:
    if options.reference is None:
        return None
    if options.features == "inception":
        from glide_jax.evaluate.inception import InceptionFeatures  # noqa: PLC0415

        return InceptionFeatures(Path(str(options.inception_checkpoint)), options.clip_batch_size)
    return None if scorer is None else ClipFeatures(scorer)


def _how(plan: _Plan) -> dict[str, str]:
    """How the images are generated."""
    options = plan.options
    named = {name: value for name in ("checkpoint", "negative_prompt", "dtype") if (value := getattr(options, name))}
    if options.upsampler is not None:
        named["upsampler"] = options.upsampler
    if options.lora:
        named["lora"] = " ".join(options.lora)
    return metadata(plan.job.options, plan.job.upsampler_options if options.upsampler else None) | named


def _facts(plan: _Plan) -> Mapping[str, object]:
    job = plan.job
    facts: dict[str, object] = {"prompts": len(job.prompts), "images per prompt": job.num_images}
    if plan.options.clip_rerank:
        facts |= {"kept": job.keep, "ranked by": plan.options.clip_model}
    facts |= {"seed": job.seed, **_how(plan)}
    if plan.folder is not None:
        done = sum(plan.folder.done(index) for index in range(len(job.prompts)))
        facts["resumed"] = f"{plan.folder.path}, {done} of {len(job.prompts)} prompts done"
    return facts


def _run(plan: _Plan, pipeline: Pipeline, scorer: Scorer | None, view: View) -> RunFolder:
    config = {**plan.settings, "versions": {name: version(name) for name in ("jax", "jaxlib")}}
    folder = plan.folder or RunFolder.create(
        Path(plan.options.output_dir), plan.job.prompts, config, device_facts()["device"]
    )
    how = _how(plan)
    try:
        records = evaluate(pipeline, plan.job, folder, scorer, how, view)
    except KeyboardInterrupt:
        view.note(f"interrupted; to resume: python evaluate.py --resume {folder.path}")
        raise
    facts = [", ".join(f"{name} {value}" for name, value in how.items()), f"seed {plan.job.seed}"]
    write_sheet(folder, records, plan.job.suffix, facts)
    return folder


def _report(plan: _Plan, folder: RunFolder, extractor: Extractor | None, view: View) -> None:
    """Prints the overall scores, and where everything is."""
    records = folder.records()
    kept = sum(len(record.kept) for record in records)
    view.note(f"{kept} images of {len(records)} prompts and index.html are in {folder.path}")
    scores = clip_scores(records)
    if extractor is not None:
        scores += distance_scores(folder, records, str(plan.options.reference), extractor)
    if not scores:
        return
    write_json(folder.path / "scores.json", {
        "scores": [entry.to_json() for entry in scores],
        "reference": plan.options.reference, "features": None if extractor is None else extractor.name,
    })  # fmt: skip
    for entry in scores:
        view.note(str(entry))
