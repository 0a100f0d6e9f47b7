"""What turns pictures into features to compare sets by, and what the distances may then be called."""

from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from glide_jax.evaluate.scorer import Images, Scorer


class Extractor(Protocol):
    """Features of pictures.

    Attributes:
        name: of the network and its weights.
        inception: whether it is the Inception network that FID and KID are defined by.
    """

    name: str
    inception: bool

    def image_features(self, images: Images) -> Float[np.ndarray, "n features"]:
        """Features of uint8 pictures, with components of order one."""


class ClipFeatures:
    """The image side of a scorer; its unit vectors are scaled so that a component is of order one."""

    inception = False

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self.name = scorer, scorer.name

    def image_features(self, images: Images) -> Float[np.ndarray, "n features"]:
        """See `Extractor`."""
        features = self._scorer.image_features(images)
        return features * np.float32(features.shape[1] ** 0.5)


class DistanceNames(NamedTuple):
    """What the two distances are called."""

    frechet: str
    kernel: str


def distance_names(extractor: Extractor) -> DistanceNames:
    """FID and KID for Inception features, and for no others."""
    if extractor.inception:
        return DistanceNames("FID", "KID")
    return DistanceNames(f"Fréchet distance ({extractor.name})", f"kernel distance ({extractor.name})")
