"""Loads and runs what `python -m glide_jax.export` wrote."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from glide_jax.errors import GlideError, install
from glide_jax.files import read_text
from glide_jax.tokenizer import GlideTokenizer

INDEX = "program.json"
FORMAT = 1

Pixels = UInt8[np.ndarray, "n height width 3"]


class _Stage(NamedTuple):
    call: Any
    weights: dict[str, Any]
    text_ctx: int


class Program:
    """An exported pipeline, on the default device; it compiles once for each number of prompts.

    Attributes:
        about: the contents of its index: checkpoints, flags, versions.
    """

    def __init__(self, stages: Sequence[_Stage], about: dict[str, Any]) -> None:
        self._stages, self.about = stages, about

    def __call__(self, prompts: str | Sequence[str], *, seed: int = 0, negative_prompt: str = "") -> Pixels:
        """One image per prompt, equal to the pipeline's up to rounding.

        Args:
            prompts: one or several; repeat a prompt for several images of it.
            seed: in [0, 2^31); with the image's number it decides the noise.
            negative_prompt: what guidance steers away from.

        Raises:
            GlideError: no prompt, or a seed out of range.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts or not 0 <= seed < 2**31:
            raise GlideError("give at least one prompt, and a seed in [0, 2^31)")
        indices, images = np.arange(len(prompts), dtype=np.int32), None
        for stage in self._stages:
            tokens, mask = GlideTokenizer().padded(prompts, stage.text_ctx)
            against, its_mask = GlideTokenizer().padded([negative_prompt], stage.text_ctx)
            given: list[Any] = [] if images is None else [images]
            images = stage.call(stage.weights, tokens, mask, against, its_mask, np.int32(seed), indices, *given)
        return np.asarray(images)


def load(folder: str | Path) -> Program:
    """Reads an exported pipeline, which is compiled when it is first called.

    Raises:
        GlideError: it does not exist, cannot be read, is of a later version, or was exported for other platforms.
    """
    from jax import export  # noqa: PLC0415 (takes a while)

    folder = Path(folder).expanduser()
    try:
        about = json.loads(read_text(folder / INDEX, "the program's"))
        if about["format"] != FORMAT:
            raise GlideError(f"{folder} has format {about['format']}; this version knows {FORMAT}")
        stages = []
        for name, text_ctx in about["stages"].items():
            exported = export.deserialize(bytearray((folder / f"{name}.stablehlo").read_bytes()))
            with np.load(folder / f"{name}.npz") as weights:
                stages.append(_Stage(jax.jit(exported.call), jax.device_put(dict(weights)), int(text_ctx)))
    except ImportError as error:
        raise GlideError(f"a program needs flatbuffers: {install('export')}") from error
    except OSError as error:
        raise GlideError(f"cannot read {folder}: {error.strerror or error}") from error
    except GlideError:
        raise
    except Exception as error:  # flatbuffers and zipfile raise nearly anything on a damaged file
        raise GlideError(f"{folder} is not an exported program, or is damaged: {error}") from error
    platform = jax.default_backend().replace("gpu", "cuda")
    if platform not in about["platforms"]:
        raise GlideError(f"{folder} was exported for {', '.join(about['platforms'])}, not for {platform}")
    return Program(stages, about)
