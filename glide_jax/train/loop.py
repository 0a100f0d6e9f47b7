"""The training loop: data in, checkpoints, logs and grids out."""

import math
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from glide_jax import progress
from glide_jax.checkpoint import CheckpointStore, complete_steps, load_weights, read_record
from glide_jax.data import DataConfig, DataStream, ValidationData, fixed_examples, open_data, open_validation
from glide_jax.diffusion.schedules import DiffusionConfig, Schedule
from glide_jax.errors import GlideError
from glide_jax.models import Glide, ModelConfig
from glide_jax.parallel import ParallelConfig, make_mesh, put_batch, state_shardings, with_shardings
from glide_jax.randomness import stream_key
from glide_jax.sample import Stage
from glide_jax.train.config import TrainConfig
from glide_jax.train.draws import training_draws, validation_draws
from glide_jax.train.interrupt import Interrupt
from glide_jax.train.optimizer import learning_rate, make_optimizer
from glide_jax.train.previews import Previews
from glide_jax.train.run_log import RunLog
from glide_jax.train.step import State, init_state, make_train_step, make_validation_step, state_from_params


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides a training run.

    Attributes:
        run_dir: folder of checkpoints, logs and grids; running again with the same folder continues.
        init_from: checkpoint or converted model whose weights to start from; empty starts from fresh ones.
        model, diffusion, data, train, parallel: as their classes say.
    """

    run_dir: str = "runs/glide"
    init_from: str = ""
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    parallel: ParallelConfig = ParallelConfig()


class Trainer:
    """One run, from its newest checkpoint or from the start.

    Raises:
        GlideError: unusable data, folder, starting weights or mesh; all before anything is compiled.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.run_dir = Path(config.run_dir)
        train = config.train
        self.mesh = make_mesh(config.parallel)
        self.model = Glide(config.model, train.dtype, train.remat)
        self.schedule = Schedule.from_config(config.diffusion)
        self.optimizer = make_optimizer(train.optimizer, train.max_steps)
        checkpoints = self.run_dir / "checkpoints"
        self._continues = bool(complete_steps(checkpoints))
        position, self._source = self._check_record()
        self.data = self._open_data(position)
        self.validation = self._open_validation()
        # Last, because it creates the folder.
        self.store = CheckpointStore(checkpoints, keep_last=train.keep_checkpoints)
        self.state = self._starting_state()
        self.step = int(self.state["step"])

    def _check_record(self) -> tuple[int, dict[str, Any]]:
        """Refuses a folder that holds another architecture.

        Returns:
            The data position to go on from, and what is known of the PyTorch file that the weights once came from.
        """
        origin = self.run_dir if self._continues else self.config.init_from
        if not origin:
            return 0, {}
        record = read_record(origin)
        for name, ours in (("model", self.config.model), ("diffusion", self.config.diffusion)):
            _require_same(name, asdict(ours), record.get(name, {}), str(origin))
        position = int(record["position"]) if self._continues else 0
        return position, {name: record[name] for name in ("source",) if name in record}

    def _sizes(self) -> dict[str, Any]:
        model = self.config.model
        return {
            "image_size": model.image_size,
            "low_res_size": model.low_res_size if model.super_res else None,
            "text_ctx": model.text_ctx,
        }

    def _processes(self) -> dict[str, int]:
        return {"process_index": jax.process_index(), "process_count": jax.process_count()}

    def _open_data(self, position: int) -> DataStream:
        train = self.config.train
        return open_data(
            self.config.data, **self._sizes(), batch_size=train.batch_size, seed=train.seed, position=position,
            **self._processes(),
        )  # fmt: skip

    def _open_validation(self) -> ValidationData | None:
        train = self.config.train
        if not self.config.data.validation_path or not train.validate_every:
            return None
        return open_validation(self.config.data, **self._sizes(), batch_size=train.batch_size, **self._processes())

    def _starting_state(self) -> State:
        key = stream_key(self.config.train.seed, "init")
        abstract = jax.eval_shape(lambda k: init_state(self.model, self.optimizer, k), key)
        shardings = state_shardings(abstract, self.mesh)
        if self._continues:
            return self.store.restore(with_shardings(abstract, shardings))[0]
        if self.config.init_from:
            placed = with_shardings(abstract["params"], shardings["params"])
            params = load_weights(self.config.init_from, placed)
            return jax.jit(lambda p: state_from_params(p, self.optimizer), out_shardings=shardings)(params)
        return jax.jit(lambda k: init_state(self.model, self.optimizer, k), out_shardings=shardings)(key)

    def run(self) -> int:
        """Trains to `max_steps`; returns 0, or the signal's exit code (130 for Ctrl-C) after saving."""
        config, train = self.config, self.config.train
        draws = training_draws(train.seed, config.diffusion.diffusion_steps)
        step_fn = jax.jit(
            make_train_step(self.model, self.schedule, train.loss, self.optimizer, train.optimizer, draws),
            donate_argnums=0,
        )
        self._validation_step = jax.jit(
            make_validation_step(self.model, self.schedule, validation_draws(config.diffusion.diffusion_steps))
        )
        self._previews = self._make_previews()
        if self.step >= train.max_steps:
            print(f"{self.run_dir} already has {self.step} updates; raise --config.train.max_steps to go on")
            return 0
        with (
            RunLog(self.run_dir) as log,
            Interrupt() as interrupt,
            self.store,
            self.data,
            progress.bar("training", train.max_steps, self.step) as bar,
        ):
            log.picture(0, "data", self._previews.data())
            meter = _Meter(self.config, self.data, log, bar)
            pending = None
            while self.step < train.max_steps and not interrupt.received:
                batch = put_batch(next(self.data).arrays, self.mesh)
                self.state, metrics = step_fn(self.state, batch)
                self.step += 1
                # Reading the update before keeps the device busy while the host waits.
                if pending is not None:
                    meter.add(*pending)
                pending = self.step, metrics
                self._periodic(log)
            if pending is not None:
                meter.add(*pending)
            return self._finish(log, interrupt.received)

    def _make_previews(self) -> Previews:
        preview = self.config.train.preview
        examples = fixed_examples(self.config.data, preview.count, **self._sizes())
        return Previews(Stage(self.model, self.config.diffusion), preview, examples)

    def _periodic(self, log: RunLog) -> None:
        train, last = self.config.train, self.step == self.config.train.max_steps
        if _due(self.step, train.validate_every, last):
            self._validate(log)
        if _due(self.step, train.sample_every, last):
            log.picture(self.step, "grid", self._previews.draw(self.state["ema"]))
        if _due(self.step, train.save_every, last):
            self._save()

    def _validate(self, log: RunLog) -> None:
        if self.validation is None:
            return
        sums = [
            self._validation_step(self.state["ema"], put_batch(batch.arrays, self.mesh)) for batch in self.validation
        ]
        total, count = np.sum(jax.device_get(sums), axis=0)
        log.write(self.step, {"validation_mse": float(total / count)})

    def _save(self) -> None:
        config = self.config
        record = {
            "model": asdict(config.model),
            "diffusion": asdict(config.diffusion),
            "config": asdict(config),
            "position": self.data.position,
            "step": self.step,
            **self._source,
        }
        self.store.save(self.step, self.state, record)

    def _finish(self, log: RunLog, received: signal.Signals | None) -> int:
        if received and self.store.latest() != self.step:
            self._save()
        self.store.wait()
        counters = self.data.report()
        log.write(self.step, {f"data/{reason}": count for reason, count in counters.items()})
        if faults := {reason: count for reason, count in counters.items() if reason not in ("usable", "read")}:
            print("samples left out: " + ", ".join(f"{count} {reason}" for reason, count in faults.items()))
        if received:
            print(f"stopped by {received.name} after {self.step} updates; run the same command to go on")
            return 128 + received
        print(f"done: {self.step} updates; grids are in {self.run_dir / 'samples'}")
        return 0


