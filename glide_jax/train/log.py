"""What a run logs: figures as JSON lines, images, skipped steps; to TensorBoard and Weights & Biases as well.

A full disk leads to a one-line error and never to half a line in a file.
"""

import io
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from glide_jax.data.examples import Batch
from glide_jax.errors import GlideError, install
from glide_jax.images import Pixels, grid, open_image, save_png
from glide_jax.options import nested
from glide_jax.parallel import SharedError
from glide_jax.train.config import RunConfig


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns an OSError, from a full or failing disk say, into a `GlideError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise GlideError(f"cannot write to {path}: {error.strerror or error}") from error


def append_json(file: io.FileIO, line: Mapping[str, Any]) -> None:
    """Appends a line of JSON, whole or not at all, to a file opened without a buffer.

    Raises:
        GlideError: it cannot be written.
    """
    size = os.fstat(file.fileno()).st_size
    rest = memoryview((json.dumps(line) + "\n").encode())
    with writing(str(file.name)):
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


class RunLog:
    """Appends to `RUN/log.jsonl` and `RUN/tensorboard/`, and writes images to `RUN/samples/`.

    With several processes, only the first one writes.

    Raises:
        GlideError: the run folder cannot be written to, or W&B is asked for but not available.
    """

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        self._run_dir, self._writes = run_dir, jax.process_index() == 0
        self._sinks: list[_Board | _Wandb] = []
        if not self._writes:
            return
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            if config.train.wandb_project:
                self._sinks.append(_Wandb(run_dir, config))
            self._file = (run_dir / "log.jsonl").open("ab", buffering=0)
            with suppress(ImportError):
                self._sinks.insert(0, _Board(run_dir / "tensorboard"))
        except OSError as error:
            raise GlideError(f"cannot write to {run_dir}: {error.strerror}; choose another --config.run_dir") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writes:
            self._file.close()
        for sink in self._sinks:
            with suppress(OSError):  # a full disk has been reported by then
                sink.close()

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Appends one line of figures after `step` steps; raises `GlideError` if it cannot be written."""
        if not self._writes:
            return
        line = {"step": step, "time": round(time.time(), 3)} | {k: _short(v) for k, v in values.items()}
        append_json(self._file, line)
        for sink in self._sinks:
            sink.write(step, values)

    def image(self, step: int, name: str, pixels: Pixels) -> None:
        """Writes an image made after `step` steps; raises `GlideError` if it cannot be written."""
        if not self._writes:
            return
        save_png(self._path(name, step), pixels)
        for sink in self._sinks:
            sink.image(step, name, pixels)

    def before_and_after(self, step: int) -> str:
        """Puts the grids from the start and from `step` side by side, after the ground truth if its layout matches.

        Returns the name of the file; empty if there is no grid from the start.
        """
        if not self._path("grid", 0).exists():
            return ""
        true, before, after = (_read(self._path(*which)) for which in (("data", 0), ("grid", 0), ("grid", step)))
        sheets = {"before": before, f"after {step} steps": after}
        if true.shape == before.shape:
            sheets = {"training images": true, **sheets}
        name = "before_after.png"
        save_png(self._run_dir / "samples" / name, grid(list(sheets.values()), list(sheets), columns=len(sheets)))
        return name

    def _path(self, name: str, step: int) -> Path:
        return self._run_dir / "samples" / f"{name}_{step:08d}.png"


def _read(path: Path) -> Pixels:
    return np.asarray(open_image(path))


def _short(value: float | int) -> float | int:
    return value if isinstance(value, int) else float(np.format_float_scientific(value, precision=6))


@contextmanager
def _torch_hidden() -> Iterator[None]:
    """tensorboardX imports torch if it is installed: two seconds and 190 MB, for features not used here."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


class _Board:
    """An events file for TensorBoard, written at once.

    tensorboardX's own SummaryWriter writes in a thread, which dies with a traceback when the disk is full; the tenth
    event after that blocks forever.
    """

    def __init__(self, directory: Path) -> None:
        with _torch_hidden():
            from tensorboardX.event_file_writer import EventsWriter  # noqa: PLC0415 - an extra

        directory.mkdir(exist_ok=True)
        self._directory, self._events = directory, EventsWriter(str(directory / "events"))

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        from tensorboardX.summary import scalar  # noqa: PLC0415 - an extra

        self._add(step, *(scalar(name, value) for name, value in values.items()))

    def image(self, step: int, name: str, pixels: Pixels) -> None:
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


class _Wandb:
    """The W&B run of a run folder; its id is kept in the folder, so that a restart continues the same run."""

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        try:
            import wandb  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise GlideError(f"train.wandb_project needs wandb: {install('wandb')}") from error
        id_file = run_dir / "wandb_id"
        if not id_file.exists() or not id_file.read_text():  # empty after a full disk
            id_file.write_text(secrets.token_hex(4))
        project, identity = config.train.wandb_project, id_file.read_text()
        self._run = wandb.init(project=project, dir=run_dir, id=identity, resume="allow", config=nested(config))
        self._run.define_metric("*", step_metric="iter")
        self._directory = run_dir / "wandb"

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        with writing(self._directory):
            self._run.log(dict(values) | {"iter": step})

    def image(self, step: int, name: str, pixels: Pixels) -> None:
        import wandb  # noqa: PLC0415 - an extra

        self.write(step, {name: wandb.Image(pixels)})

    def close(self) -> None:
        self._run.finish()


class TooManySkipped(SharedError):
    """More steps in a row were skipped than allowed; all processes of a run notice at the same step."""


class SkipWatch:
    """Writes the examples of each skipped step to `RUN/skipped.jsonl`, and stops a run that does nothing but skip.

    Args:
        run_dir: the run folder.
        limit: how many steps in a row may be skipped.
        count: steps skipped before.
    """

    def __init__(self, run_dir: Path, limit: int, count: int) -> None:
        process = jax.process_index()
        self._path = run_dir / (f"skipped.{process}.jsonl" if process else "skipped.jsonl")
        self.count, self._limit, self._in_a_row = count, limit, 0

    def see(self, step: int, count: int, loss: float, grad_norm: float, batch: Batch) -> None:
        """Records a step, with the total number of steps skipped so far.

        Raises:
            TooManySkipped: more than `limit` steps in a row were skipped.
            GlideError: the file cannot be written.
        """
        self._in_a_row = self._in_a_row + 1 if count > self.count else 0
        self.count = count
        if not self._in_a_row:
            return
        line = {
            "step": step,
            "loss": str(loss),  # JSON has no infinities or NaN
            "grad_norm": str(grad_norm),
            "size": str(batch.size),
            "index": batch.arrays["index"].tolist(),
            "captions": batch.captions,
        }
        with writing(self._path), self._path.open("ab", buffering=0) as file:
            append_json(file, line)
        if self._in_a_row > self._limit:
            raise TooManySkipped(
                f"{self._in_a_row} steps in a row were skipped (last: loss {loss:g}, gradient norm {grad_norm:g});"
                f" their examples are in {self._path}: lower train.optimizer.learning_rate or look at the data"
            )
