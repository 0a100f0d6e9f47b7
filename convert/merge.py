"""Merges adapters into the weights they belong to, as an ordinary checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from convert.architecture import Architecture, recorded_architecture
from glide_jax.checkpoint import load_weights, read_record, save_weights
from glide_jax.files import require_new
from glide_jax.sample import with_recorded
from glide_jax.sample.lora import Adapters, base_of, check_not_repeated, merged


def merge(checkpoint: str | Path, lora: Sequence[str], output: Path) -> Architecture:
    """Writes weights with adapters added, in float32.

    Args:
        checkpoint: a model, or a run that trained adapters, which are then added as well.
        lora: further adapters, each as PATH or PATH:SCALE.
        output: folder of the new checkpoint, which must not exist.

    Raises:
        GlideError: a checkpoint cannot be read, the adapters belong to other weights, or `output` cannot be written.
    """
    require_new(output)
    check_not_repeated(checkpoint, lora)
    base = base_of(checkpoint)
    own = [] if base is None else [str(checkpoint)]
    whole = checkpoint if base is None else Path(base)
    architecture = recorded_architecture(read_record(whole), whole)
    params = merged(load_weights(whole, architecture.params), [Adapters.load(text) for text in (*own, *lora)])
    sampling = with_recorded({}, checkpoint, None, lora)
    save_weights(output, params, architecture.record | ({"sampling": sampling} if sampling else {}))
    return architecture