class _Meter:
    """Averages metrics between log lines, and how fast it went."""

    def __init__(self, config: RunConfig, data: DataStream, log: RunLog, bar: progress.Bar) -> None:
        self._train, self._data, self._log, self._bar = config.train, data, log, bar
        self._rate = learning_rate(config.train.optimizer, config.train.max_steps)
        self._restart()

    def _restart(self) -> None:
        self._sums: dict[str, float] = {}
        self._count, self._begun, self._waited = 0, time.monotonic(), self._data.wait_seconds

    def add(self, step: int, metrics: Mapping[str, Array]) -> None:
        """Takes the metrics of one update, waiting for the device to have done it."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]):
            raise GlideError("the loss is not finite; the last checkpoint is kept: lower train.optimizer.learning_rate")
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if step % self._train.log_every == 0 or step == self._train.max_steps:
            figures = self._read() | {"learning_rate": float(self._rate(step - 1))}
            self._log.write(step, figures | self._data.figures())
            self._bar.update(0, f"loss {figures['loss']:.4f}  {figures['images_per_second']:.0f} images/s")
            self._restart()
        self._bar.update()

    def _read(self) -> dict[str, float]:
        elapsed = time.monotonic() - self._begun
        return {name: total / self._count for name, total in self._sums.items()} | {
            "images_per_second": self._count * self._train.batch_size / elapsed,
            "data_wait_share": (self._data.wait_seconds - self._waited) / elapsed,
        }


def _due(step: int, every: int, last: bool) -> bool:
    return last or (every > 0 and step % every == 0)


def _require_same(name: str, ours: dict[str, Any], theirs: dict[str, Any], where: str) -> None:
    # Dropout is no part of what weights are of.
    kept = {k: list(v) if isinstance(v, tuple) else v for k, v in ours.items() if k != "dropout"}
    different = [k for k, v in kept.items() if theirs.get(k) != v]
    if different:
        listed = ", ".join(f"{name}.{k}: {theirs.get(k)} there, {ours[k]} here" for k in different)
        raise GlideError(f"{where} is of another model ({listed}); change --config.{name} or choose another folder")
