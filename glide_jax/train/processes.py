"""What the processes of a run must have in common: options, images, and the run's folder."""

import json
import os
import secrets
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from glide_jax.data.loader import DataStream, ValidationData
from glide_jax.errors import GlideError
from glide_jax.options import nested
from glide_jax.parallel import SharedError, together
from glide_jax.train.config import RunConfig

# Options in which the processes of a run, and the machines that it is resumed on, may differ.
MAY_DIFFER = {
    "run_dir", "init_from", "data.path", "data.validation_path", "data.captions_jsonl", "data.revalidate",
    "data.workers", "data.cache_mb", "data.stall_seconds", "train.preview.upsampler", "train.wandb_project",
}  # fmt: skip
_COUNTS = ("images", "batches of validation")  # worth telling
_SECONDS_TO_APPEAR = 30.0  # of a file in a network's file system


def check_alike(config: RunConfig, data: DataStream, validation: ValidationData | None) -> None:
    """Checks that all processes have the same options and images; each opens its own.

    Otherwise each would train weights of its own, or wait for others that do something else.

    Raises:
        SharedError: they differ.
    """
    if jax.process_count() == 1:
        return
    options = {name: value for name, value in flatten_dict(nested(config), sep=".").items() if name not in MAY_DIFFER}
    folder = str(Path(config.run_dir).expanduser().absolute())  # Orbax wants one name for it
    _require_equal({
        "images": data.examples_per_epoch,
        "images in their shards, folders or buckets": data.fingerprint,
        "batches of validation": 0 if validation is None else len(validation),
        "paths of the run folder": zlib.crc32(os.fsencode(folder)),
        "versions of the code": zlib.crc32(",".join(options).encode()),
    })  # fmt: skip
    # Only now, as arrays of different lengths cannot be exchanged.
    _require_equal({
        f"--config.{name}": zlib.crc32(json.dumps(value, default=str).encode()) for name, value in options.items()
    })  # fmt: skip


def _require_equal(facts: Mapping[str, int]) -> None:
    everywhere = multihost_utils.process_allgather(np.array([fact % 2**32 for fact in facts.values()], np.uint32)).T
    different = {name: row.tolist() for name, row in zip(facts, everywhere, strict=True) if len(set(row)) > 1}
    if different:
        counts = (f"{name}: {row}" if name in _COUNTS else name for name, row in different.items())
        raise SharedError(f"the processes have different {', '.join(counts)}; start all with the same")


def check_shared(folder: Path) -> None:
    """Checks that every process sees what the first one writes to `folder`.

    Raises:
        SharedError: one does not.
    """
    if jax.process_count() == 1:
        return
    first = jax.process_index() == 0
    token = int(multihost_utils.broadcast_one_to_all(np.int32(secrets.randbelow(2**31))))
    file = folder / f".seen_by_all_{token}"
    with together("the folder is written"):
        if first:
            try:
                file.touch()
            except OSError as error:
                raise GlideError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error
    try:
        with together("the folder is seen"):
            until = time.monotonic() + _SECONDS_TO_APPEAR
            while not file.exists():
                if time.monotonic() > until:
                    raise GlideError(f"{folder} is not on storage that all processes share; change --config.run_dir")
                time.sleep(0.5)
    finally:
        if first:
            file.unlink()
