"""The page: prompt, tabs and settings on one side, images on the other."""

import html
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from glide_jax.ui.grids import example_counts, examples, options_to_vary, values_to_show
from glide_jax.ui.menus import Menus
from glide_jax.ui.request import LONGEST_PROMPT, SCALES, Choice, Task
from glide_jax.ui.service import Service, Shown, follow, said
from glide_jax.ui.settings import full_label, setting, settings_panels
from glide_jax.ui.uploads import bound_ahead, check_files, open_edited, open_uploaded

CSS = """
.gradio-container { width: 100% !important; max-width: 1400px !important; margin: 0 auto !important; }
#status { min-height: 3.2em; }
#status p { margin: 0 0 6px; }
#status .done { height: 8px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden; }
#status .done div { height: 100%; background: var(--color-accent); transition: width 0.5s; }
/* Said in words already; and Gradio at times shows it of what was only stopped. */
#status .wrap .error { display: none; }
#images .grid-wrap { max-height: none; overflow: hidden; }
.small-images img { image-rendering: pixelated; }
#tasks .tab-container button { padding: 0 8px; }
"""
# Shown until the request's turn comes; in a narrow window, the images are out of sight below the button.
_QUEUED = """() => {
  if (innerWidth < 760) document.getElementById("status").scrollIntoView({behavior: "smooth"});
  return "<p>Queued…</p>";
}"""
# Requests refused early (a file that was not uploaded, a full queue) leave nothing else in the status.
_REFUSED = """status => status.includes("Queued…") ? "<p>Failed: the request was refused.</p>" : status"""
_SMALL = 64
_CACHE_SECONDS = 24 * 3600
_LONGEST_MESSAGE = 500
_SOURCES = ("upload", "clipboard")
_PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
_NO_CLIP = (
    "Generates several images and keeps those that fit the prompt best, as CLIP sees it. For this, start the app with"
    " `--clip_model ViT-B-32` (any OpenCLIP model), or `--clip TEXT IMAGE --clip_model noised`."
)
_INPAINTS = 'For base models marked "inpainting" in the menu.'
_NO_INPAINTING = "None of these base models can inpaint: start the app with one that can (`--checkpoint DIR`)."


def build_page(service: Service, tidy: Callable[[], None]) -> Any:
    """The page as `gr.Blocks`, with its queue; `tidy` is called after each request."""
    import gradio as gr  # noqa: PLC0415

    with _blocks(gr)(title="glide_jax", analytics_enabled=False, delete_cache=(3600, _CACHE_SECONDS)) as blocks:
        page = _Page(gr, service, tidy)
        page.menus.refresh_on(blocks.load)
    return blocks.queue(max_size=service.limits.max_queue, default_concurrency_limit=1)


def _blocks(gr: Any) -> type:
    from pydantic import ValidationError  # noqa: PLC0415

    class Blocks(gr.Blocks):
        """Checks the files in a client's message before gradio does, and turns errors into one line."""

        async def process_api(self, *args: Any, **named: Any) -> Any:
            try:
                if named.get("iterator") is None:
                    check_files(named.get("inputs"), self.GRADIO_CACHE)
                return await super().process_api(*args, **named)
            except gr.Error as error:
                error.message = " ".join(str(error.message).split())[:_LONGEST_MESSAGE]
                raise
            except ValidationError as error:
                raise gr.Error("a field does not take a value of this kind", print_exception=False) from error
            except Exception as error:
                raise gr.Error(_shown(error), print_exception=False) from error

    return Blocks


def _shown(error: Exception) -> str:
    """The error in one line of HTML text; quotes stay as they are, for clients that are no browsers."""
    return html.escape(said(error), quote=False)


# A task's own components: its button, and fields by the names that clients use.
_Tab = tuple[Any, dict[str, Any]]


