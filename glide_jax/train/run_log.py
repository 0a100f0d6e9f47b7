"""What a run writes down: one JSON line an entry, and the same to TensorBoard where tensorboardX is installed."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from glide_jax.errors import GlideError
from glide_jax.images import Pixels, save_png


class RunLog:
    """Appends to `RUN/log.jsonl` and `RUN/tensorboard/`, and writes pictures to `RUN/samples/`.

    Raises:
        GlideError: the run folder cannot be written to.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._file = (run_dir / "log.jsonl").open("a")
        except OSError as error:
            raise GlideError(f"cannot write to {run_dir}: {error.strerror}; choose another --config.run_dir") from error
        self._board = _tensorboard(run_dir / "tensorboard")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Appends one line of figures after `step` updates."""
        line = {"step": step, "time": round(time.time(), 3)} | {k: _short(v) for k, v in values.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, pixels: Pixels) -> Path:
        """Writes a picture drawn after `step` updates and returns its path."""
        path = self._run_dir / "samples" / f"{name}_{step:08d}.png"
        save_png(path, pixels)
        if self._board is not None:
            self._board.add_image(name, pixels, step, dataformats="HWC")
        return path


def _short(value: float | int) -> float | int:
    return value if isinstance(value, int) else float(np.format_float_scientific(value, precision=6))


def _tensorboard(directory: Path) -> Any | None:
    try:
        from tensorboardX import SummaryWriter  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    return SummaryWriter(str(directory))
