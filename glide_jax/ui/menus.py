"""The menus of models and adapters: a selection is loaded, and sets the fields for which it has its own settings."""

import contextlib
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from glide_jax.errors import GlideError
from glide_jax.options import Field
from glide_jax.ui.found import FoundModel
from glide_jax.ui.request import SCALES, Choice
from glide_jax.ui.service import Service
from glide_jax.ui.settings import change, full_label, setting, shown

_MENUS = ("base", "upsampler", "lora")
_PRIVATE = {"api_visibility": "private"}


class Switched(NamedTuple):
    """The result of a selection.

    Attributes:
        choice: the models, and the selected adapters that fit.
        fitting: all adapters that fit.
        scales: by position, for adapters at new positions: their previous scale, or their default if newly selected.
        settings: settings whose defaults differ from those of the previous models.
    """

    choice: Choice
    fitting: list[str]
    scales: dict[int, Any]
    settings: dict[str, Field]


def switched(service: Service, values: Mapping[str, Any], before: Choice) -> Switched:
    """Loads the selected models.

    Args:
        service: provides them.
        values: what a client sent as base, upsampler, lora and scales; adapters of another base model are dropped.
        before: what was chosen before.

    Raises:
        GlideError: a model cannot be loaded, or two do not fit each other.
    """
    chosen = Choice.of(values)
    if chosen.base or chosen.upsampler:
        service.models.pipeline(chosen.base or None, chosen.upsampler or None)
    fitting = [each.name for each in service.models.fitting(chosen.base)]
    choice = chosen._replace(adapters=tuple(name for name in chosen.adapters if name in fitting))
    were: dict[str, Any] = dict(zip(before.adapters, map(values.get, SCALES), strict=False))
    scales = {
        place: were.get(name, service.models.scale(name))
        for place, name in enumerate(choice.adapters)
        if before.adapters[place : place + 1] != (name,)
    }
    old, new = map(service.fields_of, (before, choice))
    other = {name: field for name, field in new.items() if name not in SCALES and field.default != old[name].default}
    return Switched(choice, fitting, scales, other)


def undone(before: Choice, sent: Sequence[Any], now: Sequence[Any]) -> dict[int, Any]:
    """The selections to restore after a failed one, by the positions of the menus base, upsampler and lora.

    Args:
        before: what was chosen before.
        sent: the values that failed.
        now: the current values, so that newer selections stay.
    """
    old = [before.base, before.upsampler, list(before.adapters)]
    return {place: value for place, value in enumerate(old) if now[place] == sent[place]}


