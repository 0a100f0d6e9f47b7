"""The job of an evaluation, and its loop: generate, score, rank, write, prompt by prompt."""

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from glide_jax import progress
from glide_jax.errors import GlideError
from glide_jax.evaluate.run_folder import Candidates, PromptRecord, RunFolder, ranked
from glide_jax.evaluate.scorer import Scorer, score
from glide_jax.evaluate.view import View
from glide_jax.files import valid_unicode
from glide_jax.sample import Pipeline, SampleOptions, upsampler_options

SUFFIXES = {"jpg": ".jpg", "png": ".png"}


@dataclass(frozen=True)
class Job:
    """Prompts, and how their candidates are generated; seed and number decide an image.

    Attributes:
        prompts: the prompts, in the order of their folders.
        num_images: candidates per prompt; candidate i of prompt p is image p * num_images + i.
        seed: in [0, 2^31), shared by all images.
        negative_prompt: what guidance steers away from.
        options, upsampler_options: of the two models.
        keep: candidates to keep per prompt, the best first; None for all.
        suffix: of their files, ".jpg" or ".png".
    """

    prompts: tuple[str, ...]
    num_images: int = 1
    seed: int = 0
    negative_prompt: str = ""
    options: SampleOptions = SampleOptions()
    upsampler_options: SampleOptions = upsampler_options({})
    keep: int | None = None
    suffix: str = ".jpg"

    def __post_init__(self) -> None:
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            raise GlideError('nothing to generate: give --prompts "one prompt|another" or --prompt_file FILE')
        for prompt in (*self.prompts, self.negative_prompt):
            if valid_unicode(prompt) != prompt:
                raise GlideError(f"{prompt[:60]!r} is not valid Unicode: is the command line in another encoding?")
        if self.num_images < 1:
            raise GlideError(f"num_images must be at least 1, not {self.num_images}")
        if self.keep is not None and not 1 <= self.keep <= self.num_images:
            raise GlideError(f"{self.keep} of {self.num_images} candidates cannot be kept")

    def numbers(self, prompt_index: int) -> range:
        """The images of one prompt."""
        return range(prompt_index * self.num_images, (prompt_index + 1) * self.num_images)

    def batches(self, batch_size: int, wanted: Collection[int]) -> list[list[int]]:
        """Image numbers batch by batch: every batch with an image of a wanted prompt.

        The division into batches does not depend on `wanted`, so a resumed job runs the same programs on the same
        batches and reproduces an image to the last bit.
        """
        total = len(self.prompts) * self.num_images
        cut = [list(range(first, min(first + batch_size, total))) for first in range(0, total, batch_size)]
        return [batch for batch in cut if any(number // self.num_images in wanted for number in batch)]


def evaluate(
    pipeline: Pipeline,
    job: Job,
    folder: RunFolder,
    scorer: Scorer | None = None,
    sampler: Mapping[str, Any] | None = None,
    view: View | None = None,
) -> list[PromptRecord]:
    """Generates all prompts that are not yet done, ranks their candidates and writes them.

    Args:
        pipeline: the models; `batch_size` images, of any prompts, are generated at a time.
        job: what to generate.
        folder: where to write; prompts already done are skipped, so the same call resumes an interrupted one.
        scorer: ranks the candidates; without one, they keep the order of their numbers.
        sampler: how the images are generated, for the records.
        view: shows results.

    Returns:
        The records of all prompts, including those done before.

    Raises:
        GlideError: no base model, invalid options, an unwritable folder, or a score that is not finite.
    """
    view = view or View()
    wanted = [index for index in range(len(job.prompts)) if not folder.done(index)]
    size = min(pipeline.batch_size, len(job.prompts) * job.num_images)
    batches = job.batches(size, wanted)
    each = pipeline.count_evaluations(1, job.options, job.upsampler_options)
    with progress.bar(f"sampling, steps of {sum(map(len, batches))} images", sum(map(len, batches)) * each) as bar:
        for index, images in _candidates(pipeline, job, batches, size, wanted, bar, each):
            prompt = job.prompts[index]
            scores = None if scorer is None else score(scorer, images, prompt).tolist()
            candidates = ranked(job.numbers(index), job.seed, scores, job.keep or job.num_images, job.suffix)
            record = PromptRecord(prompt, index, None if scorer is None else scorer.name, sampler or {}, candidates)
            folder.save(record, images)
            view.results(record, len(job.prompts))
    return folder.records()


def _candidates(
    pipeline: Pipeline,
    job: Job,
    batches: list[list[int]],
    size: int,
    wanted: Collection[int],
    bar: progress.Bar,
    each: int,
) -> Iterator[tuple[int, Candidates]]:
    """The index of each wanted prompt with its candidates in order, as soon as the last one is generated.

    `each` is the number of evaluations that an image takes.
    """
    numbers = [number for batch in batches for number in batch]
    held: dict[int, list[np.ndarray]] = {index: [] for index in wanted}
    finished, done, begun = 0, 0, time.monotonic()

    def report(evaluations: int, _: Any) -> None:
        nonlocal done
        done += evaluations
        seconds = (time.monotonic() - begun) * each / done
        rate = f"{1 / seconds:.1f} images/s" if seconds < 1 else f"{seconds:.1f} s an image"
        prompt = batches[finished][0] // job.num_images + 1
        bar.update(evaluations, f"prompt {prompt}/{len(job.prompts)}  {rate}")

    for samples in pipeline.batches(
        [job.prompts[number // job.num_images] for number in numbers], numbers, batch_size=size, seed=job.seed,
        negative_prompt=job.negative_prompt, options=job.options, upsampler_options=job.upsampler_options,
        on_steps=report,
    ):  # fmt: skip
        finished += 1
        for number, image in zip(samples.indices, samples.images, strict=True):
            index = number // job.num_images
            if index in held:
                held[index].append(image)
                if len(held[index]) == job.num_images:
                    yield index, np.stack(held.pop(index))
