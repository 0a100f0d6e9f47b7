"""What the processes of a run must have in common: options, images, and the run's folder."""

import json
import os
import secrets
import time
import zlib
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

# Options in which machines may differ.
_OWN = {
    "run_dir", "init_from", "data.path", "data.validation_path", "data.captions_jsonl", "data.revalidate",
    "data.workers", "data.cache_mb", "data.stall_seconds", "train.preview.upsampler", "train.wandb_project",
}  # fmt: skip
_SECONDS_TO_APPEAR = 30.0  # of a file in a network's file system


def check_alike(config: RunConfig, data: DataStream, validation: ValidationData | None) -> None:
    """Checks that all processes have the same options and images; each opens its own.

    Otherwise each would train weights of its own, or wait for others that do something else.

    Raises:
        SharedError: they differ.
    """
    if jax.process_count() == 1:
        return
    options = {name: value for name, value in flatten_dict(nested(config), sep=".").items() if name not in _OWN}
    folder = str(Path(config.run_dir).expanduser().absolute())  # Orbax wants one name for it
    facts = {
        "images": data.examples_per_epoch,
        "images in their shards, folders or buckets": data.fingerprint,
        "batches of validation": 0 if validation is None else len(validation),
        "options": zlib.crc32(json.dumps(options, default=str).encode()),
        "paths of the run folder": zlib.crc32(os.fsencode(folder)),
    }
    everywhere = multihost_utils.process_allgather(np.array([fact % 2**32 for fact in facts.values()], np.uint32))
    for name, values in zip(facts, everywhere.T.tolist(), strict=True):
        if len(set(values)) > 1:
            counts = f": {values}" if name in ("images", "batches of validation") else ""
            raise SharedError(f"the processes have different {name}{counts}; start all with the same")


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