class _Page:
    """The components and their events, made inside a `gr.Blocks`."""

    def __init__(self, gr: Any, service: Service, tidy: Callable[[], None]) -> None:
        self._gr, self._service, self._tidy = gr, service, tidy
        gr.Markdown("# GLIDE\nText to image.")
        self.menus = Menus(gr, service)
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=340):
                self._fields = dict(self.menus.fields)
                for name, label in (("prompt", "Prompt"), ("negative_prompt", "Negative prompt: what to avoid")):
                    lines = 2 if name == "prompt" else 1
                    self._fields[name] = gr.Textbox(
                        "", label=label, lines=lines, max_length=LONGEST_PROMPT, elem_id=name
                    )
                tabs = self._tabs()
                settings = settings_panels(gr, service.fields, has_clip=service.models.has_clip)
                self._fields |= settings
            with gr.Column(scale=1, min_width=340):
                self._results()
        self._connect(tabs)
        self._show_examples(*self.menus.connect(settings), tabs["compare"][1])

    def _tabs(self) -> dict[Task, _Tab]:
        gr, own = self._gr, self._service.fields
        tabs: dict[Task, _Tab] = {}
        with gr.Tabs(elem_id="tasks"):
            with gr.Tab("Text to image"):
                if examples := list(self._service.examples):
                    gr.Examples(examples, self._fields["prompt"], label="Try", api_visibility="private")
                tabs["draw"] = self._tab("Generate", "draw")
            with gr.Tab("Inpaint"):
                able = any(found.inpaints for found in self._service.models.bases)
                gr.Markdown(_INPAINTS if able else _NO_INPAINTING)
                self._editor = gr.ImageEditor(
                    type="pil", format="png", label="Upload an image, then paint over what to inpaint", layers=False,
                    sources=_SOURCES, transforms=(), height=420, elem_id="editor",
                    brush=gr.Brush(colors=["#e0409a"], color_mode="fixed", default_size=40),
                )  # fmt: skip
                bound_ahead(self._editor)
                tabs["inpaint"] = self._tab("Inpaint", "inpaint", editor=self._editor)
            with gr.Tab("Image to image"):
                picture = self._upload("Image to start from", "init-image")
                tabs["redraw"] = self._tab("Generate", "redraw", picture=picture, strength=setting(gr, own["strength"]))
            with gr.Tab("Upscale"):
                picture = self._upload("Image to upscale; the prompt may say what it shows", "small-image")
                tabs["enlarge"] = self._tab("Upscale", "enlarge", picture=picture)
            with gr.Tab("Best of"):
                if (scorer := self._service.scorer) is None:
                    gr.Markdown(_NO_CLIP)
                else:
                    with gr.Row():
                        counts = {name: setting(gr, own[name]) for name in ("candidates", "top_k")}
                    gr.Markdown(f"Ranked by {scorer.name}.")
                    tabs["rank"] = self._tab("Generate and rank", "rank", **counts)
            with gr.Tab("X/Y grid"):
                tabs["compare"] = self._tab("Generate grid", "compare", **self._axes())
        return tabs

    def _axes(self) -> dict[str, Any]:
        """The fields for a grid's options and values."""
        gr, known = self._gr, self._service.fields
        names = options_to_vary(known, has_clip=self._service.models.has_clip)
        if not self._service.models.adapters:
            names = [name for name in names if name not in SCALES]
        most = self._service.limits.max_images
        gr.Markdown(
            f"One image of the prompt for each value, or each pair of values, from the same noise; at most {most}."
            " All other settings but the number of images hold for each."
        )
        made: dict[str, Any] = {}
        across, _ = example_counts(most)
        for side, where, option in (("x", "from left to right", "guidance_scale"), ("y", "from top to bottom", "")):
            menu = [("none", "")] * (side == "y") + [(full_label(name), name) for name in names]
            values = examples(option, known, across) if option else ""
            with gr.Row():
                made[f"{side}_option"] = gr.Dropdown(
                    menu, value=option, label=f"{side.upper()}: {where}", info="what is varied", min_width=200
                )
                made[f"{side}_values"] = gr.Textbox(
                    values, label=f"{side.upper()} values", info="separated by commas", max_lines=1, min_width=200,
                    elem_id=f"{side}-values",
                )  # fmt: skip
        return made

    def _show_examples(self, switched: Any, choice: Any, axes: Mapping[str, Any]) -> None:
        """Fills in example values for each selected option, and updates them when the models change."""
        gr, service = self._gr, self._service
        fields = [axes[name] for name in ("x_option", "x_values", "y_option", "y_values")]
        shown, counts = gr.State([axes["x_values"].value, ""]), example_counts(service.limits.max_images)

        def show(chosen: Choice, before: list[str], *sent: Any) -> list[Any]:
            known = service.fields_of(chosen)
            sides = zip(sent[::2], sent[1::2], before, counts, strict=True)
            now = [values_to_show(option, typed, old, known, count) for option, typed, old, count in sides]
            return [now, *now]

        how = {"inputs": [choice, shown, *fields], "outputs": [shown, axes["x_values"], axes["y_values"]],
               "preprocess": False, "queue": False, **_PRIVATE}  # fmt: skip
        gr.on([axes["x_option"].input, axes["y_option"].input], show, trigger_mode="always_last", **how)
        switched.then(show, **how)

    def _upload(self, label: str, elem_id: str) -> Any:
        return self._gr.Image(label=label, sources=_SOURCES, height=280, elem_id=elem_id)

    def _tab(self, text: str, task: Task, **fields: Any) -> _Tab:
        return self._gr.Button(text, variant="primary", elem_id=f"go-{task}"), fields

    def _results(self) -> None:
        gr = self._gr
        self._status = gr.HTML("<p>Images will appear here.</p>", elem_id="status")
        self._gallery = gr.Gallery(
            label="Images", columns=2, object_fit="contain", height="auto", interactive=False, elem_id="images",
            buttons=["download", "fullscreen"], format="png",
        )  # fmt: skip
        with gr.Row():
            self._stop = gr.Button("Stop", elem_id="stop", min_width=100)
            self._download = gr.DownloadButton("Download", interactive=False, elem_id="download", min_width=100)
        with gr.Row():
            self._seed = gr.Textbox(label="Seed of these images", interactive=False, elem_id="seed-used", min_width=140)
            self._again = gr.Button("Use this seed again", elem_id="seed-again", min_width=140)

    def _connect(self, tabs: Mapping[Task, _Tab]) -> None:
        gr, running = self._gr, []
        outputs = [self._status, self._seed, self._gallery, self._download]
        for task, (button, own) in tabs.items():
            triggers = [button.click] + ([self._fields["prompt"].submit] if task == "draw" else [])
            gr.on(triggers, None, None, self._status, js=_QUEUED, **_PRIVATE)
            # Unprocessed, so that `checked` sees everything sent: gradio's components fail on values of another type.
            running.append(gr.on(
                triggers, self._generator(task), None, outputs, inputs_kwargs=self._fields | own,
                preprocess=False, api_name=task, concurrency_id="generating", concurrency_limit=1,
                show_progress="minimal", show_progress_on=self._status,
            ))  # fmt: skip
            running[-1].failure(None, self._status, self._status, js=_REFUSED, show_progress="hidden")
        # Anything a request still sends before it is cancelled must not arrive after this.
        self._stop.click(None, cancels=running, queue=False, api_visibility="private").then(
            lambda: "<p>Stopped</p>", None, self._status, queue=False, **_PRIVATE
        )
        self._again.click(lambda seed: seed, self._seed, self._fields["seed"], queue=False, **_PRIVATE)

    def _generator(self, task: Task) -> Callable[..., Iterator[tuple[Any, ...]]]:
        gr = self._gr

        def generated(**sent: Any) -> Iterator[tuple[Any, ...]]:
            try:
                for shown in follow(self._service, task, sent | self._opened(sent)):
                    yield self._updates(shown)
            except Exception as error:
                line = _shown(error)
                # The pop-up message disappears; this stays.
                yield f"<p>Failed: {line}</p>", gr.skip(), gr.skip(), gr.skip()
                raise gr.Error(line, print_exception=False) from error
            finally:
                self._tidy()

        return generated

    def _opened(self, sent: Mapping[str, Any]) -> dict[str, Any]:
        folder, ahead = self._editor.GRADIO_CACHE, self._editor.blob_storage
        if "editor" in sent:
            return open_edited(sent["editor"], ahead, folder)
        return {"image": open_uploaded(sent.get("picture"), folder)}

    def _updates(self, shown: Shown) -> tuple[Any, ...]:
        gr = self._gr
        gallery = gr.skip()
        if shown.images is not None:
            gallery = gr.update(
                value=list(shown.images),
                columns=1 if len(shown.images) == 1 else 2,
                elem_classes=["small-images"] if shown.side <= _SMALL else [],
            )
        download = gr.update(value=shown.download, interactive=shown.download is not None)
        return shown.status, "" if shown.seed is None else str(shown.seed), gallery, download
