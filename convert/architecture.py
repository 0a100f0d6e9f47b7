"""The architecture of a checkpoint: recorded with it, or inferred from a `state_dict` and a user's options.

Every dimension is read from many tensors and the majority wins, so that a missing or damaged tensor does not mislead,
but is found when the tensors are compared with the architecture. What no tensor reveals is taken from the published
models, unless a user says otherwise.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from convert.keymap import Entry, clip_keymap, glide_keymap
from glide_jax.checkpoint import require_blocks
from glide_jax.diffusion.schedules import DiffusionConfig
from glide_jax.errors import GlideError
from glide_jax.files import read_text
from glide_jax.models import ClipImageConfig, ClipTextConfig, Glide, ModelConfig, NoisedClip, Params
from glide_jax.options import build, convert, fields, parse

Options = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

_VARIANTS = {3: (False, False), 7: (True, False), 6: (False, True), 10: (True, True)}  # channels: inpaint, super_res
_IMAGE_SIZES = (64, 128, 256)
_LEAST_TENSORS = 10  # of a block; higher numbers than so many tensors explain are reported as unexpected
_MOST_BLOCKS = 100  # of one kind; the published models have 16
# Options that only the axis of a single tensor reveals; the image tower has one token per patch and one more.
_CLIP_AXES = {
    "text": {"n_vocab": ("input.w_voc", 0), "max_text_len": ("input.w_pos", 0), "n_embd": ("output.f.w", 0)},
    "image": {
        "n_timesteps": ("input.w_t", 0),
        "patch_size": ("input.patch_proj", 3),
        "tokens": ("input.w_pos", 0),
        "n_embd": ("output.f.w", 0),
    },
}
# Options of the reference about running a model, not about its architecture.
_IGNORED = {"timestep_respacing", "use_fp16", "cache_text_emb", "beta_schedule", "logit_scale"}
_LISTS = ("channel_mult", "attention_resolutions")
_RECORDED: dict[str, type[ModelConfig] | type[ClipTextConfig] | type[ClipImageConfig]] = {
    "model": ModelConfig, "clip_text": ClipTextConfig, "clip_image": ClipImageConfig,
}  # fmt: skip


class Architecture(NamedTuple):
    """A model, with both names of every parameter.

    Attributes:
        kind: one of the four GLIDE variants, "clip/text-enc" or "clip/image-enc".
        record: a checkpoint's entries on it: "model", "diffusion" and maybe "sampling"; or "clip_text" or "clip_image".
        params: abstract parameters.
        keymap: one entry per parameter, in the reference's order.
    """

    kind: str
    record: dict[str, Any]
    params: Params
    keymap: list[Entry]

    @property
    def torch_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor in the `state_dict`."""
        params = flatten_dict(self.params)
        return {entry.torch: entry.torch_shape(params[entry.path].shape) for entry in self.keymap}


def glide_architecture(config: ModelConfig, diffusion: dict[str, Any]) -> Architecture:
    """The architecture of a GLIDE model; `diffusion` holds the options of a `DiffusionConfig`."""
    params = Glide(config).abstract_params()
    return Architecture(config.kind, {"model": asdict(config), "diffusion": diffusion}, params, glide_keymap(params))


def clip_architecture(config: ClipTextConfig | ClipImageConfig) -> Architecture:
    """The architecture of one tower of the noised CLIP."""
    if isinstance(config, ClipTextConfig):
        tower, model = "text", NoisedClip(config, None)
    else:
        tower, model = "image", NoisedClip(None, config)
    params = model.abstract_params()
    return Architecture(f"clip/{tower}-enc", {f"clip_{tower}": asdict(config)}, params, clip_keymap(params))


def recorded_architecture(record: dict[str, Any], checkpoint: str | Path) -> Architecture:
    """The architecture in a checkpoint's record; the result's `record` keeps the recorded sampling options.

    Raises:
        GlideError: there is none, or it is larger than the checkpoint's arrays.
    """
    if "lora" in record:
        raise GlideError(f"{checkpoint} has adapters, not whole weights: merge them first with python -m convert merge")
    for name, kind in _RECORDED.items():
        if name in record:
            config = build(kind, record[name])
            require_blocks(checkpoint, config.blocks)
            if not isinstance(config, ModelConfig):
                return clip_architecture(config)
            found = glide_architecture(config, record.get("diffusion", {}))
            return found._replace(record=found.record | {k: v for k, v in record.items() if k == "sampling"})
    raise GlideError(f"the record of {checkpoint} does not say which model it is")


def recorded_options(record: dict[str, Any]) -> dict[str, Any]:
    """A record as options for `infer`; raises `GlideError` as `parse_options` does."""
    entries = [record.get(name, {}) for name in (*_RECORDED, "diffusion")]
    return parse_options({name: value for entry in entries for name, value in entry.items()})


