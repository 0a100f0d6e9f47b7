"""The training loop: data in; checkpoints, logs and sample grids out."""

import signal
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from glide_jax import progress
from glide_jax.checkpoint import CheckpointStore
from glide_jax.data.examples import Batch
from glide_jax.errors import GlideError
from glide_jax.options import nested
from glide_jax.parallel import make_mesh, put_batch, wait_for_all
from glide_jax.sample import Stage
from glide_jax.train.config import RunConfig
from glide_jax.train.interrupt import Interrupt
from glide_jax.train.log import RunLog, SkipWatch, TooManySkipped
from glide_jax.train.meter import Goodput, Meter, peak_flops, step_flops
from glide_jax.train.previews import Previews, load_preview_upsampler
from glide_jax.train.program import Program
from glide_jax.train.start import StartPoint, preview_examples, training_data, validation_data
from glide_jax.train.state import learning_rate


class Trainer:
    """One run, from its newest checkpoint or from the start; every process of the run makes one.

    Raises:
        GlideError: unusable data, folder, starting weights or mesh; all before anything is compiled.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config, self.run_dir = config, Path(config.run_dir).expanduser()
        train = config.train
        self.mesh = make_mesh(config.parallel)
        self.start = StartPoint.of(config)
        self.goodput = Goodput(**self.start.record.get("goodput", {}))
        self.program = Program(config, self.mesh)
        self.data = training_data(config, self.start.position)
        self.validation = validation_data(config)
        self.upsampler = load_preview_upsampler(train.preview, config.model)
        # Last, because it creates the folder.
        self.store = CheckpointStore(
            self.run_dir / "checkpoints",
            keep_last=train.keep_checkpoints,
            keep_every=train.keep_checkpoints_every or None,
            keep_best=train.keep_best_checkpoints,
        )
        self.state = self.start.state(self.program, self.store)
        self.step = int(self.state["step"])
        # Validation loss by step; at 0 that of the weights that fine-tuning started from.
        first = self.start.record.get("first_mse")
        self.validation_mse: dict[int, float] = {} if first is None else {0: first}
        self._unread: tuple[int, Mapping[str, Array], Batch] | None = None

    def run(self) -> int:
        """Trains to `max_steps`; returns 0, or 128 + the signal's number (130 for Ctrl-C, 143 for SIGTERM) after
        saving.

        Raises:
            GlideError: too many steps in a row were skipped, the data can no longer be read, or the disk is full; the
                state is saved if it can be, and the message says so.
        """
        train = self.config.train
        if self.step >= train.max_steps:
            print(f"{self.run_dir} already has {self.step} steps; raise --config.train.max_steps to train on")
            return 0
        periodic = (
            (train.log_every, self._log),
            (train.validate_every, self._validate),
            (train.sample_every, self._sample),
            (train.save_every, self._save),
        )
        with ExitStack() as stack:
            self.log = stack.enter_context(RunLog(self.run_dir, self.config))
            interrupt = stack.enter_context(Interrupt())
            stack.enter_context(self.store)
            stack.enter_context(self.data)
            self.bar = stack.enter_context(progress.bar("training", train.max_steps, self.step, quiet=not _is_first()))
            train_step = self.program.compile()
            wait_for_all(f"{self.run_dir}, step {self.step}")
            try:
                self._prepare(train_step)
                while self.step < train.max_steps and not interrupt.stops(self.step):
                    batch = next(self.data)
                    self.state, metrics = train_step(self.state, put_batch(batch.arrays, self.mesh))
                    self.step += 1
                    # Reading the metrics of the step before only now keeps the device busy while the host waits.
                    self._read_metrics()
                    self._unread = self.step, metrics, batch
                    for every, hook in periodic:
                        if self.step == train.max_steps or (every and self.step % every == 0):
                            self._read_metrics()
                            hook()
                            self.meter.resume()
                self._read_metrics()
                return self._finish(interrupt.received)
            except GlideError as error:
                if self._saved_after(error):
                    raise GlideError(f"{error}; the state after step {self.step} is saved") from error
                raise

    def _prepare(self, train_step: jax.stages.Compiled) -> None:
        """What the hooks need; and a grid and a validation loss of the weights that fine-tuning starts from."""
        train = self.config.train
        stage = Stage(self.program.model, self.config.diffusion)
        self.previews = Previews(stage, train.preview, preview_examples(self.config), self.upsampler)
        self.log.image(0, "data", self.previews.data())
        if self.step == 0 and self.config.init_from:
            self._validate()
            self._sample()
        self.watch = SkipWatch(self.run_dir, train.max_skipped_updates, int(self.state["skips"]["count"]))
        peak = peak_flops(jax.devices()[0].device_kind, train.peak_tflops)
        utilization = step_flops(train_step, train.gradient_accumulation_steps) / peak if peak else None
        self.meter = Meter(train.batch_size, self.goodput, lambda: self.data.wait_seconds, utilization)
        self.learning_rate = learning_rate(train.optimizer, train.max_steps)

    def _read_metrics(self) -> None:
        """Takes in the metrics of the newest step, unless that is done, waiting for the device to be done with it."""
        if self._unread is None:
            return
        (step, metrics, batch), self._unread = self._unread, None
        values = dict(jax.device_get(metrics))
        skipped = int(values.pop("skipped_updates"))
        self.meter.add(values, skipped=skipped > self.watch.count)
        self.watch.see(step, skipped, float(values["loss"]), float(values["grad_norm"]), batch)
        self.bar.update()

    def _log(self) -> None:
        figures, skipped = self.meter.read(), self.watch.count
        loss = f"loss {figures['loss']:.4f}" if "loss" in figures else "all steps skipped"
        self.bar.update(0, f"{loss}  {figures['images_per_second']:.0f} images/s")
        rate = float(self.learning_rate(max(self.step - skipped - 1, 0)))
        counters = {"learning_rate": rate, "skipped_updates": skipped}
        self.log.write(self.step, figures | counters | self.data.figures())

    def _validate(self) -> None:
        if self.validation is None:
            return
        validation_step = self.program.validation_step
        sums = [validation_step(self.state["ema"], put_batch(batch.arrays, self.mesh)) for batch in self.validation]
        total, count = np.sum(jax.device_get(sums), axis=0)
        self.validation_mse[self.step] = float(total / count)
        self.log.write(self.step, {"validation_mse": self.validation_mse[self.step]})

    def _sample(self) -> None:
        """The first process samples on its first device, with a whole copy of the EMA weights there."""
        whole = jax.device_put(self.state["ema"], NamedSharding(self.mesh, PartitionSpec()))
        if _is_first():
            params = jax.tree.map(lambda x: x.addressable_data(0), whole)
            self.log.image(self.step, "grid", self.previews.sample(params))

    def _save(self) -> None:
        config, losses = self.config, self.validation_mse
        record = {
            "model": asdict(config.model),
            "diffusion": asdict(config.diffusion),
            "config": nested(config),
            "position": self.data.position,
            "step": self.step,
            "goodput": asdict(self.goodput),
            **self.start.source,
            **({"validation_mse": losses[self.step]} if self.step in losses else {}),
            **({"first_mse": losses[0]} if 0 in losses else {}),
        }
        self.store.save(self.step, self.state, record)

    def _saved_after(self, error: GlideError) -> bool:
        """Whether no step is lost after an error, which is seen to if it can be.

        Of several processes this may be the only one to have met the error, and a save needs all.
        """
        if not self.step or (jax.process_count() > 1 and not isinstance(error, TooManySkipped)):
            return False
        with suppress(GlideError):  # the disk may be full for the checkpoint too
            self.store.wait()
            if self.store.latest() != self.step:
                self._save()
                self.store.wait()
            return self.store.latest() == self.step
        return False

    def _finish(self, received: signal.Signals | None) -> int:
        if received and self.store.latest() != self.step:
            self._save()
        self.store.wait()
        counters = self.data.report()
        self.log.write(self.step, {f"data/{reason}": count for reason, count in counters.items()})
        if _is_first():
            self._report(counters, received)
        return 128 + received if received else 0

    def _report(self, counters: Mapping[str, int], received: signal.Signals | None) -> None:
        if faults := {reason: count for reason, count in counters.items() if reason not in ("usable", "read")}:
            print("skipped samples: " + ", ".join(f"{count} {reason}" for reason, count in faults.items()))
        if received:
            print(f"stopped by {received.name} after {self.step} steps; run the same command to resume")
            return
        losses = self.validation_mse
        if 0 in losses and self.step in losses:
            print(f"validation loss {losses[0]:.4f} before, {losses[self.step]:.4f} after")
        compared = self.log.before_and_after(self.step)
        images = f"{compared} and the sample grids are" if compared else "sample grids are"
        print(f"done: {self.step} steps; {images} in {self.run_dir / 'samples'}")


def _is_first() -> bool:
    return jax.process_index() == 0
