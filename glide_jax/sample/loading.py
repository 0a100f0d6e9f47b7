"""Loads models from checkpoints, whose records say what they are."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import numpy as np
from jaxtyping import UInt8

from glide_jax import hub
from glide_jax.checkpoint import lasting, load_weights, read_record, require_blocks, resolve, save_weights
from glide_jax.compute import check_device, memory_of_device
from glide_jax.diffusion.schedules import DiffusionConfig
from glide_jax.errors import GlideError
from glide_jax.images import to_uint8
from glide_jax.models import ClipImageConfig, ClipTextConfig, Glide, ModelConfig, NoisedClip, Params
from glide_jax.models.lora import fingerprint
from glide_jax.options import build, fields
from glide_jax.parallel import ParallelConfig, make_mesh, state_shardings, with_shardings
from glide_jax.sample.conditioning import Inputs
from glide_jax.sample.lora import Adapters, base_of, check_adapters, check_not_repeated, merged
from glide_jax.sample.options import SampleOptions
from glide_jax.sample.pretrained import check_settings
from glide_jax.sample.stage import OnSteps, Stage

_T = TypeVar("_T")


@dataclass(frozen=True)
class LoadedClip:
    """The noised CLIP and its weights."""

    model: NoisedClip
    params: Params

    @classmethod
    def without_weights(cls, text: str | Path, image: str | Path) -> Self:
        """Like `from_checkpoints`, but with empty `params`: see `LoadedModel.without_weights`."""
        of_text, of_image = _config(ClipTextConfig, text, "clip_text"), _config(ClipImageConfig, image, "clip_image")
        require_blocks(text, of_text.blocks)
        require_blocks(image, of_image.blocks)
        return cls(_noised_clip(of_text, of_image), {})

    @classmethod
    def from_checkpoints(cls, text: str | Path, image: str | Path) -> Self:
        """Loads both towers, as `python -m convert to-flax` writes them.

        Raises:
            GlideError: no checkpoint there, or one of another kind.
        """
        model = cls.without_weights(text, image).model
        abstract = _placed(model.abstract_params())
        params = {tower: load_weights(path, {tower: abstract[tower]})[tower] for tower, path in
                  (("text", text), ("image", image))}  # fmt: skip
        return cls(model, params)


@dataclass(frozen=True)
class LoadedModel:
    """A stage and its weights."""

    stage: Stage
    params: Params

    @classmethod
    def without_weights(
        cls,
        path: str | Path,
        dtype: str = "float32",
        clip: LoadedClip | None = None,
        lora: Sequence[str | Path] = (),
    ) -> Self:
        """Like `from_checkpoint`, but with empty `params`: enough to check requests, and immediate.

        Raises:
            GlideError: there is no checkpoint, or one of another kind; adapters of other weights go unnoticed.
        """
        check_device(dtype, "dtype")
        config, diffusion = checkpoint_config(path), _config(DiffusionConfig, path, "diffusion")
        require_blocks(base_of(path) or path, config.blocks)
        if isinstance(lora, str | Path):  # a text would be taken letter by letter
            raise GlideError(f"lora is a list of adapters: lora=[{str(lora)!r}]")
        for each in lora:
            check_adapters(each)
        check_not_repeated(path, lora)
        return cls(_stage(config, dtype, diffusion, None if clip is None else clip.model), {})

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        dtype: str = "float32",
        clip: LoadedClip | None = None,
        lora: Sequence[str | Path] = (),
    ) -> Self:
        """Loads a run folder, one of its steps, or a converted model, with EMA weights if there are any.

        Args:
            path: the checkpoint; adapters are loaded with the weights they name.
            dtype: compute type.
            clip: the noised CLIP that can guide it.
            lora: adapters to add to the weights, each as PATH or PATH:SCALE.

        Raises:
            GlideError: there is no checkpoint, or one of another kind, or adapters belong to other weights.
        """
        empty, base = cls.without_weights(path, dtype, clip, lora), base_of(path)
        params = load_weights(path if base is None else base, _placed(empty.stage.model.abstract_params()))
        own = () if base is None else (path,)
        return replace(empty, params=merged(params, [Adapters.load(each) for each in (*own, *lora)]))

    @cached_property
    def sha256(self) -> str:
        """The `fingerprint` of the weights; the first call may take seconds."""
        return fingerprint(self.params)

    def generate(
        self,
        inputs: Inputs,
        options: SampleOptions,
        seed: int,
        on_steps: OnSteps | None = None,
        clip_params: Params | None = None,
    ) -> UInt8[np.ndarray, "batch height width 3"]:
        """The images of `Stage.sample` in 8 bits; raises `GlideError` if a device's memory does not hold that many."""
        count, size = len(inputs.prompts), self.stage.model.config.image_size

        def too_many(kind: str, reason: str) -> GlideError:
            fewer = f"a batch_size below {count}, or " if count > 1 else ""
            return GlideError(
                f"generating {count} image{'s' * (count > 1)} of {size} pixels at a time does not fit in the memory of"
                f" {kind} ({reason}): try {fewer}dtype bfloat16"
            )

        with memory_of_device(too_many):
            images = self.stage.sample(
                self.params, inputs, options, seed=seed, clip_params=clip_params, on_steps=on_steps
            )
            return to_uint8(jax.device_get(images))

    def with_adapters(self, adapters: Sequence[Adapters]) -> Self:
        """A copy with adapters added to its weights; raises `GlideError` if they belong to other weights."""
        return replace(self, params=merged(self.params, adapters, self.sha256))

    def save(self, path: str | Path, dtype: str = "float32") -> None:
        """Writes the weights, rounded to `dtype`, as a checkpoint; `path` must not exist."""
        record = {"model": asdict(self.stage.model.config), "diffusion": asdict(self.stage.diffusion)}
        rounded = jax.tree.map(lambda leaf: leaf.astype(dtype), self.params)
        save_weights(path, rounded, record, compress=True)


