"""The overall scores of an evaluation: CLIP score, and distances from a reference set."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from glide_jax.evaluate.distances import Estimate, frechet_estimate, kernel_estimate, mean_estimate
from glide_jax.evaluate.reference import Extractor, reference_features
from glide_jax.evaluate.run_folder import Candidate, PromptRecord, RunFolder


class Score(NamedTuple):
    """A named estimate, and the number of images."""

    name: str
    estimate: Estimate
    images: int

    def __str__(self) -> str:
        value, low, high = self.estimate
        interval = "" if low is None or high is None else f" (95 %: {low:.4f} to {high:.4f})"
        return f"{self.name}: {value:.4f}{interval}, {self.images} images"

    def to_json(self) -> dict[str, Any]:
        """The entry in scores.json."""
        return {"name": self.name, **self.estimate._asdict(), "images": self.images}


def clip_scores(records: Sequence[PromptRecord]) -> list[Score]:
    """The mean cosine of all candidates and of the kept ones; the interval treats prompts, not images, as independent.

    Empty if the records have no scores.
    """
    if not records or records[0].scorer is None:
        return []
    scorer = records[0].scorer
    groups: dict[str, list[Sequence[Candidate]]] = {
        "all candidates": [record.candidates for record in records],
        "kept": [record.kept for record in records],
    }
    scores = []
    for name, group in groups.items():
        means = np.array([np.mean([candidate.clip_score for candidate in candidates]) for candidates in group])
        scores.append(Score(f"CLIP score, {name} ({scorer})", mean_estimate(means), sum(map(len, group))))
    return scores


def distance_scores(
    folder: RunFolder, records: Sequence[PromptRecord], reference: str, extractor: Extractor
) -> list[Score]:
    """Fréchet and kernel distances of the kept images from a reference set.

    Args:
        folder: of the evaluation, whose images are read back.
        records: of its prompts.
        reference: as for `reference_features`.
        extractor: makes the features that are compared.

    Raises:
        GlideError: too few images, an unusable reference, or features that are not finite.
    """
    parts, prompts, size = [], [], 0
    for record in records:
        images = folder.images(record)
        size = images[0].shape[0]
        parts.append(extractor.image_features(images))
        prompts += [record.prompt_idx] * len(images)
    x, y = np.concatenate(parts), reference_features(reference, extractor, size)
    frechet, kernel = distance_names(extractor)
    return [
        Score(frechet, frechet_estimate(x, y, np.array(prompts)), len(x)),
        Score(kernel, kernel_estimate(x, y, np.array(prompts)), len(x)),
    ]


def distance_names(extractor: Extractor) -> tuple[str, str]:
    """The names of the Fréchet and the kernel distance: FID and KID for Inception features only."""
    if extractor.inception:
        return "FID", "KID"
    return f"Fréchet distance ({extractor.name})", f"kernel distance ({extractor.name})"
