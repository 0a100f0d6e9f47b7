"""What a checkpoint is of: its options, its parameters and their names in PyTorch."""

from dataclasses import asdict
from typing import Any, NamedTuple

from convert.keymap import Entry, clip_keymap, glide_keymap
from glide_jax.errors import GlideError
from glide_jax.models import ClipImageConfig, ClipTextConfig, Glide, ModelConfig, NoisedClip, Params


class Architecture(NamedTuple):
    """One model with both names of every parameter.

    Attributes:
        kind: one of the four GLIDE variants, "clip/text-enc" or "clip/image-enc".
        record: a checkpoint's entries on it: "model" and "diffusion", or "clip_text", or "clip_image".
        params: abstract parameters.
        keymap: an entry a parameter, in the reference's order.
    """

    kind: str
    record: dict[str, Any]
    params: Params
    keymap: list[Entry]

    @property
    def torch_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of the `state_dict`."""
        return {entry.torch: entry.torch_shape(leaf(self.params, entry.path).shape) for entry in self.keymap}


def glide_architecture(config: ModelConfig, diffusion: dict[str, Any]) -> Architecture:
    """The architecture of a GLIDE model; `diffusion` holds "diffusion_steps" and "noise_schedule"."""
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


def recorded_architecture(record: dict[str, Any], where: str) -> Architecture:
    """The architecture that a checkpoint's record tells.

    Raises:
        GlideError: it tells none; `where` names the checkpoint.
    """
    if "model" in record:
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record["model"].items()
        }
        return glide_architecture(ModelConfig(**options), record.get("diffusion", {}))
    if "clip_text" in record:
        return clip_architecture(ClipTextConfig(**record["clip_text"]))
    if "clip_image" in record:
        return clip_architecture(ClipImageConfig(**record["clip_image"]))
    raise GlideError(f"the record of {where} does not tell its model")


def leaf(params: Params, path: tuple[str, ...]) -> Any:
    """The (abstract) array at `path`."""
    node: Any = params
    for name in path:
        node = node[name]
    return node


def place(params: Params, path: tuple[str, ...], array: Any) -> None:
    """Puts an array at `path`, with the dicts on the way to it."""
    for name in path[:-1]:
        params = params.setdefault(name, {})
    params[path[-1]] = array
