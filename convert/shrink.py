"""Makes a checkpoint to publish: only the EMA weights, in bfloat16."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from convert.architecture import Architecture, recorded_architecture
from glide_jax.checkpoint import load_weights, read_record, save_weights
from glide_jax.errors import GlideError
from glide_jax.files import lines, read_text, require_new
from glide_jax.tokenizer import GlideTokenizer

_LONGEST_CAPTION = 256  # tokens


def shrink(checkpoint: str | Path, output: Path, captions: Path | None = None) -> tuple[Architecture, int]:
    """Writes the weights of a model in bfloat16, rounded to the nearest.

    Args:
        checkpoint: a run folder, one of its steps or converted weights; EMA weights are used if there are any.
        output: folder of the new checkpoint, which must not exist.
        captions: text file of the captions the model was trained on. Tokens in none of them get a row of zeros in the
            table of token embeddings, which compresses to nothing; images from other captions stay the same.

    Returns:
        The architecture, and the bytes written.

    Raises:
        GlideError: the checkpoint or the captions cannot be read or used, or `output` cannot be written.
    """
    require_new(output)
    texts = None if captions is None else ["", *lines(read_text(captions, "the captions in"))]  # "" is the padding
    architecture = recorded_architecture(read_record(checkpoint), checkpoint)
    if texts is not None and not architecture.record.get("model", {}).get("xf_width"):
        raise GlideError(f"{checkpoint} is not a GLIDE model with text: leave out --captions")
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), architecture.params)
    params = load_weights(checkpoint, half)
    if texts is not None:
        table = params["text"]["token_embedding"]
        params["text"]["token_embedding"] = jnp.where(_used_tokens(texts, len(table)), table, 0)
    save_weights(output, params, architecture.record, compress=True)
    return architecture, sum(file.stat().st_size for file in output.rglob("*") if file.is_file())


def _used_tokens(texts: Sequence[str], vocabulary: int) -> np.ndarray:
    tokens, _ = GlideTokenizer().padded(texts, _LONGEST_CAPTION)
    used = np.zeros((vocabulary, 1), bool)
    used[np.unique(tokens)] = True
    return used
