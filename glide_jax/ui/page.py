"""The page: prompt and tabs on one side, pictures on the other."""

import html
import inspect
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from glide_jax.errors import GlideError
from glide_jax.ui.following import Shown, Studio, follow
from glide_jax.ui.models import Found
from glide_jax.ui.request import Task, bounds
from glide_jax.ui.settings import settings_panels
from glide_jax.ui.uploads import check_files, from_editor, mask_editor, picture_input

CSS = """
.gradio-container { width: 100% !important; max-width: 1400px !important; margin: 0 auto !important; }
#status { min-height: 3.2em; }
#status p { margin: 0 0 6px; }
#status .done { height: 8px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden; }
#status .done div { height: 100%; background: var(--color-accent); transition: width 0.5s; }
/* Said in words already; and Gradio at times shows it of what was only stopped. */
#status .wrap .error { display: none; }
#pictures .grid-wrap { max-height: none; overflow: hidden; }
.small-pictures img { image-rendering: pixelated; }
@media (max-width: 600px) { #tasks .tab-container button { padding: 0 8px; } }
"""
# Until its turn comes; and where the columns are below each other, the pictures are out of sight of the button.
_WAITING = """() => {
  if (innerWidth < 760) document.getElementById("status").scrollIntoView({behavior: "smooth"});
  return "<p>Waiting for its turn …</p>";
}"""
# What is refused before it is looked at (a bad upload, a full queue) leaves nothing else in the status.
_REFUSED = """status => status.includes("Waiting for its turn") ? "<p>Not drawn.</p>" : status"""
_SMALL = 64
_CACHE_SECONDS = 24 * 3600
_LONGEST_MESSAGE = 500
_INTERNAL = "an internal error occurred; the server's log has it"
_IDLE = "<p>Pictures will appear here.</p>"
_NO_CLIP = (
    "Draws several pictures and keeps those that fit the prompt best, as CLIP sees it. For this, start the app with"
    " `--clip_model ViT-B-32` (any OpenCLIP model), or `--clip TEXT IMAGE --clip_model noised`."
)


def build(studio: Studio, tidy: Callable[[], None]) -> Any:
    """The page as `gr.Blocks`, with its queue; `tidy` is called after each drawing."""
    import gradio as gr  # noqa: PLC0415

    with gr.Blocks(title="glide_jax", analytics_enabled=False, delete_cache=(3600, _CACHE_SECONDS)) as blocks:
        page = _Page(gr, studio, tidy)
        blocks.load(page.found, None, page.models, api_visibility="private", show_progress="hidden")
    blocks.process_api = _guarded(gr, blocks.process_api, blocks.GRADIO_CACHE)
    return blocks.queue(max_size=studio.limits.queue, default_concurrency_limit=1)


def _guarded(gr: Any, process: Callable[..., Awaitable[Any]], folder: str) -> Callable[..., Awaitable[Any]]:
    """Gradio's way from what a client sent to its answer: files are looked at before it, and errors are one line."""

    from pydantic import ValidationError  # noqa: PLC0415

    async def process_api(*args: Any, **named: Any) -> Any:
        try:
            if named.get("iterator") is None:
                check_files(named.get("inputs"), folder)
            return await process(*args, **named)
        except gr.Error as error:
            error.message = " ".join(str(error.message).split())[:_LONGEST_MESSAGE]
            raise
        except ValidationError as error:
            raise gr.Error("a field does not take a value of this kind", print_exception=False) from error
        except Exception as error:
            raise gr.Error(html.escape(_said(error)), print_exception=False) from error

    return process_api


def _said(error: Exception) -> str:
    """What people are told of an error; what nobody expected is for the server's log."""
    if isinstance(error, GlideError):
        return str(error)
    traceback.print_exception(error)
    return _INTERNAL


