"""The command line of `app.py`, and the server."""

import argparse
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from glide_jax.compute import COMPUTE_TYPES, HELP
from glide_jax.errors import GlideError, install
from glide_jax.evaluate import NOISED, scorer_loader
from glide_jax.files import keep_compiled_programs, lines, read_text
from glide_jax.options import Options, Parser, add_arguments, build, given, option
from glide_jax.sample import LoadedClip, choose
from glide_jax.ui.guard import Guard, Hosts, is_loopback, is_name
from glide_jax.ui.models import Models, Unloadable
from glide_jax.ui.request import SCALES, Limits
from glide_jax.ui.service import Service
from glide_jax.ui.uploads import FILE_SIZE, bound_folder

_EXAMPLES = """\
examples:
  python app.py
  python app.py --checkpoint models/base --upsampler models/upsample
  python app.py --models runs --models models --clip_model ViT-B-32
"""
_SESSIONS = 200  # browser tabs and clients whose choices are remembered, at 0.2 MB each
_PROMPTS = {
    True: ("a 3d render of a banana", "a 3d render of a turtle", "a flat icon of a strawberry",
           "a shaded drawing of a tangerine"),
    False: ("a red bicycle leaning on a brick wall", "an oil painting of a harbour at dawn",
            "a photograph of a hedgehog in autumn leaves"),
}  # fmt: skip


