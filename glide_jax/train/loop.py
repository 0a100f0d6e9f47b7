"""The training loop: data goes in; checkpoints, logs and sample grids come out."""

import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from glide_jax import progress
from glide_jax.checkpoint import CheckpointStore, complete_steps
from glide_jax.data.examples import Batch
from glide_jax.data.transforms import Size
from glide_jax.errors import GlideError
from glide_jax.options import nested
from glide_jax.parallel import make_mesh, put_batch, together, wait_for_all
from glide_jax.train.config import RunConfig
from glide_jax.train.distill import student_settings
from glide_jax.train.interrupt import Interrupt, Stopped, ending_at_once
from glide_jax.train.log import RunLog, SkipWatch, TooManySkipped
from glide_jax.train.memory import StateLost, fitting, fitting_aside
from glide_jax.train.meter import Goodput, Meter, peak_flops
from glide_jax.train.packing import averaged
from glide_jax.train.previews import open_previews
from glide_jax.train.prior import with_prior
from glide_jax.train.processes import check_alike, check_shared
from glide_jax.train.program import Program
from glide_jax.train.start import StartPoint, lora_entry, training_data, validation_data, warn_of_warm_up

_LOG_SECONDS = 30.0  # between log lines, at most
_MORE_MICRO_BATCHES = "--config.train.gradient_accumulation_steps, whose micro-batches validation uses too"


