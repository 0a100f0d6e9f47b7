"""What to do when a batch does not fit in a device's memory."""

from contextlib import AbstractContextManager
from typing import Any

import jax

from glide_jax.compute import memory_of_device
from glide_jax.errors import GlideError
from glide_jax.train.config import TrainConfig

# What keeps less for the backward pass, the faster first.
_MORE_REMAT = {"none": ("dots", "full"), "dots": ("full",), "full": ()}


class StateLost(GlideError):
    """A training step does not fit in a device's memory, and the state passed to it may be lost."""


def fitting(config: TrainConfig, step: jax.stages.Compiled | None = None) -> AbstractContextManager[None]:
    """Turns XLA's out-of-memory error in a training step into a `StateLost` that says what would help.

    Args:
        config: of the run.
        step: the compiled step; None while it is being compiled.
    """
    return memory_of_device(lambda kind, reason: StateLost(_explained(config, step, kind, reason)))


def fitting_aside(label: str, advice: str) -> AbstractContextManager[None]:
    """Turns XLA's out-of-memory error in what is done between steps, as "validating", into a `GlideError`."""
    return memory_of_device(
        lambda kind, reason: GlideError(f"{label} does not fit in the memory of {kind} ({reason}): try {advice}")
    )


def needed_bytes(step: jax.stages.Compiled) -> int | None:
    """Bytes of arguments, results and temporary arrays on each device, as counted by XLA; None if it does not say."""
    found: Any = step.memory_analysis()
    if found is None:
        return None
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return int(found.argument_size_in_bytes + results + found.temp_size_in_bytes)


def _explained(config: TrainConfig, step: jax.stages.Compiled | None, kind: str, reason: str) -> str:
    needed = step and needed_bytes(step)
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    facts = [f"{needed / 1e9:,.1f} GB on each device are needed"] if needed else []
    facts += [f"{limit / 1e9:,.1f} GB are there"] if limit else []
    facts.append(reason)
    helping = []
    if (more := _more_micro_batches(config)) is not None:
        micro = config.batch_size // more
        helping.append(f"--config.train.gradient_accumulation_steps={more} (the same result, {micro} images at a time)")
    helping += [f"--config.train.remat={more}" for more in _MORE_REMAT[config.remat]]
    helping.append("a smaller --config.train.batch_size" if config.batch_size > 1 else "--config.parallel.fsdp")
    at_a_time = config.batch_size // config.gradient_accumulation_steps
    return (
        f"a step of {at_a_time} images at a time does not fit in the memory of {kind}"
        f" ({'; '.join(facts)}): try {', '.join(helping)}"
    )


def _more_micro_batches(config: TrainConfig) -> int | None:
    """The next number of micro-batches that the batch and the devices can share."""
    for steps in range(config.gradient_accumulation_steps + 1, config.batch_size + 1):
        if config.batch_size % steps == 0 and (config.batch_size // steps) % jax.device_count() == 0:
            return steps
    return None
