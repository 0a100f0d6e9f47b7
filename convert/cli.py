"""The command line for converting checkpoints between PyTorch and Flax."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from convert.architecture import Options, read_options
from convert.bundle import bundle
from convert.described import described, own
from convert.download import PUBLISHED, Source, open_source
from convert.merge import merge
from convert.shrink import shrink
from convert.state_dict import DTYPES, read_state_dict
from convert.to_flax import architecture_of, check_tensors, to_flax
from convert.to_kohya import to_kohya
from convert.to_torch import to_torch
from glide_jax.files import require_new
from glide_jax.options import Parser
from glide_jax.sample import Pipeline, base_options, choose, flags, upsampler_options
from glide_jax.sample.options import add_sampling_arguments
from glide_jax.sample.pretrained import check_settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command.

    Raises:
        GlideError: says what is wrong, in one line.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    given.run(given)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m convert", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    flax = commands.add_parser("to-flax", help="PyTorch file to checkpoint")
    flax.set_defaults(run=_to_flax)
    _add_source(flax)
    flax.add_argument("--output", type=Path, required=True, metavar="DIR", help="the new checkpoint")

    torch = commands.add_parser("to-torch", help="checkpoint to PyTorch file")
    torch.set_defaults(run=_to_torch)
    torch.add_argument("checkpoint", help="a run, one of its steps, or converted weights")
    torch.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the new file, FILE.pt or FILE.safetensors"
    )
    which = torch.add_mutually_exclusive_group()
    for name, what in (("ema", "EMA weights, the default where there are any"), ("params", "raw weights")):
        which.add_argument(f"--{name}", dest="weights", action="store_const", const=name, help=what)
    torch.add_argument(
        "--dtype", choices=DTYPES, help="default: the source's if the weights are unchanged, else float32"
    )

    small = commands.add_parser("shrink", help="checkpoint to a small one: EMA weights in bfloat16")
    small.set_defaults(run=_shrink)
    small.add_argument("checkpoint", help="a run, one of its steps, or converted weights")
    small.add_argument("--output", type=Path, required=True, metavar="DIR", help="the new checkpoint")
    small.add_argument(
        "--captions", type=Path, metavar="FILE.txt", help="all captions it was trained on; other tokens are forgotten"
    )

    whole = commands.add_parser("merge", help="adapters (LoRA) into the weights they belong to")
    whole.set_defaults(run=_merge)
    whole.add_argument("checkpoint", help="the model, or a run that trained adapters of one")
    whole.add_argument(
        "--lora", action="append", default=[], metavar="PATH[:SCALE]", help="further adapters, once for each"
    )
    whole.add_argument("--output", type=Path, required=True, metavar="DIR", help="the new checkpoint")

    folder = commands.add_parser("bundle", help="base model and upsampler into one folder to hand on, with settings")
    folder.set_defaults(run=_bundle)
    folder.add_argument("--checkpoint", metavar="DIR", help="the base model, as for sample.py")
    folder.add_argument("--upsampler", metavar="DIR", help="the upsampler")
    folder.add_argument(
        "--lora", action="append", default=[], metavar="PATH[:SCALE]", help="adapters to merge into the base model"
    )
    folder.add_argument("--output", type=Path, required=True, metavar="DIR", help="the new folder")
    folder.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the stored weights")
    folder.add_argument(
        "--safetensors", action="store_true", help="models as safetensors files, which PyTorch reads too"
    )
    add_sampling_arguments(folder)

    kohya = commands.add_parser("to-kohya", help="adapters (LoRA) to one safetensors file, as they are exchanged")
    kohya.set_defaults(run=_to_kohya)
    kohya.add_argument("checkpoint", help="a run that trained adapters, or one of its steps")
    kohya.add_argument(
        "--output", type=Path, required=True, metavar="FILE.safetensors", help="the new file, which --lora takes too"
    )

    inspect = commands.add_parser("inspect", help="what is in a PyTorch file, or in a checkpoint of glide_jax")
    inspect.set_defaults(run=_inspect)
    _add_source(inspect)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(PUBLISHED)
    parser.add_argument(
        "source", help=f"a PyTorch file (.pt, .pth, .ckpt, ...) or safetensors file, or a published name: {names}"
    )
    parser.add_argument(
        "--options",
        type=Path,
        metavar="FILE.json",
        help="JSON file of options that the tensors do not tell, under the reference's names",
    )
    parser.add_argument(
        "--ema",
        action="store_true",
        help="convert the EMA weights of a file that has both (default: the raw weights)",
    )


def _to_flax(given: argparse.Namespace) -> None:
    source, options = _opened(given)
    architecture, assumed = to_flax(source, given.output, options, ema=given.ema)
    print(f"{architecture.kind} model written to {given.output}{_assumptions(assumed)}")


def _to_torch(given: argparse.Namespace) -> None:
    architecture, weights = to_torch(given.checkpoint, given.output, given.weights, given.dtype)
    print(f"{architecture.kind} model ({weights}) written to {given.output}")


def _shrink(given: argparse.Namespace) -> None:
    architecture, size = shrink(given.checkpoint, given.output, given.captions)
    print(f"{architecture.kind} model of {size / 1e6:.1f} MB written to {given.output}")


def _merge(given: argparse.Namespace) -> None:
    architecture = merge(given.checkpoint, given.lora, given.output)
    print(f"{architecture.kind} model written to {given.output}")


def _to_kohya(given: argparse.Namespace) -> None:
    count = to_kohya(given.checkpoint, given.output)
    print(f"adapters of {count} layers written to {given.output}")


def _bundle(given: argparse.Namespace) -> None:
    base, upsampler, settings = choose(given.checkpoint, given.upsampler, given.lora)
    options = base_options(vars(given), settings), upsampler_options(vars(given), settings)
    usual = flags(base_options({}), upsampler_options({}))
    settings = {name: value for name, value in flags(*options).items() if value != usual[name]}
    check_settings(settings)  # before minutes of loading
    require_new(given.output)
    pipeline = Pipeline.from_checkpoints(base, upsampler, lora=given.lora)
    pipeline.settings = settings
    pipeline.count_evaluations(1)  # refuses steps that the models do not have
    if given.safetensors:
        bundle(pipeline, given.output, given.dtype)
    else:
        pipeline.save_pretrained(given.output, dtype=given.dtype)
    size = sum(file.stat().st_size for file in given.output.rglob("*") if file.is_file())
    print(f"pipeline of {size / 1e6:.1f} MB written to {given.output}")


def _inspect(given: argparse.Namespace) -> None:
    if given.source not in PUBLISHED and (path := own(given.source)) is not None:
        print("\n".join(described(path)))
        return
    source, options = _opened(given)
    arrays = read_state_dict(source.path, ema=given.ema)
    architecture, assumed = architecture_of(source.path, arrays, options)
    for key, array in arrays.items():
        print(f"{array.dtype.name:9} {'x'.join(map(str, array.shape)):16} {key}")
    dtypes = Counter(array.dtype.name for array in arrays.values())
    counted = ", ".join(f"{count} {name} tensors" for name, count in dtypes.items())
    total = sum(array.size for array in arrays.values())
    print(f"{architecture.kind} model, {total:,} parameters in {counted}{_assumptions(assumed)}")
    check_tensors(arrays, architecture, str(source.path))


def _opened(given: argparse.Namespace) -> tuple[Source, Options]:
    source = open_source(given.source)
    print(f"sha256 {source.sha256}  {source.path}")
    return source, {} if given.options is None else read_options(given.options)


def _assumptions(assumed: Options) -> str:
    listed = ", ".join(f"{name} {value}" for name, value in assumed.items())
    return f"; assumed as published: {listed}" if assumed else ""