class Menus:
    """The menus, made inside a `gr.Blocks`.

    Attributes:
        fields: the components by the names that clients use: base, upsampler, lora and the scales.
    """

    def __init__(self, gr: Any, service: Service) -> None:
        self._gr, self._service = gr, service
        models, start = service.models, service.start
        with gr.Row():
            base = gr.Dropdown(_menu(models.bases), value=start.base, label="Base model", min_width=200)
            upsampler = gr.Dropdown(_menu(models.upsamplers), value=start.upsampler, label="Upsampler", min_width=200)
        fitting = models.fitting(start.base)
        with gr.Row(visible=bool(fitting)) as self._row:
            lora = gr.Dropdown(
                [each.name for each in fitting], value=list(start.adapters), multiselect=True, max_choices=len(SCALES),
                label="LoRA", info="adapters of this base model", min_width=200, elem_id="lora",
            )  # fmt: skip
            looks = zip(SCALES, _looks(start.adapters), strict=True)
            scales = {name: setting(gr, service.fields[name], **look) for name, look in looks}
        self.fields = {"base": base, "upsampler": upsampler, "lora": lora, **scales}

    def connect(self, settings: Mapping[str, Any]) -> tuple[Any, Any]:
        """Makes the settings follow the selection; returns that event, and the `gr.State` with the `Choice`."""
        self._settings = settings
        menus = [self.fields[name] for name in _MENUS]
        chosen = [menu.input for menu in menus]
        working, newest = self._gr.State(self._service.start), self._gr.State([])
        # Immediately, in a list of this session, where a selection that is still loading finds it.
        self._gr.on(
            chosen, _note, [*menus, newest], None, preprocess=False, queue=False, trigger_mode="multiple",
            show_progress="hidden", **_PRIVATE,
        )  # fmt: skip
        inputs = [*self.fields.values(), newest, working]
        outputs = [*self.fields.values(), self._row, working, *settings.values()]
        # A single event for all menus: the last selection made while a model loads is handled afterwards, and none is
        # lost. Unprocessed, as gradio refuses a value that has just gone from a menu's choices.
        switched = self._gr.on(
            chosen, self._switch, inputs, outputs, concurrency_id="models", preprocess=False,
            trigger_mode="always_last", show_progress="minimal", show_progress_on=menus[:2], **_PRIVATE,
        )  # fmt: skip
        return switched, working

    def refresh_on(self, load: Callable[..., Any]) -> None:
        """Updates the menus when the page is opened, so that reloading it shows new checkpoints."""
        menus = [self.fields[name] for name in _MENUS]
        load(
            self._found, self.fields["base"], [*menus, self._row], preprocess=False, show_progress="hidden", **_PRIVATE
        )

    def _found(self, base: Any) -> list[Any]:
        models, update = self._service.models, self._gr.update
        fitting = []
        with self._warned():
            models.search_again()
        with self._warned():
            fitting = models.fitting(Choice.of({"base": base}).base)
        menus = [_menu(models.bases), _menu(models.upsamplers), [each.name for each in fitting]]
        return [*(update(choices=menu) for menu in menus), update(visible=bool(fitting))]

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        """Shows an error as a warning."""
        try:
            yield
        except GlideError as error:
            self._gr.Warning(html.escape(str(error)))

    def _switch(self, *sent: Any) -> list[Any]:
        """Updates for all components; if a model cannot be loaded, the previous selection is restored."""
        gr, skip = self._gr, self._gr.skip()
        *values, newest, before = sent
        try:
            chosen = dict(zip(self.fields, values, strict=True))
            now = switched(self._service, chosen, before)
        except GlideError as error:
            gr.Warning(html.escape(str(error)), title="Not changed")
            again = undone(before, values, newest or values)
            menus = [again.get(place, skip) for place in range(len(_MENUS))]
            return [*menus, *[skip] * len(SCALES), skip, before, *[skip] * len(self._settings)]
        if now.settings:
            said = ", ".join(f"{full_label(name)} {_said(shown(field))}" for name, field in now.settings.items())
            gr.Info(html.escape(f"Settings that these models bring: {said}"))
        scales = [gr.update(**look) for look in _looks(now.choice.adapters)]
        for i, scale in now.scales.items():
            scales[i]["value"] = scale
        lora = gr.update(choices=now.fitting)
        # More may have been selected meanwhile.
        if now.choice.adapters != Choice.of(chosen).adapters:
            lora["value"] = list(now.choice.adapters)
        return [
            skip, skip, lora, *scales,
            gr.update(visible=bool(now.fitting)), now.choice,
            *(change(gr, now.settings[name]) if name in now.settings else skip for name in self._settings),
        ]  # fmt: skip


def _note(*sent: Any) -> None:
    *values, newest = sent
    newest[:] = values


def _said(value: Any) -> str:
    return "default" if value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def _looks(adapters: Sequence[str]) -> list[dict[str, Any]]:
    """Updates of the scale fields: one is visible for each selected adapter."""
    chosen = [{"visible": True, "label": f"Strength of {name}"} for name in adapters[: len(SCALES)]]
    return chosen + [{"visible": False}] * (len(SCALES) - len(chosen))


def _menu(found: Sequence[FoundModel]) -> list[tuple[str, str]]:
    return [("none", ""), *((each.label, each.name) for each in found)]