def read_options(path: Path) -> Options:
    """The options in a JSON file: an object of options, or one that holds them under "options" or "config".

    Raises:
        GlideError: the file cannot be read or holds something else.
    """
    try:
        content = json.loads(read_text(path, "--options"))
    except (ValueError, RecursionError) as error:
        raise GlideError(f"cannot read --options {path}: {error}") from error
    if isinstance(content, dict):
        content = content.get("options", content.get("config", content))
    if not isinstance(content, dict):
        raise GlideError(f"--options {path} holds no JSON object of options")
    return parse_options(content)


def parse_options(content: Options) -> dict[str, Any]:
    """Options in our form; the reference writes lists as "32,16,8", and None for a model without text.

    Raises:
        GlideError: a list is malformed.
    """
    options = {name: value for name, value in content.items() if name not in _IGNORED}
    if options.get("xf_width", 0) is None:
        options["xf_width"] = 0
    for name in [each for each in _LISTS if each in options]:
        value = () if options[name] == "" else options[name]
        read: Any = parse if isinstance(value, str) else convert
        options[name] = read(tuple[int, ...], value, f"--options: {name}")
    return options


def infer(shapes: Shapes, options: Options) -> tuple[Architecture, dict[str, Any]]:
    """The architecture, and the options that had to be assumed, as neither tensors nor user tell them.

    Args:
        shapes: of every tensor.
        options: the user's options, under the reference's names.

    Raises:
        GlideError: the tensors are of no known model, or an option is unknown or contradicts them.
    """
    if _numbers(shapes, r"output_blocks\.(\d+)\."):
        values, assumed = _infer_glide(shapes, _checked(options, ModelConfig, DiffusionConfig))
        diffusion = asdict(DiffusionConfig(**{name: values.pop(name) for name in fields(DiffusionConfig)}))
    elif _numbers(shapes, r"blocks\.block_(\d+)\."):
        values, assumed = _infer_clip(shapes, _checked(options, ClipTextConfig, ClipImageConfig))
        diffusion = {}
    else:
        raise GlideError(f"these are not GLIDE or noised CLIP tensors: {', '.join(list(shapes)[:3])}, ...")
    try:
        if diffusion:
            return glide_architecture(ModelConfig(**values), diffusion), assumed
        return clip_architecture(_clip_config(shapes)(**values)), assumed
    except GlideError as error:
        raise GlideError(f"{error}; give what the tensors do not tell with --options FILE.json") from error


def _checked(options: Options, *classes: type) -> dict[str, Any]:
    """Options checked by the names and types of the fields of `classes`."""
    known = {name: field.hint for each in classes for name, field in fields(each).items()}
    for name in options:
        if name not in known:
            raise GlideError(f"--options: {name} is unknown; there are {', '.join(known)}")
    return {name: convert(known[name], value, f"--options: {name}") for name, value in options.items()}


