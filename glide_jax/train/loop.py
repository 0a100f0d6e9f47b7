"""The training loop: data in, checkpoints, logs and grids out."""

import signal
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from glide_jax import progress
from glide_jax.checkpoint import CheckpointStore
from glide_jax.data.examples import Batch
from glide_jax.errors import GlideError
from glide_jax.parallel import make_mesh, put_batch, wait_for_all
from glide_jax.sample import Stage
from glide_jax.train.flops import peak_flops, step_flops
from glide_jax.train.goodput import Goodput
from glide_jax.train.interrupt import Interrupt
from glide_jax.train.meter import Meter
from glide_jax.train.optimizer import learning_rate
from glide_jax.train.origin import Origin
from glide_jax.train.previews import Previews, load_preview_upsampler
from glide_jax.train.program import Program
from glide_jax.train.run_config import RunConfig
from glide_jax.train.run_data import preview_examples, training_data, validation_data
from glide_jax.train.run_log import RunLog
from glide_jax.train.skips import SkipWatch, TooManySkipped


class Trainer:
    """One run, from its newest checkpoint or from the start; every process of the run makes one.

    Raises:
        GlideError: unusable data, folder, starting weights or mesh; all before anything is compiled.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config, self.run_dir = config, Path(config.run_dir).expanduser()
        train = config.train
        self.mesh = make_mesh(config.parallel)
        self.origin = Origin.of(config)
        self.goodput = Goodput.from_record(self.origin.record.get("goodput") if self.origin.continues else None)
        self.program = Program(config, self.mesh)
        self.data = training_data(config, self.origin.position)
        self.validation = validation_data(config)
        self._upsampler = load_preview_upsampler(train.preview, config.model)
        # Last, because it creates the folder.
        self.store = CheckpointStore(
            self.run_dir / "checkpoints",
            keep_last=train.keep_checkpoints,
            keep_every=train.keep_checkpoints_every or None,
            keep_best=train.keep_best_checkpoints,
        )
        self.state = self.origin.state(self.program, self.store)
        self.step = int(self.state["step"])
        self._validated: tuple[int, float] | None = None
        # Of the weights that fine-tuning began with.
        self._first_mse: float | None = self.origin.record.get("first_mse") if self.origin.continues else None

    def run(self) -> int:
        """Trains to `max_steps`; returns 0, or 128 + the signal's number (130 for Ctrl-C, 143 for SIGTERM) after
        saving.

        Raises:
            GlideError: too many updates in a row were skipped, the data can no longer be read, or the disk is full; the
                state is saved if it can be, and the message says so.
        """
        train = self.config.train
        if self.step >= train.max_steps:
            print(f"{self.run_dir} already has {self.step} updates; raise --config.train.max_steps to go on")
            return 0
        with ExitStack() as stack:
            self.log = stack.enter_context(RunLog(self.run_dir, self.config))
            interrupt = stack.enter_context(Interrupt())
            stack.enter_context(self.store)
            stack.enter_context(self.data)
            self._bar = stack.enter_context(progress.bar("training", train.max_steps, self.step, quiet=not _is_first()))
            step_fn = self.program.compile()
            wait_for_all(f"{self.run_dir}, update {self.step}")
            try:
                self._begin(step_fn)
                self._train(step_fn, interrupt)
                return self._finish(interrupt)
            except GlideError as error:
                if self._saved():
                    raise GlideError(f"{error}; all {self.step} updates are saved") from error
                raise

    def _begin(self, step_fn: jax.stages.Compiled) -> None:
        train = self.config.train
        examples = preview_examples(self.config)
        stage = Stage(self.program.model, self.config.diffusion)
        self._previews = Previews(stage, train.preview, examples, self._upsampler)
        self.log.picture(0, "data", self._previews.data())
        self._skipped = int(self.state["skips"]["count"])
        self._watch = SkipWatch(self.run_dir, train.max_skipped_updates, self._skipped)
        peak = peak_flops(jax.devices()[0].device_kind, train.peak_tflops)
        utilization = step_flops(step_fn, train.gradient_accumulation_steps) / peak if peak else None
        self._meter = Meter(train.batch_size, self.goodput, lambda: self.data.wait_seconds, utilization)
        self._rate = learning_rate(train.optimizer, train.max_steps)

    def _train(self, step_fn: jax.stages.Compiled, interrupt: Interrupt) -> None:
        if self.step == 0 and self.config.init_from:
            self._show_beginning()
        pending: tuple[int, Mapping[str, Array], Batch] | None = None
        while self.step < self.config.train.max_steps and not interrupt.stops(self.step):
            batch = next(self.data)
            self.state, metrics = step_fn(self.state, put_batch(batch.arrays, self.mesh))
            self.step += 1
            # Reading the update before keeps the device busy while the host waits.
            if pending is not None:
                self._account(*pending)
            pending = self.step, metrics, batch
            if self._periodic_is_due():
                self._account(*pending)
                pending = None
                self._periodic()
                self._meter.resume()
        if pending is not None:
            self._account(*pending)

    def _show_beginning(self) -> None:
        """What fine-tuning begins with, to compare its end with."""
        self._validate()
        self._first_mse = self._validated and self._validated[1]
        self._draw()
        self._meter.resume()

    def _account(self, step: int, metrics: Mapping[str, Array], batch: Batch) -> None:
        """Takes in the metrics of an update, waiting for the device to have done it."""
        values = dict(jax.device_get(metrics))
        count = int(values.pop("skipped_updates"))
        self._meter.add(values, skipped=count > self._skipped)
        self._skipped = count
        try:
            self._watch.see(step, count, float(values["loss"]), float(values["grad_norm"]), batch)
        except TooManySkipped:
            self._save()
            raise
        train = self.config.train
        if step % train.log_every == 0 or step == train.max_steps:
            figures = self._meter.read()
            self._show(step, figures)
            rate = float(self._rate(max(step - count - 1, 0)))
            counters = {"learning_rate": rate, "skipped_updates": count}
            self.log.write(step, figures | counters | self.data.figures())
        self._bar.update()

    def _show(self, step: int, figures: Mapping[str, float]) -> None:
        loss = f"loss {figures['loss']:.4f}" if "loss" in figures else "all updates skipped"
        self._bar.update(0, f"{loss}  {figures['images_per_second']:.0f} images/s")

    def _due(self, every: int) -> bool:
        return self.step == self.config.train.max_steps or (every > 0 and self.step % every == 0)

    def _periodic_is_due(self) -> bool:
        train = self.config.train
        return any(map(self._due, (train.validate_every, train.sample_every, train.save_every)))

    def _periodic(self) -> None:
        train = self.config.train
        if self._due(train.validate_every):
            self._validate()
        if self._due(train.sample_every):
            self._draw()
        if self._due(train.save_every):
            self._save()

    def _validate(self) -> None:
        if self.validation is None:
            return
        step_fn = self.program.validation_step
        sums = [step_fn(self.state["ema"], put_batch(batch.arrays, self.mesh)) for batch in self.validation]
        total, count = np.sum(jax.device_get(sums), axis=0)
        self._validated = self.step, float(total / count)
        self.log.write(self.step, {"validation_mse": self._validated[1]})

    def _draw(self) -> None:
        """The first process draws on its first device, with a whole copy of the averaged weights there."""
        whole = jax.device_put(self.state["ema"], NamedSharding(self.mesh, PartitionSpec()))
        if _is_first():
            params = jax.tree.map(lambda x: x.addressable_data(0), whole)
            self.log.picture(self.step, "grid", self._previews.draw(params))

    def _save(self) -> None:
        config = self.config
        record: dict[str, Any] = {
            "model": asdict(config.model),
            "diffusion": asdict(config.diffusion),
            "config": asdict(config),
            "position": self.data.position,
            "step": self.step,
            "goodput": asdict(self.goodput),
            **self.origin.source,
        }
        if self._validated and self._validated[0] == self.step:
            record["validation_mse"] = self._validated[1]
        if self._first_mse is not None:
            record["first_mse"] = self._first_mse
        self.store.save(self.step, self.state, record)

    def _saved(self) -> bool:
        """Whether no update is lost after an error, which is seen to if it can be.

        Of several processes this may be the only one to have met the error, and a save needs all.
        """
        if jax.process_count() > 1 or not self.step:
            return False
        with suppress(GlideError):  # the disk may be full for the checkpoint too
            self.store.wait()
            if self.store.latest() != self.step:
                self._save()
                self.store.wait()
            return self.store.latest() == self.step
        return False

    def _finish(self, interrupt: Interrupt) -> int:
        received = interrupt.received
        if received and self.store.latest() != self.step:
            self._save()
        self.store.wait()
        counters = self.data.report()
        self.log.write(self.step, {f"data/{reason}": count for reason, count in counters.items()})
        if _is_first():
            self._say_goodbye(counters, received)
        return 128 + received if received else 0

    def _say_goodbye(self, counters: Mapping[str, int], received: signal.Signals | None) -> None:
        if faults := {reason: count for reason, count in counters.items() if reason not in ("usable", "read")}:
            print("samples left out: " + ", ".join(f"{count} {reason}" for reason, count in faults.items()))
        if received:
            print(f"stopped by {received.name} after {self.step} updates; run the same command to go on")
        else:
            if self._first_mse is not None and self._validated:
                print(f"validation loss {self._first_mse:.4f} before, {self._validated[1]:.4f} after")
            compared = self.log.before_and_after(self.step)
            pictures = f"{compared} and the grids are" if compared else "grids are"
            print(f"done: {self.step} updates; {pictures} in {self.run_dir / 'samples'}")


def _is_first() -> bool:
    return jax.process_index() == 0
