"""The architecture behind a `state_dict`, read from names and shapes of its tensors.

Every dimension is read from many tensors at once and the majority wins, so that a missing or damaged tensor
does not spoil it, but is found when the tensors are compared with the architecture.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from math import isqrt
from typing import Any

from convert.architecture import Architecture, clip_architecture, glide_architecture
from convert.options import Options, check_options, complete
from glide_jax.errors import GlideError
from glide_jax.models import ClipImageConfig, ClipTextConfig, ModelConfig

Shapes = Mapping[str, tuple[int, ...]]

_VARIANTS = {3: (False, False), 7: (True, False), 6: (False, True), 10: (True, True)}  # (inpaint, super_res)
_IMAGE_SIZES = (64, 128, 256)
_LEAST_TENSORS = 10  # of a block; a number that so many tensors cannot reach is left to be reported as unexpected
_MOST_BLOCKS = 100  # of one kind; the published models have 16
# The axis of one tensor that alone tells an option; the image tower has a token a patch and one more.
_CLIP_AXES = {
    "text": {
        "n_vocab": ("blocks.input.w_voc", 0),
        "max_text_len": ("blocks.input.w_pos", 0),
        "n_embd": ("blocks.output.f.w", 0),
    },
    "image": {
        "n_timesteps": ("blocks.input.w_t", 0),
        "patch_size": ("blocks.input.patch_proj", 3),
        "tokens": ("blocks.input.w_pos", 0),
        "n_embd": ("blocks.output.f.w", 0),
    },
}


def infer(shapes: Shapes, options: Options) -> tuple[Architecture, dict[str, Any]]:
    """The architecture, and what had to be assumed of it: options that neither tensors nor user tell.

    Args:
        shapes: of every tensor.
        options: what the user says, under the reference's names.

    Raises:
        GlideError: these are no such tensors, or an option is unknown or contradicts them.
    """
    if _numbers(shapes, r"output_blocks\.(\d+)\."):
        return _infer_glide(shapes, options)
    if _numbers(shapes, r"blocks\.block_(\d+)\."):
        return _infer_clip(shapes, options)
    raise GlideError(f"these are no GLIDE or noised CLIP tensors: {', '.join(list(shapes)[:3])}, ...")


def _infer_glide(shapes: Shapes, options: Options) -> tuple[Architecture, dict[str, Any]]:
    told, attending_levels = _read_unet(shapes)
    told |= _read_text(shapes)
    published = _published({**options, **told})
    check_options(options, published)
    size = options.get("image_size", published["image_size"])
    told["attention_resolutions"] = tuple(size >> level for level in attending_levels)
    values, assumed = complete(told, published, _comparable(options, told, size))
    if not values["super_res"]:
        assumed.pop("low_res_size", None)
    diffusion = {name: values.pop(name) for name in ("diffusion_steps", "noise_schedule")}
    with _hinting_at_options():
        return glide_architecture(ModelConfig(**values), diffusion), assumed


def _read_unet(shapes: Shapes) -> tuple[dict[str, Any], list[int]]:
    """What the UNet's tensors tell, and the levels (0 is the largest) that have attention."""
    width = max(_majority(shapes, r"(input|output)_blocks\.\d+\.\d\.emb_layers\.1\.weight", 1) // 4, 1)
    count = 1 + max(_numbers(shapes, r"output_blocks\.(\d+)\."))
    rising = _numbers(shapes, r"output_blocks\.(\d+)\.[12]\.(?:in_layers|conv)\.")
    per_level = 1 + min(rising, default=count - 1)
    attending = _numbers(shapes, r"output_blocks\.(\d+)\.1\.qkv\.")
    # The way up starts at the smallest level.
    levels = [range(start, min(start + per_level, count)) for start in range(0, count, per_level)][::-1]
    widths = [
        _majority(shapes, rf"output_blocks\.({'|'.join(map(str, level))})\.0\.out_layers\..*", 0) for level in levels
    ]
    inputs = shapes.get("input_blocks.0.0.weight", ())
    told = {
        "num_channels": width,
        "num_res_blocks": per_level - 1,
        "channel_mult": tuple(level_width // width for level_width in widths),
        "use_scale_shift_norm": _majority(shapes, r"middle_block\.[02]\.emb_layers\.1\..*", 0) == 2 * widths[-1],
    }
    if len(inputs) > 1 and inputs[1] in _VARIANTS:
        told["inpaint"], told["super_res"] = _VARIANTS[inputs[1]]
    if rising:
        told["resblock_updown"] = not _numbers(shapes, r"output_blocks\.(\d+)\.[12]\.conv\.")
    return told, [i for i, level in enumerate(levels) if attending & set(level)]


def _read_text(shapes: Shapes) -> dict[str, Any]:
    blocks = _numbers(shapes, r"transformer\.resblocks\.(\d+)\.")
    if not blocks:
        return {"xf_width": 0}
    return {
        "text_ctx": _majority(shapes, r"(positional|padding)_embedding", 0),
        "xf_width": _majority(shapes, r"transformer\.resblocks\.\d+\.ln_[12]\..*", 0),
        "xf_layers": 1 + max(blocks),
        "xf_final_ln": any(key.startswith("final_ln.") for key in shapes),
        "xf_padding": "padding_embedding" in shapes,
    }


def _published(known: Options) -> dict[str, Any]:
    """All options of the published model of a kind, in the image size that fits the levels' widths."""
    super_res = known.get("super_res", False)
    size = 256 if super_res else 64
    fitting = [s for s in (size, *_IMAGE_SIZES) if ModelConfig(image_size=s).channel_mult == known["channel_mult"]]
    schedule = "linear" if super_res else "squaredcos_cap_v2"
    diffusion = {"diffusion_steps": 1000, "noise_schedule": schedule}
    return asdict(ModelConfig()) | {"image_size": fitting[0] if fitting else size} | diffusion


def _comparable(options: Options, told: Options, size: int) -> dict[str, Any]:
    """Options without what only repeats a default of the reference or never takes effect."""
    reached = {size >> level for level in range(len(told["channel_mult"]))}
    options = dict(options)
    if not options.get("channel_mult", True):
        del options["channel_mult"]
    if "attention_resolutions" in options:
        attending = set(options["attention_resolutions"]) & reached
        options["attention_resolutions"] = tuple(sorted(attending, reverse=True))
    return options


def _infer_clip(shapes: Shapes, options: Options) -> tuple[Architecture, dict[str, Any]]:
    image = "blocks.input.patch_proj" in shapes or "blocks.input.w_t" in shapes
    config, other = (ClipImageConfig, ClipTextConfig) if image else (ClipTextConfig, ClipImageConfig)
    side = "image" if image else "text"
    published = asdict(config())
    check_options(options, asdict(other()) | published)
    options = {name: value for name, value in options.items() if name in published}
    told = _read_clip(shapes, side, published | options)
    heads, head_width = f"n_head_{side}", f"n_head_state_{side}"
    width = _majority(shapes, r"blocks\.block_\d+\.f_(attn|mlp)\.ln\..*", 0)
    if heads in options:
        options.setdefault(head_width, width // max(options[heads], 1))
    told[heads] = width // max(options.get(head_width, published[head_width]), 1)
    values, assumed = complete(told, published, options)
    with _hinting_at_options():
        return clip_architecture(config(**values)), assumed


def _read_clip(shapes: Shapes, side: str, otherwise: Options) -> dict[str, Any]:
    """What a tower's tensors tell; `otherwise` has options that some of it must be read with."""
    told: dict[str, Any] = {
        name: shapes[key][axis] for name, (key, axis) in _CLIP_AXES[side].items() if len(shapes.get(key, ())) > axis
    }
    if "tokens" in told:
        told["image_size"] = isqrt(max(told.pop("tokens") - 1, 0)) * {**otherwise, **told}["patch_size"]
    told[f"n_xf_blocks_{side}"] = 1 + max(_numbers(shapes, r"blocks\.block_(\d+)\."))
    return told


@contextmanager
def _hinting_at_options() -> Iterator[None]:
    try:
        yield
    except GlideError as error:
        raise GlideError(f"{error}; what the tensors do not tell is given by --options FILE.json") from error


def _majority(shapes: Shapes, pattern: str, axis: int) -> int:
    """The most common length of an axis among the tensors whose whole key matches."""
    lengths = [shape[axis] for key, shape in shapes.items() if re.fullmatch(pattern, key) and len(shape) > axis]
    if not lengths:
        raise GlideError(f"no tensor has a name like {pattern}: the architecture cannot be read")
    return Counter(lengths).most_common(1)[0][0]


def _numbers(shapes: Shapes, pattern: str) -> set[int]:
    """The numbers in the pattern's group among the keys that start with it, as far as there can be such blocks."""
    texts = {found[1] for key in shapes if (found := re.match(pattern, key))}
    numbers = {int(text) for text in texts if len(text) < 6}
    numbers = {number for number in numbers if number <= len(shapes) // _LEAST_TENSORS}
    if max(numbers, default=0) >= _MOST_BLOCKS:
        raise GlideError(f"the tensors have names like {pattern} up to {max(numbers)}: at most {_MOST_BLOCKS} are read")
    return numbers
