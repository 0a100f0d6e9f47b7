"""The panels that say how to draw: components by the names that `request.checked` reads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glide_jax.ui.request import CHOICES, OPTIONAL, Bounds, Limits, bounds, options_in_force

_SAMPLER_HELP = "dpmpp_2m and unipc need fewest steps; ddpm adds fresh noise, which mends mistakes"
_OF_APG = ("apg_eta", "apg_momentum", "apg_norm_threshold")


def settings_panels(limits: Limits, defaults: Mapping[str, Any], *, has_clip: bool) -> dict[str, Any]:
    """Builds the panels inside a `gr.Blocks`; returns the components by name.

    Args:
        limits: the most that may be asked for.
        defaults: what some fields start with, in place of their usual values.
        has_clip: whether there is a noised CLIP to guide by.
    """
    import gradio as gr  # noqa: PLC0415

    made = _Panels(gr, bounds(limits), defaults)
    with gr.Row():
        made.slider("num_images", "Pictures")
        made.number("seed", "Seed", "blank: a new one each time", placeholder="random")
    with gr.Row():
        made.slider("num_steps", "Steps", "more take longer")
        made.slider("guidance_scale", "Guidance", "how hard to follow the prompt; 1 is twice as fast", step=0.1)
    with gr.Accordion("Sampler", open=False):
        _sampler(gr, made)
    with gr.Accordion("Guidance and range", open=False):
        _guidance(gr, made, has_clip)
    with gr.Accordion("Upsampler", open=False):
        _upsampler(gr, made)
    _show_what_matters(gr, made.fields)
    return made.fields


class _Panels:
    """Makes fields within their bounds and keeps them by name."""

    def __init__(self, gr: Any, bounds: dict[str, Bounds], defaults: Mapping[str, Any]) -> None:
        self._gr, self._bounds, self._defaults = gr, bounds, defaults
        self.fields: dict[str, Any] = {}

    def slider(self, name: str, label: str, info: str | None = None, **options: Any) -> None:
        bound = self._bounds[name]
        default = self._defaults.get(name, bound.default)
        step = options.pop("step", 1 if bound.whole else 0.01)
        self.fields[name] = self._gr.Slider(
            bound.low, bound.high, default, step=step, label=label, info=info, min_width=200, **options
        )

    def number(self, name: str, label: str, info: str | None = None, **options: Any) -> None:
        """A field that may be blank: a text, as Gradio's number fields read blank as 0."""
        default = self._defaults.get(name, self._bounds[name].default)
        self.fields[name] = self._gr.Textbox(
            "" if default is None else f"{default:g}", label=label, info=info, max_lines=1, max_length=40,
            min_width=140, elem_id=name, **({"placeholder": "default"} | options),
        )  # fmt: skip

    def menu(self, name: str, label: str, info: str | None = None, blank: str = "") -> None:
        choices = [(choice or blank, choice) for choice in CHOICES[name]]
        value = self._defaults.get(name, choices[0][1])
        self.fields[name] = self._gr.Dropdown(choices, value=value, label=label, info=info, min_width=180)


def _sampler(gr: Any, made: _Panels) -> None:
    with gr.Row():
        made.menu("sampler", "Sampler", _SAMPLER_HELP)
        made.menu("schedule", "Schedule", "which noise levels to visit", blank="the sampler's own")
    in_force = options_in_force(*(made.fields[name].value for name in ("sampler", "schedule")))

    def optional(name: str, info: str) -> None:
        made.number(name, name, info, visible=name in in_force)

    with gr.Row():
        optional("eta", "share of fresh noise")
        optional("s_churn", "noise added before steps")
        optional("s_tmin", "its lowest sigma")
        optional("s_tmax", "its highest sigma")
        optional("s_noise", "spread of added noise")
    with gr.Row():
        optional("sigma_min", "lowest sigma")
        optional("sigma_max", "highest sigma")
        optional("rho", "power of the schedule")
    made.fields["timestep_respacing"] = gr.Textbox(
        label="Respacing", info="in place of steps and schedule: fast27, ddim50, 10,10,3,2,2", max_lines=1
    )


def _guidance(gr: Any, made: _Panels, has_clip: bool) -> None:
    with gr.Row():
        made.menu("guidance", "Kind", "apg saturates less; cfg++ takes a guidance of 0 to 1")
        made.slider("guidance_rescale", "Rescale", "takes back the contrast that guidance adds")
    with gr.Row():
        made.number("interval_low", "Only above sigma", placeholder="always")
        made.number("interval_high", "Only up to sigma", placeholder="always")
    with gr.Row():
        made.number("apg_eta", "apg eta", "share of the parallel part", visible=False)
        made.number("apg_momentum", "apg momentum", visible=False)
        made.number("apg_norm_threshold", "apg greatest length", "0: any", visible=False)
    with gr.Row():
        made.menu("thresholding", "Thresholding", "how pictures are kept in range")
        made.number("dynamic_thresholding_ratio", "Quantile", visible=False)
    if has_clip:
        made.slider("clip_guidance_scale", "CLIP guidance", "0 is off", step=1)


def _upsampler(gr: Any, made: _Panels) -> None:
    gr.Markdown("Blank fields are GLIDE's own: 27 uneven DDIM steps without guidance.")
    with gr.Row():
        made.menu("upsampler_sampler", "Sampler", blank="ddim")
        made.menu("upsampler_schedule", "Schedule", blank="the sampler's own")
    with gr.Row():
        made.number("upsampler_num_steps", "Steps")
        made.number("upsampler_guidance_scale", "Guidance")
        made.number("upsampler_strength", "Strength", "below 1: from the enlarged picture")
        made.number("upsample_temp", "Temperature")


def _show_what_matters(gr: Any, fields: dict[str, Any]) -> None:
    """Hides the fields that have no effect under the choices made."""
    ratio = ("dynamic_thresholding_ratio",)
    _on_choice(gr, fields, ("sampler", "schedule"), OPTIONAL, options_in_force)
    _on_choice(gr, fields, ("guidance",), _OF_APG, lambda kind: _OF_APG if kind == "apg" else ())
    _on_choice(gr, fields, ("thresholding",), ratio, lambda kind: ratio if kind == "dynamic" else ())


def _on_choice(
    gr: Any, fields: dict[str, Any], menus: Sequence[str], names: Sequence[str], wanted: Callable[..., Sequence[str]]
) -> None:
    def show(*choices: str) -> Any:
        shown = [gr.update(visible=name in wanted(*choices)) for name in names]
        return shown if len(shown) > 1 else shown[0]

    inputs = [fields[menu] for menu in menus]
    gr.on(
        [menu.change for menu in inputs], show, inputs, [fields[name] for name in names],
        api_visibility="private", queue=False, show_progress="hidden",
    )  # fmt: skip
