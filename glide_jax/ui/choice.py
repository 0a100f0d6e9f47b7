"""The menus of models and adapters; what is chosen there is loaded, and sets the fields of its own settings."""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glide_jax.errors import GlideError
from glide_jax.ui.found import Found
from glide_jax.ui.request import SCALES, Choice
from glide_jax.ui.service import Service
from glide_jax.ui.settings import changes, setting, shown

_PRIVATE = {"api_visibility": "private"}


class Menus:
    """The menus, made inside a `gr.Blocks`.

    Attributes:
        fields: the components by the names that clients use: base, upsampler, lora and how much of each.
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

    def connect(self, settings: Mapping[str, Any]) -> None:
        """Makes the components of settings follow what is chosen."""
        self._settings = settings
        working = self._gr.State(self._service.start)
        inputs = [*self.fields.values(), working]
        outputs = [*self.fields.values(), self._row, working, *settings.values()]
        for name in ("base", "upsampler", "lora"):
            self.fields[name].input(
                self.switch, inputs, outputs, concurrency_id="models", show_progress="minimal", **_PRIVATE
            )

    def refresh_on(self, load: Callable[..., Any]) -> None:
        """Makes the event of opening the page show what is there then, so that reloading it shows new checkpoints."""
        menus = [self.fields[name] for name in ("base", "upsampler", "lora")]
        load(self._found, None, [*menus, self._row], show_progress="hidden", **_PRIVATE)

    def _found(self) -> list[Any]:
        models, update = self._service.models, self._gr.update
        fitting = []
        try:
            models.search()
            fitting = models.fitting(self._service.base)
        except GlideError as error:
            self._gr.Warning(html.escape(str(error)))
        menus = [_menu(models.bases), _menu(models.upsamplers), [each.name for each in fitting]]
        return [*(update(choices=menu) for menu in menus), update(visible=bool(fitting))]

    def switch(self, base: str, upsampler: str, lora: Sequence[str], *others: Any) -> list[Any]:
        """Updates of all components after a choice; where a model cannot be loaded, what was chosen before is again.

        Args:
            base, upsampler, lora: what is chosen now.
            *others: the scales, and the `Choice` before.
        """
        gr, models, skip = self._gr, self._service.models, self._gr.skip()
        *scales, working = others
        try:
            if base or upsampler:
                models.pipeline(base or None, upsampler or None)
            fitting = [each.name for each in models.fitting(base)]
            choice = Choice(base, upsampler, tuple(name for name in lora if name in fitting))
            fields, row = self._followed(working, choice), gr.update(visible=bool(fitting))
            menu = {"choices": fitting}
        except GlideError as error:
            gr.Warning(html.escape(str(error)), title="Not changed")
            choice, fields, row, menu = working, [skip] * len(self._settings), skip, {}
        were = dict(zip(working.adapters, scales, strict=False))
        values = [were.get(name, models.scale(name)) for name in choice.adapters]
        looks = [gr.update(**look) for look in _looks(choice.adapters)]
        for look, value in zip(looks, values, strict=False):
            look["value"] = value
        names = [choice.base, choice.upsampler, gr.update(value=list(choice.adapters), **menu)]
        return [*names, *looks, row, choice, *fields]

    def _followed(self, before: Choice, after: Choice) -> list[Any]:
        """Updates of the settings where the models of one choice bring others than those before, which are named."""
        old, new = map(self._service.fields_of, (before, after))
        if other := [name for name in self._settings if old[name].default != new[name].default]:
            said = ", ".join(f"{name} {text if (text := shown(new[name])) != '' else 'default'}" for name in other)
            self._gr.Info(html.escape(said), title="Set as these models want it")
        return [changes(self._gr, old[name], new[name]) for name in self._settings]


def _looks(adapters: Sequence[str]) -> list[dict[str, Any]]:
    """How the fields of scales look: there is one for each of the adapters chosen."""
    chosen = [{"visible": True, "label": f"Strength of {name}"} for name in adapters[: len(SCALES)]]
    return chosen + [{"visible": False}] * (len(SCALES) - len(chosen))


def _menu(found: Sequence[Found]) -> list[tuple[str, str]]:
    return [("none", ""), *((each.label, each.name) for each in found)]
