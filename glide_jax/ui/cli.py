"""The command line of `app.py`."""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from glide_jax.cache import keep_compiled_programs
from glide_jax.errors import GlideError
from glide_jax.evaluate import Scorer
from glide_jax.evaluate.cli import NOISED, scorer_loader
from glide_jax.files import lines, read_text
from glide_jax.sample import SHIPPED_SETTINGS, LoadedClip, shipped_models
from glide_jax.sample.cli import read_prompts
from glide_jax.ui.following import Studio
from glide_jax.ui.guard import Guard, Hosts, is_loopback, is_name
from glide_jax.ui.models import Models
from glide_jax.ui.request import Limits
from glide_jax.ui.uploads import FILE_SIZE, bound_folder

_EXAMPLES = """\
examples:
  python app.py
  python app.py --checkpoint glide/base --upsampler glide/upsample
  python app.py --models runs --models glide --clip_model ViT-B-32
"""
_LIMITS = Limits()
_SESSIONS = 200  # browser tabs and programs whose choices are remembered: 0.2 MB each
Accounts = list[tuple[str, str]]
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
    add("--allowed_host", metavar="NAME", action="append", default=[],
        help="further name under which browsers find the page, as a proxy's; may be given several times")  # fmt: skip
    add("--auth", type=Path, metavar="FILE", help="who may use the page: a text file with USER:PASSWORD, one a line")
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
    args.host = args.host.strip("[]")
    limits = _limits(args)
    accounts = None if args.auth is None else read_accounts(args.auth)
    with _own_folder() as folder:
        _run(args, limits, accounts, folder)
    return 0


def _run(args: argparse.Namespace, limits: Limits, accounts: Accounts | None, folder: Path) -> None:
    _require_gradio()
    _set_defaults(args)
    if args.clip_model not in (None, NOISED):
        # torch holds the scorer on the same device: JAX must not take most of its memory at once.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    keep_compiled_programs()
    studio = make_studio(args, limits)
    if accounts is None and not is_loopback(args.host):
        print("warning: whoever reaches this machine can use the page: give --auth FILE", file=sys.stderr)
    serve(studio, args, accounts, folder)


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    """Where uploads and pictures go; nobody else uses it, and it is removed at the end."""
    before = os.environ.get("GRADIO_TEMP_DIR", ""), tempfile.tempdir
    parent = Path(before[0] or tempfile.gettempdir())
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="glide_jax-", dir=parent, ignore_cleanup_errors=True)
        for name in ("files", "unfinished"):
            Path(folder.name, name).mkdir()
    except OSError as error:
        raise GlideError(f"cannot write {parent}: {error.strerror}; GRADIO_TEMP_DIR names another folder") from error
    with folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder.name, "files"))
        # What is received in part when a client goes stays among Python's temporary files.
        tempfile.tempdir = str(Path(folder.name, "unfinished"))
        try:
            yield Path(folder.name)
        finally:
            os.environ["GRADIO_TEMP_DIR"], tempfile.tempdir = before


def read_accounts(path: Path) -> Accounts:
    """Users and passwords, one pair a line of a file: a command line can be read by all users of a machine.

    Raises:
        GlideError: the file cannot be read, or a line is something else.
    """
    try:
        entries = lines(read_text(path, "--auth"))
    except GlideError as error:
        shown = "FILE" if ":" in str(path) else path  # it may be a password
        raise GlideError(f"--auth {shown}: not a text file with lines of USER:PASSWORD") from error
    pairs = [tuple(part.strip() for part in line.split(":", 1)) for line in entries]
    for number, pair in enumerate(pairs, 1):
        if len(pair) < 2 or not all(pair):
            raise GlideError(f"--auth {path}: entry {number} is not USER:PASSWORD")
    if not pairs:
        raise GlideError(f"--auth {path}: nobody is named there")
    return [(user, password) for user, password in pairs]


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


def serve(studio: Studio, args: argparse.Namespace, accounts: Accounts | None, folder: Path) -> None:
    """Serves a page until Ctrl-C or SIGTERM.

    Args:
        studio: what the page offers.
        args: where to listen, and under which names.
        accounts: who may use it; None is everyone.
        folder: what it writes is below; the oldest goes when that is too much.

    Raises:
        GlideError: the port is in use.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr  # noqa: PLC0415
    from starlette.middleware import Middleware  # noqa: PLC0415

    from glide_jax.ui.page import CSS, build  # noqa: PLC0415

    tidy = partial(bound_folder, folder)
    blocks = build(studio, tidy)
    theme = gr.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    guard = Middleware(Guard, hosts=Hosts(args.host, args.allowed_host), tidy=tidy)
    name = f"[{args.host}]" if ":" in args.host else args.host
    try:
        _, url, _ = blocks.launch(
            server_name=name, server_port=args.port, share=False, quiet=True, prevent_thread_lock=True, ssr_mode=False,
            theme=theme, css=CSS, footer_links=["api", "settings"], run_history=False, max_file_size=FILE_SIZE,
            enable_monitoring=False, show_error=False, auth=accounts, app_kwargs={"middleware": [guard]},
            state_session_capacity=_SESSIONS,
        )  # fmt: skip
    except OSError as error:
        raise GlideError(f"cannot listen on {args.host}:{args.port}: is it in use? give another --port") from error
    print(f"open {url} (Ctrl-C stops)", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    blocks.block_thread()


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
    for name in args.allowed_host:
        if not is_name(name):
            raise GlideError(f"--allowed_host {name}: must be a name such as glide.example, without scheme and port")
    return Limits(
        num_images=args.max_images, candidates=args.max_candidates, num_steps=args.max_steps, queue=args.max_queue
    )


def _scorer(args: argparse.Namespace) -> Scorer | None:
    if args.clip_model is None:
        return None
    return scorer_loader(args.clip_model, args.clip_checkpoint, args.clip, args.batch_size, print)()


def _captions(args: argparse.Namespace) -> Sequence[str]:
    return read_prompts(args.examples) if args.examples is not None else _CAPTIONS[args.emoji]