@dataclass(frozen=True)
class Server(Options):
    """Where the page is served, and to whom: users with passwords, or everyone if `accounts` is None."""

    PREFIX: ClassVar[str] = "--"

    host: str = "127.0.0.1"
    port: Annotated[int, option("port to listen on", low=1, high=65535)] = 7860
    allowed_host: tuple[str, ...] = ()
    accounts: tuple[tuple[str, str], ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.allowed_host:
            if not is_name(name):
                raise GlideError(f"--allowed_host {name}: must be a name as glide.example, without scheme and port")


def parser() -> argparse.ArgumentParser:
    """All options of `app.py`."""
    parse = Parser(
        prog="app.py",
        description="Generates images in the browser, with trained or converted GLIDE models.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parse.add_argument_group("models").add_argument
    add("--checkpoint", metavar="DIR", action="append", default=[],
        help="base model or pipeline, as for sample.py; may be given several times")  # fmt: skip
    add("--upsampler", metavar="DIR", action="append", default=[], help="the same for upsamplers")
    add("--models", metavar="FOLDER", action="append", default=[],
        help="folder to search for more of both, and for adapters")  # fmt: skip
    add("--lora", metavar="PATH[:SCALE]", action="append", default=[],
        help="adapters (LoRA) of a base model, as for sample.py; may be given several times")  # fmt: skip
    add("--clip_model", metavar="NAME[/TAG]",
        help="model that ranks images, as for evaluate.py: an OpenCLIP model, or noised (default: none)")  # fmt: skip
    add("--clip_checkpoint", type=Path, metavar="FILE", help="weights of --clip_model, instead of a download")
    add("--clip", nargs=2, metavar=("TEXT", "IMAGE"), help="both towers of the noised CLIP, for guidance or ranking")
    add("--dtype", default="float32", choices=COMPUTE_TYPES, help=f"{HELP} (default: %(default)s)")
    add("--examples", type=Path, metavar="FILE", help="text file with example prompts, one per line")
    add_arguments(parse.add_argument_group("limits"), Limits)
    server = parse.add_argument_group("server")
    server.add_argument("--host", type=lambda host: host.strip("[]"),
        help="address to listen on; 0.0.0.0 lets others in (default: 127.0.0.1)")  # fmt: skip
    add_arguments(server, Server, only=("port",))
    server.add_argument("--allowed_host", metavar="NAME", action="append", default=[],
        help="another host name of the page, such as a proxy's; may be given several times")  # fmt: skip
    server.add_argument(
        "--auth", type=Path, metavar="FILE", help="text file with the users of the page, one USER:PASSWORD per line"
    )
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the page until Ctrl-C.

    Raises:
        GlideError: gradio is missing, there is no model or it cannot be loaded, options are invalid, or the port is in
            use.
    """
    args = parser().parse_args(argv)
    limits = build(Limits, given(vars(args), Limits))
    accounts = {} if args.auth is None else {"accounts": read_accounts(args.auth)}
    server = build(Server, given(vars(args), Server) | accounts)
    require_port(server)
    with _own_folder() as folder:
        _require_gradio()
        if args.clip_model not in (None, NOISED):
            # torch may hold the scorer on the same device, so JAX must not preallocate most of its memory.
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        keep_compiled_programs()
        service = _service(args, limits)
        if server.accounts is None and not is_loopback(server.host):
            print("warning: whoever reaches this machine can use the page: give --auth FILE", file=sys.stderr)
        serve(service, server, folder)
    return 0


def _service(args: argparse.Namespace, limits: Limits) -> Service:
    """Finds the models, by default the bundled ones, and loads the first."""
    bundled = not (args.checkpoint or args.upsampler or args.models)
    chosen = [choose(None, path) for path in args.upsampler] + [choose(path, None) for path in args.checkpoint]
    if bundled:
        chosen = [choose(None, None)]
    checkpoints = [each.base for each in chosen if each.base is not None]
    upsamplers = [each.upsampler for each in chosen if each.upsampler is not None]
    prompts = _PROMPTS[bundled] if args.examples is None else lines(read_text(args.examples, "--examples"))
    load_scorer = None
    if args.clip_model is not None:
        load_scorer = scorer_loader(args.clip_model, args.clip_checkpoint, args.clip, limits.batch_size, print)
    models = Models(
        [*checkpoints, *upsamplers], args.models, dtype=args.dtype, batch_size=limits.batch_size,
        clip=None if args.clip is None else LoadedClip.from_checkpoints(*args.clip), kept=limits.max_loaded,
        lora=args.lora,
    )  # fmt: skip
    base = next(iter(models.bases), None)
    wanted = models.upsamplers if upsamplers or base is None else []
    fitting = [up for up in wanted if base is None or up.enlarges == base.image_size]
    if base is None and not models.upsamplers:
        raise GlideError(f"no model in {', '.join(map(str, args.models))}: give --checkpoint DIR")
    upsampler = fitting[0] if fitting else None
    names = (base.name if base else "", upsampler.name if upsampler else "")
    adapters = _adapters(models, names[0])
    models.pipeline(names[0] or None, names[1] or None)
    scorer = None if load_scorer is None else load_scorer()
    service = Service(models, *names, limits, scorer, prompts, adapters)
    settings = models.settings(*service.start)
    if unknown := sorted(settings.keys() - service.fields.keys() - {"guidance_interval"}):
        print(f"warning: the page has no field for {', '.join(unknown)}, which the pipeline sets", file=sys.stderr)
    return service


def _adapters(models: Models, base: str) -> tuple[str, ...]:
    """The adapters from --lora that belong to the first base model, selected together with it.

    Raises:
        GlideError: there are too many, or some belong to none of the base models.
    """
    given = [each for each in models.adapters if each.given]
    fitting = [each.name for each in models.fitting(base) if each.given]
    if len(fitting) > len(SCALES):
        raise GlideError(f"--lora is given {len(fitting)} times: at most {len(SCALES)} are added at once")
    if given and not base:
        raise GlideError("--lora is for a base model: give --checkpoint DIR")
    unused = {each.name for each in given} - set(fitting)
    for other in models.bases:
        if unused:
            with contextlib.suppress(Unloadable):
                unused -= {each.name for each in models.fitting(other.name)}
    if unused:
        bases = ", ".join(found.name for found in models.bases)
        raise GlideError(f"--lora {', '.join(sorted(unused))}: trained on other weights than those of {bases}")
    return tuple(fitting)


def read_accounts(path: Path) -> tuple[tuple[str, str], ...]:
    """Users and passwords, one pair per line of a file: command lines are visible to all users of a machine.

    Raises:
        GlideError: the file cannot be read, or a line is not of this form.
    """
    try:
        entries = lines(read_text(path, "--auth"))
    except GlideError as error:
        shown = "FILE" if ":" in str(path) else path  # the line may contain a password
        raise GlideError(f"--auth {shown}: not a text file with lines of USER:PASSWORD") from error
    accounts = []
    for number, line in enumerate(entries, 1):
        user, _, password = (part.strip() for part in line.partition(":"))
        if not user or not password:
            raise GlideError(f"--auth {path}: entry {number} is not USER:PASSWORD")
        accounts.append((user, password))
    if not accounts:
        raise GlideError(f"--auth {path}: it names nobody")
    return tuple(accounts)


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    """A private folder for uploads and images, removed at the end."""
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
        # Partial uploads of disconnected clients stay among Python's temporary files.
        tempfile.tempdir = str(Path(folder.name, "unfinished"))
        try:
            yield Path(folder.name)
        finally:
            os.environ["GRADIO_TEMP_DIR"], tempfile.tempdir = before


def _require_gradio() -> None:
    try:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        import gradio  # noqa: F401, PLC0415
    except ImportError as error:
        raise GlideError(f"app.py needs gradio: {install('app')}") from error


def require_port(server: Server) -> None:
    """Raises `GlideError` if the port is in use, before models are loaded, which may take minutes."""
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    try:
        socket.create_server((server.host, server.port), family=family).close()
    except OSError as error:
        raise _unavailable(server) from error


def _unavailable(server: Server) -> GlideError:
    return GlideError(f"cannot listen on {server.host}:{server.port}: is it in use? give another --port")


def serve(service: Service, server: Server, folder: Path) -> None:
    """Serves a page until Ctrl-C or SIGTERM; the oldest files in `folder` are removed when it grows too large.

    Raises:
        GlideError: the port is in use.
    """
    import gradio as gr  # noqa: PLC0415
    from starlette.middleware import Middleware  # noqa: PLC0415

    from glide_jax.ui.images_api import PATH, ImagesApi  # noqa: PLC0415
    from glide_jax.ui.page import CSS, build_page  # noqa: PLC0415

    tidy = partial(bound_folder, folder)
    blocks = build_page(service, tidy)
    theme = gr.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    guard = Middleware(Guard, hosts=Hosts(server.host, server.allowed_host), tidy=tidy)
    try:
        application, url, _ = blocks.launch(
            server_name=f"[{server.host}]" if ":" in server.host else server.host, server_port=server.port, share=False,
            quiet=True, prevent_thread_lock=True, ssr_mode=False, theme=theme, css=CSS,
            footer_links=["api", "settings"], run_history=False, max_file_size=FILE_SIZE, enable_monitoring=False,
            show_error=False, auth=server.accounts and list(server.accounts), app_kwargs={"middleware": [guard]},
            state_session_capacity=_SESSIONS,
        )  # fmt: skip
    except OSError as error:
        raise _unavailable(server) from error
    application.add_route(PATH, ImagesApi(service, server.accounts).answer, methods=["POST"])
    print(f"open {url} (Ctrl-C stops)", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    blocks.block_thread()