def recorded_sampling(path: str | Path) -> dict[str, Any]:
    """The sampling options recorded in a checkpoint, by the names of `SampleOptions`; usually none.

    Adapters default to those of the weights they belong to. A checkpoint on the Hub is not looked at, as that would
    download it; a missing one is left for its reader to report.

    Raises:
        GlideError: the recorded options cannot be used.
    """
    if hub.is_name(path):
        return {}
    try:
        settings = read_record(path).get("sampling", {})
    except GlideError:
        return {}
    try:
        check_settings(settings)
        if not settings.keys() <= fields(SampleOptions).keys():
            raise GlideError("it has options of another model")
    except (GlideError, AttributeError) as error:
        raise GlideError(f"{path}: the sampling entry of its record cannot be used: {error}") from error
    try:
        base = base_of(path)
    except GlideError:  # not needed by adapters for given weights
        base = None
    return ({} if base is None else recorded_sampling(base)) | settings


def check_upsampler(upsampler: ModelConfig, base: ModelConfig | None) -> None:
    """Raises `GlideError` if the second model is not an upsampler, or does not fit the first."""
    if not upsampler.super_res:
        raise GlideError("the upsampler's checkpoint is a base model")
    if base is not None and base.image_size != upsampler.low_res_size:
        small, expected = base.image_size, upsampler.low_res_size
        raise GlideError(f"the upsampler enlarges images of {expected} pixels; the base generates {small}")


def checkpoint_step(path: str | Path, kind: str = "model") -> Path:
    """The checkpoint that `path` means now, as an absolute path: for a run still training it changes.

    Args:
        path: a run folder (RUN@STEP for another step than its newest), one of its steps, a converted model, or a
            safetensors file of either.
        kind: which entry its record must have: model, clip_text or clip_image.

    Raises:
        GlideError: no checkpoint there, or one of another kind.
    """
    step = lasting(resolve(path))
    _entry(step, kind)
    return step


def checkpoint_config(path: str | Path) -> ModelConfig:
    """The kind of model a checkpoint holds, without loading it; paths and errors as for `checkpoint_step`."""
    return _config(ModelConfig, path, "model")


# Models of the same architecture share their programs, so that a second one is not traced and compiled again.
_noised_clip = lru_cache(maxsize=4)(NoisedClip)


@lru_cache(maxsize=8)
def _stage(model: ModelConfig, dtype: str, diffusion: DiffusionConfig, clip: NoisedClip | None) -> Stage:
    return Stage(Glide(model, dtype), diffusion, clip, make_mesh(ParallelConfig()))


def _config(kind: type[_T], path: str | Path, name: str) -> _T:
    entry = _entry(path, name)
    try:
        return build(kind, entry)
    except GlideError as error:
        raise GlideError(f"{path}: the {name} entry of its record cannot be used: {error}") from error


def _entry(path: str | Path, name: str) -> dict[str, Any]:
    record = read_record(path)
    if not isinstance(record.get(name), dict):
        found = ", ".join(entry for entry in ("model", "clip_text", "clip_image") if entry in record)
        raise GlideError(f"{path} is of another kind: its record has no {name} entry (it has {found or 'none known'})")
    entry: dict[str, Any] = record[name]
    return entry


def _placed(abstract: Params) -> Params:
    return with_shardings(abstract, state_shardings(abstract, make_mesh(ParallelConfig())))
