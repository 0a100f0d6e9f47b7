"""The command line of `app.py`."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glide_jax.cache import keep_compiled_programs
from glide_jax.errors import GlideError
from glide_jax.evaluate import Scorer
from glide_jax.evaluate.cli import NOISED, scorer_loader
from glide_jax.sample import SHIPPED_SETTINGS, LoadedClip, shipped_models
from glide_jax.sample.cli import read_prompts
from glide_jax.ui.following import Studio
from glide_jax.ui.models import Models
from glide_jax.ui.request import Limits
from glide_jax.ui.uploads import FILE_SIZE

_EXAMPLES = """\
examples:
  python app.py
  python app.py --checkpoint glide/base --upsampler glide/upsample
  python app.py --models runs --models glide --clip_model ViT-B-32
"""
_LIMITS = Limits()
_CAPTIONS = {
    True: ("a 3d render of a banana", "a 3d render of a turtle", "a flat icon of a strawberry",
           "a shaded drawing of a tangerine"),
    False: ("a red bicycle leaning on a brick wall", "an oil painting of a harbour at dawn",
            "a photograph of a hedgehog in autumn leaves"),
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """All options of `app.py`."""
    parse = argparse.ArgumentParser(
        prog="app.py",
        description="Draws in the browser, with trained or converted GLIDE models.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_models(parse)
    _add_limits(parse)
    add = parse.add_argument_group("server").add_argument
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets others in (default: %(default)s)")
    add("--port", type=int, default=7860, help="(default: %(default)s)")
    return parse


def _add_models(parse: argparse.ArgumentParser) -> None:
    add = parse.add_argument_group("models").add_argument
    add("--checkpoint", metavar="DIR", action="append", default=[],
        help="base model, as for sample.py; may be given several times")  # fmt: skip
    add("--upsampler", metavar="DIR", action="append", default=[], help="the same for upsamplers")
    add("--models", metavar="FOLDER", action="append", default=[], help="folder to search for more of both")
    add("--clip_model", metavar="NAME[/TAG]",
        help="what ranks pictures, as for evaluate.py: an OpenCLIP model, or noised (default: none)")  # fmt: skip
    add("--clip_checkpoint", type=Path, metavar="FILE", help="weights of --clip_model, in place of a download")
    add("--clip", nargs=2, metavar=("TEXT", "IMAGE"), help="both towers of the noised CLIP, to guide or rank by")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="compute type (default: %(default)s)")
    add("--examples", type=Path, metavar="FILE", help="text file with captions to offer, one a line")


def _add_limits(parse: argparse.ArgumentParser) -> None:
    add = parse.add_argument_group("limits").add_argument
    add("--batch_size", type=int, default=4, help="pictures drawn at once (default: %(default)s)")
    add("--max_images", type=int, default=_LIMITS.num_images, help="pictures a request (default: %(default)s)")
    add("--max_candidates", type=int, default=_LIMITS.candidates, help="pictures to rank (default: %(default)s)")
    add("--max_steps", type=int, default=_LIMITS.num_steps, help="steps of a request (default: %(default)s)")
    add("--max_queue", type=int, default=_LIMITS.queue, help="requests waiting (default: %(default)s)")
    add("--max_loaded", type=int, default=3, help="models kept in memory (default: %(default)s)")


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the page until Ctrl-C.

    Raises:
        GlideError: gradio is missing, nothing to draw with, a model that cannot be loaded, a port in use.
    """
    args = parser().parse_args(argv)
    limits = _limits(args)
    _require_gradio()
    _set_defaults(args)
    if args.clip_model not in (None, NOISED):
        # torch holds the scorer on the same device: JAX must not take most of its memory at once.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    keep_compiled_programs()
    studio = make_studio(args, limits)
    serve(studio, args.host, args.port)
    return 0


def make_studio(args: argparse.Namespace, limits: Limits) -> Studio:
    """Finds the models, loads the first ones; raises `GlideError` as `main`."""
    scorer = _scorer(args)
    models = Models(
        [*args.checkpoint, *args.upsampler], args.models, dtype=args.dtype, batch_size=args.batch_size,
        clip=None if args.clip is None else LoadedClip.from_checkpoints(*args.clip), kept=args.max_loaded,
    )  # fmt: skip
    bases, upsamplers = models.bases, models.upsamplers
    base = next(iter(bases), None)
    wanted = upsamplers if args.upsampler or base is None else []
    fitting = [up for up in wanted if base is None or up.enlarges == base.image_size]
    if base is None and not upsamplers:
        raise GlideError(f"no model in {', '.join(map(str, args.models))}: give --checkpoint DIR")
    names = (base.name if base else "", fitting[0].name if fitting else "")
    models.pipeline(names[0] or None, names[1] or None)
    return Studio(models, *names, limits, scorer, _captions(args), SHIPPED_SETTINGS if args.emoji else {})


def serve(studio: Studio, host: str, port: int, *, block: bool = True) -> Any:
    """Starts the server, and by default stays until Ctrl-C; returns the `gr.Blocks`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr  # noqa: PLC0415

    from glide_jax.ui.page import CSS, build  # noqa: PLC0415

    blocks = build(studio)
    theme = gr.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    try:
        _, url, _ = blocks.launch(
            server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, ssr_mode=False,
            theme=theme, css=CSS, footer_links=["api", "settings"], run_history=False, max_file_size=FILE_SIZE,
            enable_monitoring=False, show_error=False,
        )  # fmt: skip
    except OSError as error:
        raise GlideError(f"cannot listen on {host}:{port}: is it in use? give another --port") from error
    print(f"open {url} (Ctrl-C stops)", flush=True)
    if block:
        blocks.block_thread()
    return blocks


def _require_gradio() -> None:
    try:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        import gradio  # noqa: F401, PLC0415
    except ImportError as error:
        raise GlideError("app.py needs gradio: install the extra with `uv sync --extra app`") from error


def _set_defaults(args: argparse.Namespace) -> None:
    """With nothing given: the models in `checkpoints/emoji`."""
    args.emoji = not (args.checkpoint or args.upsampler or args.models)
    if args.emoji:
        args.checkpoint, args.upsampler = ([path] for path in shipped_models())


def _limits(args: argparse.Namespace) -> Limits:
    for name in ("batch_size", "max_images", "max_candidates", "max_steps", "max_queue", "max_loaded"):
        if getattr(args, name) < 1:
            raise GlideError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if not 0 < args.port < 65536:
        raise GlideError(f"--port must be from 1 to 65535, not {args.port}")
    return Limits(
        num_images=args.max_images, candidates=args.max_candidates, num_steps=args.max_steps, queue=args.max_queue
    )


def _scorer(args: argparse.Namespace) -> Scorer | None:
    if args.clip_model is None:
        return None
    return scorer_loader(args.clip_model, args.clip_checkpoint, args.clip, args.batch_size, print)()


def _captions(args: argparse.Namespace) -> Sequence[str]:
    return read_prompts(args.examples) if args.examples is not None else _CAPTIONS[args.emoji]