class _Page:
    """Components, and what happens when they are used; made inside a `gr.Blocks`."""

    def __init__(self, gr: Any, studio: Studio, tidy: Callable[[], None]) -> None:
        self._gr, self._studio, self._tidy = gr, studio, tidy
        self._drawings: list[Any] = []
        gr.Markdown("# GLIDE\nPictures from words.")
        self.models = self._choose_models()
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=340):
                self._fields = self._prompts()
                tabs = self._tabs()
                self._fields |= settings_panels(studio.limits, studio.defaults, has_clip=studio.models.has_clip)
            with gr.Column(scale=1, min_width=340):
                self._results()
        self._connect(tabs)

    def found(self) -> tuple[Any, Any]:
        """Menus of what is there now, so that reloading the page shows new checkpoints."""
        try:
            self._studio.models.search()
        except GlideError as error:
            self._gr.Warning(str(error))
        update = self._gr.update
        return update(choices=_menu(self._studio.models.bases)), update(choices=_menu(self._studio.models.upsamplers))

    def _choose_models(self) -> list[Any]:
        gr, studio = self._gr, self._studio
        with gr.Row():
            base = gr.Dropdown(_menu(studio.models.bases), value=studio.base, label="Base model", min_width=200)
            up = gr.Dropdown(_menu(studio.models.upsamplers), value=studio.upsampler, label="Upsampler", min_width=200)
        working = gr.State((studio.base, studio.upsampler))
        for menu in (base, up):
            menu.input(
                self._switch, [base, up, working], [base, up, working], concurrency_id="models",
                api_visibility="private", show_progress="minimal",
            )  # fmt: skip
        return [base, up]

    def _switch(self, base: str, upsampler: str, working: tuple[str, str]) -> tuple[str, str, tuple[str, str]]:
        """Loads the models chosen; if that fails, those before are chosen again."""
        try:
            if base or upsampler:
                self._studio.models.pipeline(base or None, upsampler or None)
        except GlideError as error:
            self._gr.Warning(html.escape(str(error)), title="Not changed")
            return *working, working
        return base, upsampler, (base, upsampler)

    def _prompts(self) -> dict[str, Any]:
        gr = self._gr
        longest = self._studio.limits.prompt
        prompt = gr.Textbox(label="Prompt", placeholder="What to draw", lines=2, max_length=longest, elem_id="prompt")
        negative = gr.Textbox(
            label="Negative prompt", placeholder="What to stay away from", max_lines=2, max_length=longest
        )
        return {"prompt": prompt, "negative_prompt": negative}

    def _tabs(self) -> dict[Task, tuple[Any, dict[str, Any], Any]]:
        """For each task: its button, its own fields, and the editor of its mask."""
        gr, most = self._gr, self._studio.limits.pixels
        tabs: dict[Task, tuple[Any, dict[str, Any], Any]] = {}
        with gr.Tabs(elem_id="tasks"):
            with gr.Tab("Text"):
                if self._studio.examples:
                    gr.Examples(
                        list(self._studio.examples), self._fields["prompt"], label="Try", api_visibility="private"
                    )
                tabs["draw"] = (self._button("Draw", "draw"), {}, None)
            with gr.Tab("Inpaint"):
                editor = mask_editor(
                    most, label="Upload a picture, then paint over what is to be drawn anew",
                    sources=["upload", "clipboard"], transforms=(), height=420, elem_id="editor",
                    brush=gr.Brush(colors=["#e0409a"], color_mode="fixed", default_size=40),
                )  # fmt: skip
                tabs["inpaint"] = (self._button("Fill in", "inpaint"), {}, editor)
            with gr.Tab("Picture"):
                picture = self._upload("Picture to start from", "init-image")
                strength = gr.Slider(0, 1, 0.6, step=0.01, label="Strength", info="how far to leave the picture")
                tabs["redraw"] = (self._button("Redraw", "redraw"), {"picture": picture, "strength": strength}, None)
            with gr.Tab("Enlarge"):
                picture = self._upload("Picture to enlarge; the prompt may say what it shows", "small-image")
                tabs["enlarge"] = (self._button("Enlarge", "enlarge"), {"picture": picture}, None)
            with gr.Tab("Best of"):
                self._rank_tab(tabs)
        return tabs

    def _rank_tab(self, tabs: dict[Task, tuple[Any, dict[str, Any], Any]]) -> None:
        gr, studio = self._gr, self._studio
        if studio.scorer is None:
            gr.Markdown(_NO_CLIP)
            return
        fields = {}
        with gr.Row():
            for name, label in (("candidates", "Draw"), ("top_k", "Keep the best")):
                bound = bounds(studio.limits)[name]
                fields[name] = gr.Slider(bound.low, bound.high, bound.default, step=1, label=label, min_width=160)
        gr.Markdown(f"Ranked by {studio.scorer.name}.")
        tabs["rank"] = (self._button("Draw and rank", "rank"), fields, None)

    def _upload(self, label: str, elem_id: str) -> Any:
        return picture_input(
            self._studio.limits.pixels, label=label, sources=["upload", "clipboard"], height=280, elem_id=elem_id
        )

    def _button(self, text: str, task: Task) -> Any:
        return self._gr.Button(text, variant="primary", elem_id=f"go-{task}")

    def _results(self) -> None:
        gr = self._gr
        self._status = gr.HTML(_IDLE, elem_id="status")
        self._gallery = gr.Gallery(
            label="Pictures", columns=2, object_fit="contain", height="auto", interactive=False, elem_id="pictures",
            buttons=["download", "fullscreen"], format="png",
        )  # fmt: skip
        with gr.Row():
            self._stop = gr.Button("Stop", elem_id="stop", min_width=100)
            self._download = gr.DownloadButton("Download", interactive=False, elem_id="download", min_width=100)
        with gr.Row():
            self._seed = gr.Textbox(
                label="Seed of these pictures", interactive=False, elem_id="seed-used", min_width=140
            )
            self._again = gr.Button("Use this seed again", elem_id="seed-again", min_width=140)

    def _connect(self, tabs: dict[Task, tuple[Any, dict[str, Any], Any]]) -> None:
        gr = self._gr
        outputs = [self._status, self._seed, self._gallery, self._download]
        common = dict(zip(("base", "upsampler"), self.models, strict=True)) | self._fields
        for field in [*common.values(), *(field for _, own, _ in tabs.values() for field in own.values())]:
            if not isinstance(field, gr.Image):
                # Ours see all that is sent; Gradio's fail at values of another type.
                field.preprocess = lambda sent: sent
        drawings = []
        for task, (button, own, editor) in tabs.items():
            fields = common | own | ({} if editor is None else {"editor": editor})
            triggers = [button.click] + ([self._fields["prompt"].submit] if task == "draw" else [])
            gr.on(triggers, None, None, self._status, js=_WAITING, api_visibility="private", show_progress="hidden")
            drawings.append(gr.on(
                triggers, self._drawer(task, list(fields)), list(fields.values()), outputs, api_name=task,
                concurrency_id="drawing", concurrency_limit=1, show_progress="minimal", show_progress_on=self._status,
            ))  # fmt: skip
            drawings[-1].failure(None, self._status, self._status, js=_REFUSED, show_progress="hidden")
        # What a drawing still sends before it is cancelled must not come after this.
        self._stop.click(None, cancels=drawings, queue=False, api_visibility="private").then(
            lambda: "<p>Stopped.</p>", None, self._status, queue=False, api_visibility="private", show_progress="hidden"
        )
        self._again.click(
            lambda seed: seed, self._seed, self._fields["seed"], queue=False, api_visibility="private",
            show_progress="hidden",
        )  # fmt: skip

    def _drawer(self, task: Task, names: Sequence[str]) -> Callable[..., Iterator[tuple[Any, ...]]]:
        gr = self._gr

        def drawn(*sent: Any) -> Iterator[tuple[Any, ...]]:
            values = dict(zip(names, sent, strict=True))
            try:
                if "editor" in values:
                    values["picture"], values["mask"] = from_editor(values.pop("editor"))
                for shown in follow(self._studio, task, values):
                    yield self._updates(shown)
            except Exception as error:
                said = html.escape(_said(error))
                # The message passes; this stays.
                yield f"<p>Not drawn: {said}</p>", gr.skip(), gr.skip(), gr.skip()
                raise gr.Error(said, print_exception=False) from error
            finally:
                self._tidy()

        # What clients of the API see: names, all of which may be left out.
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind, default=None) for name in names]
        drawn.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return drawn

    def _updates(self, shown: Shown) -> tuple[Any, ...]:
        gr = self._gr
        gallery = gr.skip()
        if shown.pictures is not None:
            gallery = gr.update(
                value=list(shown.pictures),
                columns=1 if len(shown.pictures) == 1 else 2,
                elem_classes=["small-pictures"] if shown.side <= _SMALL else [],
            )
        download = gr.update(value=shown.download, interactive=shown.download is not None)
        return shown.status, str(shown.seed), gallery, download


def _menu(found: Sequence[Found]) -> list[tuple[str, str]]:
    return [("none", ""), *((each.label, each.name) for each in found)]
