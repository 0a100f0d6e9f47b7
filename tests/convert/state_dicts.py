"""State dicts of tiny models, as NumPy arrays."""

import json
from functools import cache

import ml_dtypes
import numpy as np

from convert.architecture import Architecture, clip_architecture, glide_architecture, recorded_options
from glide_jax.models import ClipImageConfig, ClipTextConfig, ModelConfig
from tests.parity.recipe import GOLDEN, KINDS

COSINE = {"diffusion_steps": 1000, "noise_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}
LINEAR = COSINE | {"noise_schedule": "linear"}
TINY = {"num_channels": 32, "num_res_blocks": 1, "num_head_channels": 16, "dropout": 0.0}
TINY |= {"text_ctx": 6, "xf_width": 8, "xf_layers": 1, "xf_heads": 2}


@cache
def architecture(kind: str, **changes: object) -> Architecture:
    """A tiny model of one of the four kinds, or a tower of the noised CLIP."""
    if kind.startswith("clip"):
        if kind == "clip/text-enc":
            return clip_architecture(ClipTextConfig(n_vocab=11, max_text_len=5, n_embd=4, **clip_sizes("text")))
        return clip_architecture(ClipImageConfig(image_size=8, n_timesteps=9, n_embd=4, **clip_sizes("image")))
    options = {"image_size": 16, "channel_mult": (1, 2), "attention_resolutions": (8,)} | TINY | changes
    options |= {"inpaint": kind.endswith("inpaint"), "super_res": kind.startswith("upsample")}
    return glide_architecture(ModelConfig(**options), LINEAR if options["super_res"] else COSINE)


def clip_sizes(tower: str) -> dict[str, int]:
    return {f"n_head_{tower}": 2, f"n_head_state_{tower}": 4, f"n_xf_blocks_{tower}": 2}


TOWERS = ("clip/text-enc", "clip/image-enc")
ALL_KINDS = (*KINDS, *TOWERS)


def options(model: Architecture) -> dict[str, object]:
    """What a user would write into an --options file for it."""
    return recorded_options(model.record)


def state_dict(model: Architecture, dtype: str = "float32", seed: int = 0) -> dict[str, np.ndarray]:
    """Random bits, but for infinities and NaN, as the values of every tensor."""
    rng = np.random.default_rng(seed)
    return {key: random_bits(rng, shape, dtype) for key, shape in model.torch_shapes.items()}


def random_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    width = {"float32": np.uint32, "float16": np.uint16, "bfloat16": np.uint16}[dtype]
    bits = np.asarray(rng.integers(np.iinfo(width).max, size=shape, dtype=width, endpoint=True))
    array = bits.view(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    with np.errstate(invalid="ignore"):
        array[~np.isfinite(array)] = -0.0
    return array


def assert_same_state_dict(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """Equal keys in equal order, dtypes, shapes and bytes."""
    assert list(ours) == list(theirs)
    for key, array in theirs.items():
        assert (ours[key].dtype, ours[key].shape) == (array.dtype, array.shape), key
        assert ours[key].tobytes() == array.tobytes(), key


@cache
def manifests() -> dict[str, tuple[dict[str, object], dict[str, tuple[int, ...]]]]:
    """Options and shapes of every golden model, by "size/kind"."""
    found = {}
    for size in ("tiny", "full"):
        for kind in KINDS:
            golden = json.loads((GOLDEN / f"manifest_{size}_{kind}.json").read_text())
            found[f"{size}/{kind}"] = golden["options"], golden["state_dict"]
        clip = json.loads((GOLDEN / "manifest_clip.json").read_text())[size]
        for tower in ("text", "image"):
            found[f"{size}/clip/{tower}-enc"] = clip["config"], clip[tower]
    return {name: (options, {k: tuple(v) for k, v in shapes.items()}) for name, (options, shapes) in found.items()}
