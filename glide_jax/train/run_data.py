"""The data of a run, opened in the sizes of its model and the share of this process."""

from typing import Any

import jax

from glide_jax.data import DataStream, ValidationData, fixed_examples, open_data, open_validation
from glide_jax.data.examples import Batch
from glide_jax.models import ModelConfig
from glide_jax.train.run_config import RunConfig


def training_data(config: RunConfig, position: int) -> DataStream:
    """Endless batches from `position` on; raises `GlideError` as `open_data`."""
    train = config.train
    return open_data(
        config.data, **_sizes(config.model), batch_size=train.batch_size, seed=train.seed, position=position,
        **_processes(),
    )  # fmt: skip


def validation_data(config: RunConfig) -> ValidationData | None:
    """The held-out batches, if there are any; raises `GlideError` as `open_validation`."""
    if not config.data.validation_path or not config.train.validate_every:
        return None
    return open_validation(config.data, **_sizes(config.model), batch_size=config.train.batch_size, **_processes())


def preview_examples(config: RunConfig) -> Batch:
    """Fixed training samples for the grids."""
    return fixed_examples(config.data, config.train.preview.count, **_sizes(config.model))


def _sizes(model: ModelConfig) -> dict[str, Any]:
    low_res = model.low_res_size if model.super_res else None
    return {"image_size": model.image_size, "low_res_size": low_res, "text_ctx": model.text_ctx}


def _processes() -> dict[str, int]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
