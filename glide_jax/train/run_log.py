"""What a run writes down: one JSON line an entry, and the same to TensorBoard and Weights & Biases where wanted."""

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from glide_jax.errors import GlideError
from glide_jax.images import Pixels, grid, open_image, save_png
from glide_jax.train.run_config import RunConfig
from glide_jax.train.writing import append_json, writing


class RunLog:
    """Appends to `RUN/log.jsonl` and `RUN/tensorboard/`, and writes pictures to `RUN/samples/`.

    Of several processes the first alone writes.

    Raises:
        GlideError: the run folder cannot be written to, or W&B is asked for and not to be had.
    """

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        self._run_dir, self._writes = run_dir, jax.process_index() == 0
        self._board = self._wandb = None
        if not self._writes:
            return
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            if config.train.wandb_project:
                self._wandb = _wandb_run(run_dir, config)
            self._file = (run_dir / "log.jsonl").open("ab", buffering=0)
            self._board = _tensorboard(run_dir / "tensorboard")
        except OSError as error:
            raise GlideError(f"cannot write to {run_dir}: {error.strerror}; choose another --config.run_dir") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writes:
            self._file.close()
        # What a full disk leaves unwritten has been said by then.
        with suppress(OSError):
            if self._board is not None:
                self._board.close()
        with suppress(OSError):
            if self._wandb is not None:
                self._wandb.finish()

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Appends one line of figures after `step` updates; raises `GlideError` if it cannot be written."""
        if not self._writes:
            return
        line = {"step": step, "time": round(time.time(), 3)} | {k: _short(v) for k, v in values.items()}
        append_json(self._file, line)
        if self._board is not None:
            self._board.write(step, values)
        if self._wandb is not None:
            with writing(self._run_dir / "wandb"):
                self._wandb.log(dict(values) | {"iter": step})

    def picture(self, step: int, name: str, pixels: Pixels) -> None:
        """Writes a picture drawn after `step` updates; raises `GlideError` if it cannot be written."""
        if not self._writes:
            return
        path = self._path(name, step)
        save_png(path, pixels)
        if self._board is not None:
            self._board.picture(step, name, pixels)
        if self._wandb is not None:
            import wandb  # noqa: PLC0415 - an extra

            with writing(self._run_dir / "wandb"):
                self._wandb.log({name: wandb.Image(str(path)), "iter": step})

    def before_and_after(self, step: int) -> str:
        """Puts the grids of the start and of `step` side by side, after the true pictures if their layout is the same.

        Returns the name of the file, or nothing where no grid was drawn at the start.
        """
        if not self._path("grid", 0).exists():
            return ""
        before, after = _read(self._path("grid", 0)), _read(self._path("grid", step))
        sheets = {"before": before, f"after {step} updates": after}
        true = _read(self._path("data", 0))
        if true.shape == before.shape:
            sheets = {"what it is shown": true, **sheets}
        name = "before_after.png"
        save_png(self._run_dir / "samples" / name, grid(list(sheets.values()), list(sheets), columns=len(sheets)))
        return name

    def _path(self, name: str, step: int) -> Path:
        return self._run_dir / "samples" / f"{name}_{step:08d}.png"


def _read(path: Path) -> Pixels:
    return np.asarray(open_image(path))


def _short(value: float | int) -> float | int:
    return value if isinstance(value, int) else float(np.format_float_scientific(value, precision=6))


class _Board:
    """An events file for TensorBoard, written at once.

    The thread of tensorboardX's own SummaryWriter dies of a full disk with a traceback; the tenth event after it waits
    for ever.
    """

    def __init__(self, directory: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # noqa: PLC0415 - an extra

        directory.mkdir(exist_ok=True)
        self._directory, self._events = directory, EventsWriter(str(directory / "events"))

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        from tensorboardX.summary import scalar  # noqa: PLC0415 - an extra

        self._add(step, *(scalar(name, value) for name, value in values.items()))

    def picture(self, step: int, name: str, pixels: Pixels) -> None:
        from tensorboardX.summary import image  # noqa: PLC0415 - an extra

        self._add(step, image(name, pixels, dataformats="HWC"))

    def close(self) -> None:
        self._events.close()

    def _add(self, step: int, *summaries: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415 - an extra

        with writing(self._directory):
            for summary in summaries:
                self._events.write_event(Event(summary=summary, step=step, wall_time=time.time()))
            self._events.flush()


def _tensorboard(directory: Path) -> _Board | None:
    try:
        return _Board(directory)
    except ImportError:
        return None


def _wandb_run(run_dir: Path, config: RunConfig) -> Any:
    """The W&B run of this folder: the same one after a restart, because its id is the folder's own."""
    try:
        import wandb  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise GlideError("train.wandb_project needs wandb: pip install 'glide-jax[wandb]'") from error
    id_file = run_dir / "wandb_id"
    if not id_file.exists() or not id_file.read_text():  # a full disk leaves it empty
        id_file.write_text(secrets.token_hex(4))
    run = wandb.init(
        project=config.train.wandb_project, dir=run_dir, id=id_file.read_text(), resume="allow", config=asdict(config)
    )
    run.define_metric("*", step_metric="iter")
    return run
