"""Where a run begins: its own newest checkpoint, other weights, or nothing."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from glide_jax.checkpoint import CheckpointStore, newest_intact, read_record
from glide_jax.errors import GlideError
from glide_jax.parallel import wait_for_all
from glide_jax.train.program import Program
from glide_jax.train.run_config import RunConfig
from glide_jax.train.starting import load_starting_weights, require_fit, require_same
from glide_jax.train.step import State

# Options that decide which arrays a training state holds, beside the model's own.
_STATE_OPTIONS = ("trainable", "optimizer.mu_dtype")


@dataclass(frozen=True)
class Origin:
    """What is known before anything is compiled.

    Attributes:
        continues: whether the run folder holds a checkpoint to go on from.
        record: of that checkpoint, or of `init_from`; empty for a fresh start.
        step: that checkpoint's number.
        damaged: newer ones, which are not what was written.
    """

    continues: bool
    record: Mapping[str, Any]
    step: int | None = None
    damaged: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: RunConfig) -> "Origin":
        """Looks into the run folder, where it passes over damaged checkpoints and says so, then at `init_from`.

        Raises:
            GlideError: what is there is of another model, holds other arrays, or is all damaged.
        """
        run_dir = Path(config.run_dir).expanduser()
        step, damaged = _newest_intact(run_dir / "checkpoints")
        continues = step is not None
        source = run_dir if continues else config.init_from
        if not continues:
            _check_starting_weights(config)
        if not source:
            return cls(False, {})
        record = read_record(source, step)
        if continues:
            require_same("model", asdict(config.model), record.get("model", {}), str(source))
        else:
            require_fit(config.model, record.get("model", {}), str(source))
        require_same("diffusion", asdict(config.diffusion), record.get("diffusion", {}), str(source))
        if continues and "train" in record.get("config", {}):
            theirs, ours_train = (_flat(train) for train in (record["config"]["train"], asdict(config.train)))
            chosen = {name: ours_train[name] for name in _STATE_OPTIONS}
            require_same("train", chosen, theirs, str(source))
        if continues and type(record.get("position")) is not int:
            raise GlideError(f"checkpoint {step} of {run_dir} is no run's: its record has no data position")
        return cls(continues, record, step, damaged)

    @property
    def position(self) -> int:
        """The data position to go on from."""
        return int(self.record["position"]) if self.continues else 0

    @property
    def source(self) -> dict[str, Any]:
        """What is known of the PyTorch file that the weights once came from."""
        return {name: self.record[name] for name in ("source",) if name in self.record}

    def state(self, program: Program, store: CheckpointStore) -> State:
        """The state to begin with, on the devices; damaged checkpoints newer than it are set aside."""
        if self.continues:
            store.set_aside(self.damaged)
            return store.restore(program.abstract_state, self.step, checked=True)[0]
        if program.config.init_from:
            config = program.config
            return program.state_from(
                load_starting_weights(config.init_from, config.model, program.abstract_state["params"])
            )
        return program.fresh_state()


def _newest_intact(directory: Path) -> tuple[int | None, tuple[int, ...]]:
    """The step to go on from, which the first process finds for all, and on that process the damaged ones after it."""
    chosen, damaged, failure = -1, {}, ""
    if jax.process_index() == 0:
        try:
            choice = newest_intact(directory)
            chosen, damaged = -1 if choice.step is None else choice.step, choice.damaged
        except GlideError as error:
            failure = str(error)
    if jax.process_count() > 1:
        wait_for_all(f"{directory}, checked")
        chosen, failed = map(int, multihost_utils.broadcast_one_to_all(np.array([chosen, bool(failure)], np.int32)))
        failure = failure or (f"the first process finds no checkpoint to use in {directory}" if failed else "")
    if failure:
        raise GlideError(failure)
    for reason in damaged.values():
        print(f"{reason}; going on from step {chosen}", file=sys.stderr)
    return None if chosen < 0 else chosen, tuple(damaged)


def _check_starting_weights(config: RunConfig) -> None:
    train = config.train
    if train.trainable != "all" and not config.init_from:
        raise GlideError(
            f"train.trainable={train.trainable} keeps the rest as it is, but there are no weights to keep:"
            " give --config.init_from=DIR"
        )
    if train.trainable == "all" and train.reinitialize and config.init_from:
        raise GlideError("train.reinitialize leaves nothing of init_from: leave one of the two out")


def _flat(train: Mapping[str, Any]) -> dict[str, Any]:
    optimizer = train.get("optimizer", {})
    return {**train, **{f"optimizer.{name}": value for name, value in optimizer.items()}}
