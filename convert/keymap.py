"""The table between PyTorch's parameter names and layouts and ours, used in both directions."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

Layout = Literal["same", "dense", "pointwise", "conv"]

# Axes that bring a PyTorch array into our layout, after "pointwise" dropped a trailing axis of length 1.
_AXES: dict[Layout, tuple[int, ...]] = {"dense": (1, 0), "pointwise": (1, 0), "conv": (2, 3, 1, 0)}


class Entry(NamedTuple):
    """A parameter under both names.

    Attributes:
        torch: key in the `state_dict`.
        path: path in the nested dict of parameters.
        layout: "same"; "dense" [out, in] -> [in, out]; "pointwise" [out, in, 1] -> [in, out];
            "conv" OIHW -> HWIO.
    """

    torch: str
    path: tuple[str, ...]
    layout: Layout

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        """Converts an array from PyTorch's layout to ours; no value changes."""
        if self.layout == "same":
            return array
        array = array[..., 0] if self.layout == "pointwise" else array
        return np.ascontiguousarray(array.transpose(_AXES[self.layout]))

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_flax`."""
        if self.layout == "same":
            return array
        array = np.ascontiguousarray(array.transpose(np.argsort(_AXES[self.layout])))
        return array[..., None] if self.layout == "pointwise" else array

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in PyTorch's layout of a parameter with shape `shape` in ours."""
        if self.layout == "same":
            return shape
        permuted = tuple(shape[axis] for axis in np.argsort(_AXES[self.layout]))
        return (*permuted, 1) if self.layout == "pointwise" else permuted


def glide_keymap(params: dict[str, Any]) -> list[Entry]:
    """The table for a GLIDE model, in the reference's `state_dict` order.

    Args:
        params: (abstract) parameters of the model; only their structure is read.
    """
    return [*_text_tables(params), *_unet(params["unet"]), *_text(params)]


def clip_keymap(params: dict[str, Any]) -> list[Entry]:
    """The table for a tower of the noised CLIP, in the reference's `state_dict` order.

    Args:
        params: (abstract) parameters, {"text": ...} or {"image": ...}; only their structure is read.
    """
    ((tower, parts),) = params.items()
    inputs = _clip_image_input() if tower == "image" else _clip_text_input()
    return [*inputs, *_clip_blocks(tower, len(parts["blocks"]))]


def _clip_text_input() -> Iterator[Entry]:
    yield Entry("blocks.input.w_voc", ("text", "token_embedding"), "same")
    yield Entry("blocks.input.w_pos", ("text", "positional_embedding"), "same")


def _clip_image_input() -> Iterator[Entry]:
    yield Entry("blocks.input.w_t", ("image", "timestep_embedding"), "same")
    yield Entry("blocks.input.patch_proj", ("image", "patch", "kernel"), "conv")
    yield Entry("blocks.input.w_pos", ("image", "positional_embedding"), "same")
    yield from _clip_norm("blocks.input.ln", ("image", "in_norm"))


def _clip_blocks(tower: str, blocks: int) -> Iterator[Entry]:
    for i in range(blocks):
        torch, path = f"blocks.block_{i}", (tower, "blocks", str(i))
        yield from _clip_norm(f"{torch}.f_attn.ln", (*path, "attn_norm"))
        yield from _clip_weights(f"{torch}.f_attn.f_q", (*path, "attn", "q"))
        yield Entry(f"{torch}.f_attn.f_k.w", (*path, "attn", "k", "kernel"), "dense")
        yield from _clip_weights(f"{torch}.f_attn.f_v", (*path, "attn", "v"))
        yield from _clip_weights(f"{torch}.f_attn.f_c", (*path, "attn", "proj"))
        yield from _clip_norm(f"{torch}.f_mlp.ln", (*path, "mlp_norm"))
        yield from _clip_weights(f"{torch}.f_mlp.f_1", (*path, "mlp_in"))
        yield from _clip_weights(f"{torch}.f_mlp.f_2", (*path, "mlp_out"))
    yield from _clip_norm("blocks.output.ln", (tower, "final_norm"))
    yield Entry("blocks.output.f.w", (tower, "proj", "kernel"), "dense")


def _text_tables(params: dict[str, Any]) -> Iterator[Entry]:
    for name in ("positional_embedding", "padding_embedding"):
        if name in params.get("text", {}):
            yield Entry(name, ("text", name), "same")


def _text(params: dict[str, Any]) -> Iterator[Entry]:
    text = params.get("text")
    if text is None:
        return
    for i in range(len(text["blocks"])):
        torch, path = f"transformer.resblocks.{i}", ("text", "blocks", str(i))
        yield from _weights(f"{torch}.attn.c_qkv", (*path, "attn", "qkv"), "dense")
        yield from _weights(f"{torch}.attn.c_proj", (*path, "attn", "proj"), "dense")
        yield from _norm(f"{torch}.ln_1", (*path, "attn_norm"))
        yield from _weights(f"{torch}.mlp.c_fc", (*path, "mlp_in"), "dense")
        yield from _weights(f"{torch}.mlp.c_proj", (*path, "mlp_out"), "dense")
        yield from _norm(f"{torch}.ln_2", (*path, "mlp_norm"))
    if "final_norm" in text:
        yield from _norm("final_ln", ("text", "final_norm"))
    yield Entry("token_embedding.weight", ("text", "token_embedding"), "same")
    yield from _weights("transformer_proj", ("text", "proj"), "dense")


def _unet(unet: dict[str, Any]) -> Iterator[Entry]:
    yield from _weights("time_embed.0", ("unet", "time_in"), "dense")
    yield from _weights("time_embed.2", ("unet", "time_out"), "dense")
    yield from _weights("input_blocks.0.0", ("unet", "input_conv"), "conv")
    for i in range(len(unet["down"])):
        yield from _stage(f"input_blocks.{i + 1}", ("unet", "down", str(i)), unet["down"][str(i)], "op")
    # The reference's middle block is a single sequence: residual block, attention, residual block.
    yield from _stage("middle_block", ("unet", "middle", "0"), unet["middle"]["0"])
    yield from _res_block("middle_block.2", ("unet", "middle", "1", "res"), unet["middle"]["1"]["res"])
    for i in range(len(unet["up"])):
        yield from _stage(f"output_blocks.{i}", ("unet", "up", str(i)), unet["up"][str(i)], "conv")
    yield from _norm("out.0", ("unet", "out_norm"))
    yield from _weights("out.2", ("unet", "out_conv"), "conv")


def _stage(torch: str, path: tuple[str, ...], stage: dict[str, Any], resampler: str = "") -> Iterator[Entry]:
    parts = [name for name in ("res", "attn", "resample") if name in stage]
    for i, name in enumerate(parts):
        part = stage[name]
        if name == "attn":
            yield from _attention(f"{torch}.{i}", (*path, name), part)
        elif "in_norm" in part:
            yield from _res_block(f"{torch}.{i}", (*path, name), part)
        else:
            yield from _weights(f"{torch}.{i}.{resampler}", (*path, name, "conv"), "conv")


def _res_block(torch: str, path: tuple[str, ...], block: dict[str, Any]) -> Iterator[Entry]:
    yield from _norm(f"{torch}.in_layers.0", (*path, "in_norm"))
    yield from _weights(f"{torch}.in_layers.2", (*path, "in_conv"), "conv")
    yield from _weights(f"{torch}.emb_layers.1", (*path, "embed"), "dense")
    yield from _norm(f"{torch}.out_layers.0", (*path, "out_norm"))
    yield from _weights(f"{torch}.out_layers.3", (*path, "out_conv"), "conv")
    if "skip" in block:
        yield from _weights(f"{torch}.skip_connection", (*path, "skip"), "conv")


def _attention(torch: str, path: tuple[str, ...], block: dict[str, Any]) -> Iterator[Entry]:
    yield from _norm(f"{torch}.norm", (*path, "norm"))
    yield from _weights(f"{torch}.qkv", (*path, "qkv"), "pointwise")
    if "text_kv" in block:
        yield from _weights(f"{torch}.encoder_kv", (*path, "text_kv"), "pointwise")
    yield from _weights(f"{torch}.proj_out", (*path, "proj"), "pointwise")


def _weights(torch: str, path: tuple[str, ...], layout: Layout) -> Iterator[Entry]:
    yield Entry(f"{torch}.weight", (*path, "kernel"), layout)
    yield Entry(f"{torch}.bias", (*path, "bias"), "same")


def _norm(torch: str, path: tuple[str, ...]) -> Iterator[Entry]:
    yield Entry(f"{torch}.weight", (*path, "scale"), "same")
    yield Entry(f"{torch}.bias", (*path, "bias"), "same")


def _clip_weights(torch: str, path: tuple[str, ...]) -> Iterator[Entry]:
    yield Entry(f"{torch}.w", (*path, "kernel"), "dense")
    yield Entry(f"{torch}.b", (*path, "bias"), "same")


def _clip_norm(torch: str, path: tuple[str, ...]) -> Iterator[Entry]:
    yield Entry(f"{torch}.g", (*path, "scale"), "same")
    yield Entry(f"{torch}.b", (*path, "bias"), "same")
