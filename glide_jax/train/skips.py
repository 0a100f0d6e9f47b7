"""Updates that are left out because they would do harm: decided on the device, watched and written down on the host."""

from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from glide_jax.data.examples import Batch
from glide_jax.errors import GlideError
from glide_jax.train.writing import append_json, writing

# {"count": updates skipped so far, "loss_ema": average of the finite losses; infinite before the first}.
Skips = dict[str, Array]

_EMA_RATE = 0.01


def no_skips() -> Skips:
    """The counters of a fresh run."""
    return {"count": jnp.int32(0), "loss_ema": jnp.float32(jnp.inf)}


def judge(
    skips: Skips, loss: Float[Array, ""], grad_norm: Float[Array, ""], spike_threshold: float
) -> tuple[Bool[Array, ""], Skips]:
    """Whether an update is good, and the counters after it.

    An update is skipped if its loss or gradient is not finite, or if `spike_threshold` is not 0 and the loss is
    that many times its average. The average takes in spikes too, so that a lasting change is no endless spike.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    average = skips["loss_ema"]
    good = finite & (loss <= spike_threshold * average) if spike_threshold else finite
    moved = jnp.where(jnp.isinf(average), loss, average + _EMA_RATE * (loss - average))
    return good, {"count": skips["count"] + ~good, "loss_ema": jnp.where(finite, moved, average)}


def choose(good: Bool[Array, ""], new: PyTree[Array], old: PyTree[Array]) -> PyTree[Array]:
    """`new` if the update is good, else `old`, bit for bit; fused into the update, it moves no further memory."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


class TooManySkipped(GlideError):
    """More updates in a row were skipped than may be; all processes of a run find so at the same update."""


class SkipWatch:
    """Writes the examples of every skipped update to `RUN/skipped.jsonl`, and stops a run that only skips.

    Args:
        run_dir: the run folder.
        limit: how many updates in a row may be skipped.
        count: updates skipped before.
    """

    def __init__(self, run_dir: Path, limit: int, count: int) -> None:
        process = jax.process_index()
        self._path = run_dir / (f"skipped.{process}.jsonl" if process else "skipped.jsonl")
        self._limit, self._count, self._in_a_row = limit, count, 0

    def see(self, step: int, count: int, loss: float, grad_norm: float, batch: Batch) -> None:
        """Takes in update `step`, after which `count` updates were skipped in all.

        Raises:
            TooManySkipped: more than `limit` updates in a row were skipped.
            GlideError: they cannot be written down.
        """
        self._in_a_row = self._in_a_row + 1 if count > self._count else 0
        self._count = count
        if not self._in_a_row:
            return
        self._write(step, loss, grad_norm, batch)
        if self._in_a_row > self._limit:
            raise TooManySkipped(
                f"{self._in_a_row} updates in a row were skipped (last: loss {loss:g}, gradient norm {grad_norm:g});"
                f" their examples are in {self._path}: lower train.optimizer.learning_rate or look at the data"
            )

    def _write(self, step: int, loss: float, grad_norm: float, batch: Batch) -> None:
        # Not finite numbers are no JSON.
        line = {"step": step, "loss": str(loss), "grad_norm": str(grad_norm), "index": _indices(batch)}
        with writing(self._path), self._path.open("ab", buffering=0) as file:
            append_json(file, line | {"captions": batch.captions})


def _indices(batch: Batch) -> list[int]:
    return batch.arrays["index"].tolist()
