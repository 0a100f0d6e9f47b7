"""What is known of every picture drawn, as it is written to a prompt's metadata.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Candidate:
    """One picture drawn for a prompt.

    Attributes:
        rank: place among its prompt's candidates, from 1; without a scorer, the order in which they were drawn.
        index, seed: number of the picture and seed, which together decide it.
        clip_score: the scorer's similarity of picture and prompt, a cosine; None without one.
        filename: of the picture; None if it was ranked too low to be kept.
    """

    rank: int
    index: int
    seed: int
    clip_score: float | None
    filename: str | None


@dataclass(frozen=True)
class PromptRecord:
    """All candidates of one prompt, the best first.

    Attributes:
        prompt, prompt_idx: the caption and its place among the prompts.
        scorer: what gave the scores; None without one.
        sampler: everything that says how the pictures were drawn.
        candidates: all of them, kept or not.
    """

    prompt: str
    prompt_idx: int
    scorer: str | None
    sampler: Mapping[str, Any]
    candidates: tuple[Candidate, ...]

    @property
    def kept(self) -> list[Candidate]:
        """The candidates with a file."""
        return [candidate for candidate in self.candidates if candidate.filename is not None]

    def to_json(self) -> dict[str, Any]:
        """As glide-finetune writes it (`images` are those kept), with all candidates and the sampler beside."""
        images = [{"rank": kept.rank, "filename": kept.filename, "clip_score": kept.clip_score, "seed": kept.seed,
                   "index": kept.index, "prompt": self.prompt} for kept in self.kept]  # fmt: skip
        return {
            "prompt": self.prompt,
            "prompt_idx": self.prompt_idx,
            "num_images": len(images),
            "images": images,
            "scorer": self.scorer,
            "sampler": dict(self.sampler),
            "candidates": [asdict(candidate) for candidate in self.candidates],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` wrote; raises KeyError or TypeError for anything else."""
        candidates = tuple(Candidate(**candidate) for candidate in data["candidates"])
        return cls(data["prompt"], data["prompt_idx"], data["scorer"], data["sampler"], candidates)


def ranked(
    numbers: Sequence[int], seed: int, scores: Sequence[float] | None, keep: int, suffix: str
) -> tuple[Candidate, ...]:
    """Candidates in the order of their scores, equal ones in the order drawn; the first `keep` get a file name.

    Args:
        numbers: picture numbers.
        seed: shared by them.
        scores: one a picture, the higher the better; None leaves the order.
        keep: how many to keep.
        suffix: of the files, as ".jpg".
    """
    order = list(range(len(numbers)))
    if scores is not None:
        order.sort(key=lambda i: -scores[i])
    return tuple(
        Candidate(
            rank,
            numbers[i],
            seed,
            None if scores is None else float(scores[i]),
            f"image_rank_{rank:03d}{suffix}" if rank <= keep else None,
        )
        for rank, i in enumerate(order, start=1)
    )
