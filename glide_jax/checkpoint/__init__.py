"""The checkpoint format: Orbax arrays and a JSON record, for training states and for plain weights.

    RUN/checkpoints/<step>/   one complete checkpoint; a partial one never has this name
        state/                the arrays: a dict with "params" and, in training, "ema", "opt", "step", ...
        record/data.json      configuration, data position, counters, goodput, ...
        arrays/data.json      shape and dtype of every array, by name
        hashes.json           size and CRC-32 of every file, checked before anything is loaded

Plain weights are one such step folder under a name of their own, or a safetensors file (`safetensors_file`).
Everything that takes a path takes a run folder, its checkpoints folder (either with @STEP for another step than the
newest), one step's folder or such a file.
"""

from glide_jax.checkpoint.folders import complete_steps as complete_steps
from glide_jax.checkpoint.folders import lasting as lasting
from glide_jax.checkpoint.folders import newest_intact as newest_intact
from glide_jax.checkpoint.folders import resolve as resolve
from glide_jax.checkpoint.store import CheckpointStore as CheckpointStore
from glide_jax.checkpoint.weights import held_weights as held_weights
from glide_jax.checkpoint.weights import load_weights as load_weights
from glide_jax.checkpoint.weights import read_record as read_record
from glide_jax.checkpoint.weights import require_blocks as require_blocks
from glide_jax.checkpoint.weights import save_weights as save_weights
