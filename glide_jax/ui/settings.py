"""The settings on the page: a component for each field of a request, by its type and bounds."""

from collections.abc import Mapping
from typing import Any

from glide_jax.options import Field
from glide_jax.ui.request import SCALES, UPSAMPLER, kinds, without_effect

_LABELS = {
    "num_images": "Images", "num_steps": "Steps", "upsampler_num_steps": "Steps", "upsample_temp": "Temperature",
    "top_k": "Keep the best", "lora_scale": "Strength of the LoRA", "lora_scale_2": "Strength of the second LoRA",
    "lora_scale_3": "Strength of the third LoRA",
}  # fmt: skip
# Shorter than in `--help`, where an option is for both models.
_INFO = {
    "strength": "0 leaves the image as it is, 1 nothing of it",
    "upsampler_strength": "1 starts from noise, less from the enlarged image",
}
_FIRST = ("num_images", "seed", "num_steps", "guidance_scale")
# Settings placed elsewhere: next to the menu of adapters, and in single tabs.
_ELSEWHERE = (*SCALES, "strength", "candidates", "top_k")
_MENUS = ("sampler", "schedule", "guidance", "thresholding")
_LONGEST_SLIDER = 1000


def settings_panels(gr: Any, known: Mapping[str, Field], *, has_clip: bool) -> dict[str, Any]:
    """Builds the panels inside a `gr.Blocks`; returns the components by the names of the fields.

    Args:
        gr: gradio.
        known: see `request_fields`; settings placed elsewhere on the page are left out.
        has_clip: whether there is a noised CLIP for guidance.
    """
    others = [name for name in known if name not in (*_FIRST, *_ELSEWHERE, *UPSAMPLER)]
    if not has_clip:
        others.remove("clip_guidance_scale")
    idle = without_effect({name: known[name].default for name in _MENUS})
    with gr.Row():
        made = {name: setting(gr, known[name]) for name in _FIRST}
    sampling = [name for name in others if known[name].within in ("solver", "levels")]
    panels = {
        "Sampler and noise levels": sampling,
        "Guidance and thresholding": [name for name in others if name not in sampling],
        "Upsampler": list(UPSAMPLER),
    }
    for title, names in panels.items():
        with gr.Accordion(title, open=False):
            if names == list(UPSAMPLER):
                gr.Markdown("Blank fields are GLIDE's own: 27 uneven DDIM steps without guidance.")
            with gr.Row():
                made |= {name: setting(gr, known[name], visible=name not in idle) for name in names}
    _show_what_matters(gr, made, [name for name in others if name not in _MENUS])
    return made


def setting(gr: Any, field: Field, **look: Any) -> Any:
    """The component for a field: a menu, a slider, or a text that may be blank (Gradio's numbers read blank as 0)."""
    name, option, default = field.name, field.option, field.default
    look = {
        "label": _label(name),
        "info": _INFO.get(name, option.help.split(". ")[0]) or None,
        "min_width": 200,
        **look,
    }
    if option.choices:
        return gr.Dropdown(_menu(field), value=default, **look)
    if _is_text(field):
        return gr.Textbox(
            shown(field), max_lines=1, max_length=60, elem_id=name,
            placeholder={"seed": "random"}.get(name, "default"), **look,
        )  # fmt: skip
    low, high = option.low or option.above or 0, option.high or 0
    step = 1 if int in kinds(field) else 0.005 if high - low <= 2 else 0.1
    return gr.Slider(low if option.above is None else low + step, high, default, step=step, **look)


def full_label(name: str) -> str:
    """A setting's label outside its panel."""
    return f"{_label(name)} of the upsampler" if name in UPSAMPLER else _label(name)


def _label(name: str) -> str:
    return _LABELS.get(name, name.removeprefix("upsampler_").replace("_", " ").capitalize())


def shown(field: Field) -> Any:
    """A field's default in the form its component takes."""
    if field.option.choices or not _is_text(field):
        return field.default
    return "" if field.default is None else field.default if isinstance(field.default, str) else f"{field.default:g}"


def change(gr: Any, field: Field) -> Any:
    """The update that sets a component to the default of its field."""
    return gr.update(value=shown(field), **({"choices": _menu(field)} if field.option.choices else {}))


def _menu(field: Field) -> list[tuple[str, str]]:
    return [(choice or "default", choice) for choice in field.option.choices]


def _is_text(field: Field) -> bool:
    option = field.option
    span = (option.high or 0) - (option.low or option.above or 0)
    return str in kinds(field) or type(None) in kinds(field) or span > _LONGEST_SLIDER


def _show_what_matters(gr: Any, made: Mapping[str, Any], names: list[str]) -> None:
    """Hides the fields that have no effect for the current selections."""

    def show(*chosen: str) -> list[Any]:
        idle = without_effect(dict(zip(_MENUS, chosen, strict=True)))
        return [gr.update(visible=name not in idle) for name in names]

    menus = [made[menu] for menu in _MENUS]
    gr.on(
        [menu.change for menu in menus], show, menus, [made[name] for name in names],
        api_visibility="private", queue=False, show_progress="hidden",
    )  # fmt: skip