class Trainer:
    """One run, from its newest checkpoint or from the start; every process of the run makes one.

    Args:
        config: the run.
        begun: when the program started, by `time.monotonic()`, for `train.max_minutes`; by default now.

    Raises:
        GlideError: unusable data, folder, starting weights or mesh; all of it before anything is compiled.
    """

    def __init__(self, config: RunConfig, begun: float | None = None) -> None:
        self.config, self.run_dir, train = config, Path(config.run_dir).expanduser(), config.train
        begun = time.monotonic() if begun is None else begun
        with ending_at_once(self._nothing_to_save):
            self._make_ready()
        # As if there had been no stop in between.
        self._begun = begun - 60 * self.start.minutes
        # The share of train.max_minutes used, according to the newest step whose metrics have been read.
        self._time_used = self.start.minutes / train.max_minutes if train.max_minutes else 0.0

    def _make_ready(self) -> None:
        config, train = self.config, self.config.train
        if _is_first():
            warn_of_warm_up(train)
        with _phase("starting the devices"):
            self.mesh = make_mesh(config.parallel)
        with _phase("looking for a checkpoint"), together("checkpoint found"):
            self.start = StartPoint.of(config)
        if _is_first() and (changed := self.start.changed(config)):
            print(f"resuming with other options than before: {', '.join(changed)}", file=sys.stderr)
        self.goodput = Goodput(**self.start.record.get("goodput", {}))
        with _phase("building the model"):
            self.program = Program(config, self.mesh)
        with _phase("opening the data"), together("data open"):
            data = with_prior(config) if train.prior.prompts else config.data
            self.data = training_data(replace(config, data=data), self.start)
            self.validation = validation_data(config)
            self.previews = open_previews(config, self.program.model)
        check_alike(config, self.data, self.validation)
        # Last, because it creates the folder.
        with together("store open"):
            self.store = CheckpointStore(
                self.run_dir / "checkpoints",
                keep_last=train.keep_checkpoints,
                keep_every=train.keep_checkpoints_every or None,
                keep_best=train.keep_best_checkpoints,
            )
        check_shared(self.run_dir / "checkpoints")
        with _phase(self.start.what_is_loaded(config)):
            self.state = self.start.state(self.program, self.store)
            self.step = int(self.state["step"])
            self.lora = lora_entry(self.program, self.state, self.start.record)
        # Validation loss by step; step 0 is the weights that fine-tuning started from.
        first = self.start.record.get("first_mse")
        self.validation_mse: dict[int, float] = {} if first is None else {0: first}
        self._unread: tuple[int, Mapping[str, Array], Batch, Mapping[str, float | int]] | None = None

    def run(self) -> int:
        """Trains to `max_steps` or `max_minutes`; returns 0, or 128 + the signal's number after saving.

        A signal before the first step ends the process at once, with the same code: there is nothing to save.

        Raises:
            GlideError: too many steps in a row were skipped, the data can no longer be read, or the disk is full; the
                state is saved if possible, and the message says so.
        """
        train = self.config.train
        if self._is_over():
            more = "max_steps" if self.step >= train.max_steps else "max_minutes"
            print(f"{self.run_dir} already has {self.step} steps; raise --config.train.{more} to train on")
            self.data.close()
            self.store.close()
            return 0
        periodic = (
            (train.validate_every, self._validate),
            (train.save_every, self._save),
            (train.sample_every, self._sample),
        )
        with ExitStack() as stack:
            with ending_at_once(self._nothing_to_save):
                with together("log open"):
                    self.log = stack.enter_context(RunLog(self.run_dir, self.config))
                stack.enter_context(self.store)
                stack.enter_context(self.data)
                self._train_steps = dict(self._compiled())
                with _phase("waiting for the other processes"):
                    wait_for_all("compiled")
            interrupt = stack.enter_context(Interrupt())
            end = self._begun + 60 * train.max_minutes if train.max_minutes else float("inf")
            self.bar = stack.enter_context(
                progress.bar("training, steps", train.max_steps, self.step, deadline=end, quiet=not _is_first())
            )
            try:
                self._prepare()
                with together("prepared"):
                    self._check_time_left()
                over = False
                while not over and not interrupt.stops(self.step) and (batch := self._next_batch(interrupt)):
                    self._train(batch)
                    over = self._is_over()
                    due = [hook for every, hook in periodic if over or (every and self.step % every == 0)]
                    if due:
                        self._read_metrics()
                        for hook in due:
                            hook()
                        self.meter.resume()
                self._read_metrics()
                code = self._finish(interrupt.received)
            except GlideError as error:
                if self._saved_after(error):
                    raise type(error)(f"{error}; the state after step {self.step} is saved") from error
                raise
        # The first process may still be sampling, for which JAX would give it five minutes.
        with ending_at_once(lambda: _after(self.step)):
            wait_for_all("end")
        return code

    def _check_time_left(self) -> None:
        most, minutes = self.config.train.max_minutes, self._minutes()
        if not self.step and 0 < most <= minutes:
            raise GlideError(
                f"train.max_minutes={most:g} are over before the first step: starting took {minutes:.1f} minutes"
            )

    def _compiled(self) -> Iterator[tuple[Size, jax.stages.Compiled]]:
        """The training step for each image size, compiled first so that a lack of memory does not show later."""
        counts = {size: count for size, count in self.data.buckets.counts.items() if count}
        for number, (size, count) in enumerate(counts.items(), start=1):
            of = f" for {size}, {number} of {len(counts)}: {count} images" if len(counts) > 1 else ""
            with _phase(f"compiling the training step{of}"), fitting(self.config.train):
                step = self.program.compile(size)
            yield size, step

    def _prepare(self) -> None:
        """Sets up what the hooks need; when fine-tuning, samples and validates the starting weights."""
        train = self.config.train
        self.log.image(0, "data", self.previews.data())
        if self.step == 0 and self.config.init_from:
            self._validate()
            self._sample()
        self.watch = SkipWatch(self.run_dir, train.max_skipped_updates, int(self.state["skips"]["count"]))
        peak = peak_flops(jax.devices()[0].device_kind, train.peak_tflops)
        self._at_peak = {size: self.program.step_flops(size) / peak for size in self._train_steps} if peak else {}
        self.meter = Meter(train.batch_size, self.goodput, lambda: self.data.wait_seconds)
        self._logged = time.monotonic()

    def _next_batch(self, interrupt: Interrupt) -> Batch | None:
        """The next batch; None if a signal arrives first, as a slow disk may take minutes."""
        position = self.data.position
        try:
            with interrupt.waiting():
                return next(self.data)
        except Stopped:
            self.data.position = position
            return None

    def _train(self, batch: Batch) -> None:
        train, arrays = self.config.train, batch.arrays
        if train.max_minutes:
            used = self._minutes() / train.max_minutes
            arrays = arrays | {"used": np.full(len(arrays["index"]), used, np.float32)}
        step = self._train_steps[batch.size]
        with fitting(train, step):
            self.state, metrics = step(self.state, put_batch(arrays, self.mesh))
        self.step += 1
        # Reading the previous step's metrics only now keeps the device busy while the host waits.
        self._read_metrics()
        self._unread = self.step, metrics, batch, self.data.figures()

    def _read_metrics(self) -> None:
        """Waits for the newest step and records its metrics, unless that has been done already."""
        if self._unread is None:
            return
        (step, metrics, batch, data), self._unread = self._unread, None
        train = self.config.train
        with fitting(train, self._train_steps[batch.size]):
            values = dict(jax.device_get(metrics))
        skipped = int(values.pop("skipped_updates"))
        self._time_used = float(values.pop("time_used", 0.0))
        self._rate = float(values.pop("learning_rate"))
        if len(self._train_steps) > 1:
            values["pixels"] = np.float64(math.prod(batch.size))
        self.meter.add(values, skipped=skipped > self.watch.count, at_peak=self._at_peak.get(batch.size))
        self.watch.see(step, skipped, float(values["loss"]), float(values["grad_norm"]), batch)
        # Processes need not agree on the time here: nothing they do together depends on it.
        late = time.monotonic() - self._logged >= _LOG_SECONDS
        due = late or step % train.log_every == 0 or step == train.max_steps or self._time_used >= 1
        self.bar.update(1, self._log(step, data) if due else "")

    def _log(self, step: int, data: Mapping[str, float | int]) -> str:
        """Writes the log line of a step; returns the text for the progress bar."""
        train, figures, skipped = self.config.train, self.meter.read(), self.watch.count
        shown = f"loss {figures['loss']:.4f}" if "loss" in figures else "all steps skipped"
        shown += f"  {figures['images_per_second']:.0f} images/s"
        if train.max_minutes:
            figures["time_used"] = self._time_used
            shown += f"  {self._time_used * train.max_minutes:.1f} of {train.max_minutes:g} min"
        self.log.write(step, {**figures, "learning_rate": self._rate, "skipped_updates": skipped, **data})
        self._logged = time.monotonic()
        return shown

    def _validate(self) -> None:
        if self.validation is None:
            return
        validation_step, ema = self.program.validation_step, averaged(self.state)
        with self._aside("validating", _MORE_MICRO_BATCHES):
            sums = []
            for batch in self.validation:
                sums.append(validation_step(ema, put_batch(batch.arrays, self.mesh)))
                # Batches wait on the device until they are processed, so no more than two are put there.
                jax.block_until_ready(sums[-2:-1])
            total, count = np.sum(jax.device_get(sums), axis=0)
        self.validation_mse[self.step] = float(total / count)
        self.log.write(self.step, {"validation_mse": self.validation_mse[self.step]})

    def _sample(self) -> None:
        """The first process samples on its first device; every device gets a whole copy of the EMA weights."""
        with self._aside("generating the sample grid", "fewer images, --config.train.preview.count"):
            ema = self.program.packing.unpack(averaged(self.state))
            whole = jax.device_put(ema, NamedSharding(self.mesh, PartitionSpec()))
            if _is_first():
                params = jax.tree.map(lambda x: x.addressable_data(0), whole)
                self.log.image(self.step, "grid", self.previews.sample(params))

    @contextmanager
    def _aside(self, label: str, advice: str) -> Iterator[None]:
        """Surrounds work that compiles on first use, which a signal to a single-process run does not wait for.

        `advice` says what to try if memory does not suffice.
        """
        alone = jax.process_count() == 1
        at_once = ending_at_once(self._saved_at_once) if alone else nullcontext()
        with at_once, _phase(label), fitting_aside(label, advice):
            yield

    def _save(self) -> None:
        config, losses = self.config, self.validation_mse
        record = {
            "model": asdict(config.model),
            "diffusion": asdict(config.diffusion),
            "config": nested(config),
            "position": self.data.position,
            "step": self.step,
            "minutes": self._minutes(),
            "goodput": asdict(self.goodput),
            **self.start.source,
            **({"buckets": buckets} if (buckets := self.data.buckets.fingerprint) else {}),
            **self.lora,
            **({"sampling": settings} if (settings := student_settings(config.train.distill)) else {}),
            **({"validation_mse": losses[self.step]} if self.step in losses else {}),
            **({"first_mse": losses[0]} if 0 in losses else {}),
        }
        self.store.save(self.step, self.program.packing.unpack_state(self.state), record)

    def _saved_after(self, error: GlideError) -> bool:
        """Saves after an error if possible; returns whether the newest checkpoint has every step.

        With several processes, this may be the only one that met the error, and saving needs all of them.
        """
        if not self.step or isinstance(error, StateLost):
            return False
        if jax.process_count() > 1 and not isinstance(error, TooManySkipped):
            return False
        with suppress(GlideError):  # the disk may be full for the checkpoint too
            self.store.wait()
            if self.store.latest() != self.step:
                self._save()
                self.store.wait()
            return self.store.latest() == self.step
        return False

    def _nothing_to_save(self) -> str:
        steps = complete_steps(self.run_dir / "checkpoints")
        resumed = f"; run the same command to resume at step {max(steps)}" if steps else ""
        return f"while {progress.doing() or 'starting'}; nothing to save{resumed}"

    def _saved_at_once(self) -> str:
        self._save_if_needed()
        return _after(self.step)

    def _save_if_needed(self) -> None:
        if self.step and self.store.latest() != self.step:
            self._save()
        self.store.wait()

    def _is_over(self) -> bool:
        return self.step >= self.config.train.max_steps or self._time_used >= 1

    def _minutes(self) -> float:
        return (time.monotonic() - self._begun) / 60

    def _finish(self, received: signal.Signals | None) -> int:
        if received:
            self._save_if_needed()
        self.store.wait()
        counters = self.data.report()
        self.log.write(self.step, {f"data/{reason}": count for reason, count in counters.items()})
        faults = {reason: count for reason, count in counters.items() if reason not in ("usable", "read")}
        # What was left out on opening is the same in all processes.
        if faults := faults if _is_first() else self.data.faults():
            of = f" of process {jax.process_index()}" if jax.process_count() > 1 else ""
            print(f"skipped samples{of}: " + ", ".join(f"{count} {reason}" for reason, count in faults.items()))
        if _is_first():
            self._report(received)
        return 128 + received if received else 0

    def _report(self, received: signal.Signals | None) -> None:
        if received:
            print(f"stopped by {received.name} {_after(self.step)}")
            return
        losses = self.validation_mse
        if 0 in losses and self.step in losses:
            print(f"validation loss {losses[0]:.4f} before, {losses[self.step]:.4f} after")
        compared = self.log.before_and_after(self.step)
        images = f"{compared} and the sample grids are" if compared else "sample grids are"
        print(f"done: {self.step} steps; {images} in {self.run_dir / 'samples'}")
        given = "--upsampler {} --image FILE" if self.config.model.super_res else "--checkpoint {} --prompt TEXT"
        print(f"generate with it: python sample.py {given.format(self.run_dir)}")


def _after(steps: int) -> str:
    return f"after {steps} steps; run the same command to resume"


def _phase(label: str) -> AbstractContextManager[None]:
    return progress.phase(label, quiet=not _is_first())


def _is_first() -> bool:
    return jax.process_index() == 0
