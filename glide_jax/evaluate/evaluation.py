"""The loop: draw, score, rank, write, prompt by prompt."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glide_jax.errors import GlideError
from glide_jax.evaluate.job import Job, draw
from glide_jax.evaluate.record import PromptRecord, ranked
from glide_jax.evaluate.run_folder import RunFolder
from glide_jax.evaluate.scorer import Scorer, score
from glide_jax.evaluate.view import View
from glide_jax.sample import Pipeline

SUFFIXES = {"jpg": ".jpg", "png": ".png"}


@dataclass(frozen=True)
class Keeping:
    """What is kept of the candidates.

    Attributes:
        count: pictures a prompt, the best first.
        suffix: of their files, ".jpg" or ".png".
    """

    count: int
    suffix: str = ".jpg"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise GlideError(f"at least 1 picture a prompt must be kept, not {self.count}")
        if self.suffix not in SUFFIXES.values():
            raise GlideError(f"pictures are written as jpg or png, not {self.suffix}")


def evaluate(
    pipeline: Pipeline,
    job: Job,
    folder: RunFolder,
    keeping: Keeping,
    scorer: Scorer | None = None,
    sampler: Mapping[str, Any] | None = None,
    view: View | None = None,
) -> list[PromptRecord]:
    """Draws all prompts that are not done yet, ranks their candidates and writes them.

    Args:
        pipeline: the models.
        job: what to draw.
        folder: where to; prompts done in it are left alone, so the same call goes on where one was interrupted.
        keeping: how many candidates are kept, in what format.
        scorer: ranks the candidates; without one they keep the order drawn.
        sampler: what the records say of how the pictures were drawn.
        view: shows progress and results.

    Returns:
        The records of all prompts, those done before among them.

    Raises:
        GlideError: nothing to draw with, impossible options, an unwritable folder, a score that is no number.
    """
    view = view or View()
    wanted = [index for index in range(len(job.prompts)) if not folder.done(index)]
    size = min(pipeline.batch_size, len(job.prompts) * job.num_images)
    batches = job.batches(size, wanted)
    each = pipeline.count_evaluations(1, job.options, job.upsampler_options)
    with view.drawing(job, batches, each) as drawing:
        for index, images in draw(pipeline, job, wanted, drawing.advance):
            prompt = job.prompts[index]
            scores = None if scorer is None else score(scorer, images, prompt).tolist()
            candidates = ranked(job.numbers(index), job.seed, scores, keeping.count, keeping.suffix)
            record = PromptRecord(prompt, index, None if scorer is None else scorer.name, sampler or {}, candidates)
            folder.save(record, images)
            view.results(record, len(job.prompts))
    return folder.records()