def _infer_glide(shapes: Shapes, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    inferred, attending_levels = _read_unet(shapes)
    inferred |= _read_text(shapes)
    published = _published(options | inferred)
    size = options.get("image_size", published["image_size"])
    inferred["attention_resolutions"] = tuple(size >> level for level in attending_levels)
    values, assumed = _complete(inferred, published, _comparable(options, inferred, size))
    if not values["super_res"]:
        assumed.pop("low_res_size", None)
    return values, assumed


def _read_unet(shapes: Shapes) -> tuple[dict[str, Any], list[int]]:
    """Options from the UNet's tensors, and the levels with attention (0 is the largest)."""
    width = max(_majority(shapes, r"(input|output)_blocks\.\d+\.\d\.emb_layers\.1\.weight", 1) // 4, 1)
    count = 1 + max(_numbers(shapes, r"output_blocks\.(\d+)\."))
    upsampling = _numbers(shapes, r"output_blocks\.(\d+)\.[12]\.(?:in_layers|conv)\.")
    per_level = 1 + min(upsampling, default=count - 1)
    attending = _numbers(shapes, r"output_blocks\.(\d+)\.1\.qkv\.")
    # The up path starts at the smallest level.
    levels = [range(start, min(start + per_level, count)) for start in range(0, count, per_level)][::-1]
    widths = [
        _majority(shapes, rf"output_blocks\.({'|'.join(map(str, level))})\.0\.out_layers\..*", 0) for level in levels
    ]
    inputs = shapes.get("input_blocks.0.0.weight", ())
    inferred = {
        "num_channels": width,
        "num_res_blocks": per_level - 1,
        "channel_mult": tuple(level_width // width for level_width in widths),
        "use_scale_shift_norm": _majority(shapes, r"middle_block\.[02]\.emb_layers\.1\..*", 0) == 2 * widths[-1],
    }
    if len(inputs) > 1 and inputs[1] in _VARIANTS:
        inferred["inpaint"], inferred["super_res"] = _VARIANTS[inputs[1]]
    if upsampling:
        inferred["resblock_updown"] = not _numbers(shapes, r"output_blocks\.(\d+)\.[12]\.conv\.")
    return inferred, [i for i, level in enumerate(levels) if attending & set(level)]


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
    """All options of the published model of a kind, at the image size that fits the levels' widths."""
    super_res = known.get("super_res", False)
    size = 256 if super_res else 64
    fitting = [s for s in (size, *_IMAGE_SIZES) if ModelConfig(image_size=s).channel_mult == known["channel_mult"]]
    diffusion = DiffusionConfig(noise_schedule="linear") if super_res else DiffusionConfig()
    return asdict(ModelConfig()) | {"image_size": fitting[0] if fitting else size} | asdict(diffusion)


def _comparable(options: dict[str, Any], inferred: Options, size: int) -> dict[str, Any]:
    """Options without those that repeat a default of the reference or have no effect."""
    reached = {size >> level for level in range(len(inferred["channel_mult"]))}
    options = {name: value for name, value in options.items() if name != "channel_mult" or value}
    if "attention_resolutions" in options:
        attending = set(options["attention_resolutions"]) & reached
        options["attention_resolutions"] = tuple(sorted(attending, reverse=True))
    return options


def _clip_config(shapes: Shapes) -> type[ClipImageConfig] | type[ClipTextConfig]:
    image = "blocks.input.patch_proj" in shapes or "blocks.input.w_t" in shapes
    return ClipImageConfig if image else ClipTextConfig


def _infer_clip(shapes: Shapes, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    config = _clip_config(shapes)
    side, published = "image" if config is ClipImageConfig else "text", asdict(config())
    options = {name: value for name, value in options.items() if name in published}
    inferred = _read_clip(shapes, side, published | options)
    heads, head_width = f"n_head_{side}", f"n_head_state_{side}"
    width = _majority(shapes, r"blocks\.block_\d+\.f_(attn|mlp)\.ln\..*", 0)
    if heads in options:
        options.setdefault(head_width, width // max(options[heads], 1))
    inferred[heads] = width // max(options.get(head_width, published[head_width]), 1)
    return _complete(inferred, published, options)


def _read_clip(shapes: Shapes, side: str, otherwise: Options) -> dict[str, Any]:
    """Options from a tower's tensors; reading some needs the options in `otherwise`."""
    axes = {name: (shapes.get(f"blocks.{key}", ()), axis) for name, (key, axis) in _CLIP_AXES[side].items()}
    inferred: dict[str, Any] = {name: shape[axis] for name, (shape, axis) in axes.items() if len(shape) > axis}
    if "tokens" in inferred:
        inferred["image_size"] = isqrt(max(inferred.pop("tokens") - 1, 0)) * {**otherwise, **inferred}["patch_size"]
    inferred[f"n_xf_blocks_{side}"] = 1 + max(_numbers(shapes, r"blocks\.block_(\d+)\."))
    return inferred


def _complete(inferred: Options, published: Options, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """All options with their values, and those that are assumed, being neither inferred nor given."""
    contradictions = [
        f"{name} is {value} in the tensors, {options[name]} in the options"
        for name, value in inferred.items()
        if name in options and options[name] != value
    ]
    if contradictions:
        raise GlideError(f"--options contradict the tensors: {'; '.join(contradictions)}")
    assumed = {name: value for name, value in published.items() if name not in inferred and name not in options}
    return {**published, **options, **inferred}, assumed


def _majority(shapes: Shapes, pattern: str, axis: int) -> int:
    """The most common length of an axis among the tensors whose whole key matches."""
    lengths = [shape[axis] for key, shape in shapes.items() if re.fullmatch(pattern, key) and len(shape) > axis]
    if not lengths:
        raise GlideError(f"no tensor has a name like {pattern}: the architecture cannot be read")
    return Counter(lengths).most_common(1)[0][0]


def _numbers(shapes: Shapes, pattern: str) -> set[int]:
    """The numbers in the pattern's group among the keys that start with it, up to the possible number of blocks."""
    texts = {found[1] for key in shapes if (found := re.match(pattern, key))}
    numbers = {int(text) for text in texts if len(text) < 6}
    numbers = {number for number in numbers if number <= len(shapes) // _LEAST_TENSORS}
    if max(numbers, default=0) >= _MOST_BLOCKS:
        raise GlideError(f"the tensors have names like {pattern} up to {max(numbers)}: at most {_MOST_BLOCKS} are read")
    return numbers
