"""How well images fit a prompt: the scorer interface, the scorer from GLIDE's noised CLIP, and scorers by name."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.images import from_uint8
from glide_jax.sample import LoadedClip
from glide_jax.tokenizer import ClipTokenizer

NOISED = "noised"  # the noised CLIP's name for --clip_model
Images = Sequence[UInt8[np.ndarray, "_ _ 3"]] | UInt8[np.ndarray, "n height width 3"]


class Scorer(Protocol):
    """Embeds images and texts in one space.

    Attributes:
        name: of the model and its weights, for the records.
    """

    name: str

    def image_features(self, images: Images) -> Float[np.ndarray, "n features"]:
        """Unit vectors of uint8 images of any size."""

    def text_features(self, prompt: str) -> Float[np.ndarray, " features"]:
        """The unit vector of a prompt."""


def score(scorer: Scorer, images: Images, prompt: str) -> Float[np.ndarray, " n"]:
    """The cosine of each image with the prompt, in [-1, 1].

    Raises:
        GlideError: a score is not finite.
    """
    cosines = scorer.image_features(images).astype(np.float64) @ scorer.text_features(prompt).astype(np.float64)
    if not np.isfinite(cosines).all():
        raise GlideError(f"{scorer.name} gave a score that is not a number for {prompt!r}: its weights are damaged")
    return cosines


class NoisedClipScorer:
    """GLIDE's noised CLIP at timestep 0, for use without OpenCLIP weights; images are resized to its size.

    It was trained to guide GLIDE, so images generated under its guidance get high scores whatever they look like.

    Args:
        clip: both towers.
        batch_size: images at once.
    """

    name = "noised CLIP"

    def __init__(self, clip: LoadedClip, batch_size: int = 16) -> None:
        if clip.model.image is None or clip.model.text is None:
            raise GlideError("ranking by the noised CLIP needs both of its towers: give --clip TEXT IMAGE")
        self._clip, self._size, self._batch = clip, clip.model.image.image_size, batch_size
        self._image, self._text = jax.jit(clip.model.encode_image), jax.jit(clip.model.encode_text)

    def image_features(self, images: Images) -> Float[np.ndarray, "n features"]:
        """See `Scorer`."""
        if not len(images):
            raise GlideError("no images to score")
        resized = np.stack([from_uint8(_resized(image, self._size)) for image in images])
        features = []
        for first in range(0, len(resized), self._batch):
            part = resized[first : first + self._batch]
            filled = np.concatenate([part, np.repeat(part[-1:], self._batch - len(part), axis=0)])
            out = self._image(self._clip.params, jnp.asarray(filled), jnp.zeros(self._batch))
            features.append(np.asarray(out)[: len(part)])
        return np.concatenate(features)

    def text_features(self, prompt: str) -> Float[np.ndarray, " features"]:
        """See `Scorer`."""
        return np.asarray(self._text(self._clip.params, *ClipTokenizer().padded([prompt])))[0]


def _resized(image: UInt8[np.ndarray, "_ _ 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def scorer_loader(
    model: str, checkpoint: Path | None, clip: Sequence[str] | None, batch_size: int, note: Callable[[str], None]
) -> Callable[[], Scorer]:
    """A function that loads a scorer, whose name is checked now.

    Args:
        model, checkpoint, clip: values of the options --clip_model, --clip_checkpoint and --clip.
        batch_size: images scored at a time.
        note: called with what is loaded, and what was corrected.

    Raises:
        GlideError: there is no such model, or its library is missing; the returned function raises it if it cannot load
            the weights.
    """
    if model == NOISED:
        if clip is None:
            raise GlideError("--clip_model noised is the noised CLIP: give --clip TEXT IMAGE")
        return lambda: NoisedClipScorer(LoadedClip.from_checkpoints(*clip), batch_size)
    from glide_jax.evaluate.openclip import OpenClipScorer, find_model  # noqa: PLC0415

    name = find_model(model)
    if name.note is not None:
        note(f"note: {name.note}")

    def load() -> Scorer:
        note(f"loading OpenCLIP {name.model}")
        return OpenClipScorer(name, checkpoint, batch_size)

    return load
