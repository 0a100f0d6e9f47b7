"""Generates images of several requests together, because a single image hardly occupies a device."""

import contextlib
import itertools
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from glide_jax.errors import GlideError
from glide_jax.sample import Pipeline
from glide_jax.ui.models import Wanted
from glide_jax.ui.request import Limits, Request
from glide_jax.ui.service import Generated
from glide_jax.ui.worker import DEVICE, Stopped


class QueueFull(GlideError):
    """The maximum number of requests are waiting."""


class Done(NamedTuple):
    """A request as carried out, and its images in order."""

    request: Request
    images: list[Generated]


@dataclass(eq=False)
class _Job:
    """A request, its models, the numbers of its images, and its finished images by position."""

    request: Request
    models: Wanted
    numbers: Sequence[int]
    future: Future[Done] = field(default_factory=Future)
    finished: dict[int, Generated] = field(default_factory=dict)

    @property
    def alike(self) -> tuple[Any, ...]:
        """What requests must have in common to share a batch."""
        own = self.request
        return self.models, own.negative_prompt, own.seed, own.options, own.upsampler_options

    def settle(self, outcome: Done | BaseException) -> None:
        """Ends the wait for it, unless that was cancelled or has ended."""
        with contextlib.suppress(InvalidStateError):
            if isinstance(outcome, BaseException):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)


class _Waiting(NamedTuple):
    """An image to generate; the lowest in order goes first."""

    turn: float
    arrival: int
    place: int
    job: _Job


class Batches:
    """A queue of requests, from which a thread takes a batch of images at a time.

    Only requests with the same models and settings share a batch. Queueing is fair: each waiting request gets an equal
    share of the images, so a large one lets later ones in between and still makes progress.

    Args:
        limits: the number of images per batch and of waiting requests.
        load: loads the models of a request when its turn comes, so that waiting requests keep none in memory.
    """

    def __init__(self, limits: Limits, load: Callable[[Wanted], Pipeline]) -> None:
        self._limits, self._load = limits, load
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        # The time of fair queueing: how many images a request would have had that has waited all along.
        self._turn = 0.0
        self._arrivals = itertools.count()
        # Requests without a seed share this one, with image numbers of their own; otherwise they could not share a
        # batch.
        self._seed, self._numbers = secrets.randbelow(2**31), itertools.count()
        threading.Thread(target=self._serve, daemon=True).start()

    def check_room(self) -> None:
        """Raises `QueueFull` if the maximum number of requests are waiting."""
        with self._changed:
            if len(self._unfinished()) >= self._limits.max_queue:
                raise QueueFull(f"{self._limits.max_queue} requests are waiting already: try again in a moment")

    def submit(self, request: Request, models: Wanted) -> Future[Done]:
        """Queues a request for the task "draw"; cancelling its future removes it.

        Args:
            request: the request.
            models: its models, which stay the same for all its images even if their names come to mean others.

        Raises:
            QueueFull: too many are waiting.
        """
        with self._changed:
            self.check_room()
            numbers: Sequence[int] = range(request.num_images)
            if request.any_seed:
                request = replace(request, seed=self._seed)
                numbers = list(itertools.islice(self._numbers, request.num_images))
            job, arrival = _Job(request, models, numbers), next(self._arrivals)
            self._waiting += [_Waiting(self._turn + place, arrival, place, job) for place in range(len(numbers))]
            self._waiting.sort(key=lambda waiting: waiting[:3])
            self._changed.notify()
        return job.future

    def _unfinished(self) -> set[int]:
        """Arrival numbers of the requests still waited for."""
        return {waiting.arrival for waiting in self._waiting if not waiting.job.future.done()}

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
            # While the device is busy, more requests accumulate.
            with DEVICE.mine():
                batch = self._take()
                try:
                    if batch:
                        self._generate(batch)
                except BaseException as error:  # the next request of any kind is to be served
                    for waiting in batch:
                        waiting.job.settle(error)

    def _take(self) -> list[_Waiting]:
        """The next batch; cancelled requests are dropped."""
        with self._changed:
            wanted = [waiting for waiting in self._waiting if not waiting.job.future.done()]
            batch = [waiting for waiting in wanted if waiting.job.alike == wanted[0].job.alike]
            batch = batch[: self._limits.batch_size]
            if batch:
                self._turn = max(batch[0].turn, self._turn + len(batch) / len(self._unfinished()))
            self._waiting = [waiting for waiting in wanted if waiting not in batch]
        return batch

    def _generate(self, batch: Sequence[_Waiting]) -> None:
        request = batch[0].job.request
        pipeline = self._load(batch[0].job.models)

        def stop_if_unwanted(_done: int, _x_0: Any) -> None:
            if all(waiting.job.future.done() for waiting in batch):
                raise Stopped

        # Programs exist for 1, 2, 4, ... images; each size is compiled once.
        size = min(1 << (len(batch) - 1).bit_length(), self._limits.batch_size)
        [samples] = pipeline.batches(
            [waiting.job.request.prompt for waiting in batch],
            [waiting.job.numbers[waiting.place] for waiting in batch],
            options=request.options, upsampler_options=request.upsampler_options, seed=request.seed,
            negative_prompt=request.negative_prompt, on_steps=stop_if_unwanted, batch_size=size,
        )  # fmt: skip
        for (_, _, place, job), pixels, number in zip(batch, samples.images, samples.indices, strict=True):
            job.finished[place] = Generated(pixels, number)
            if len(job.finished) == len(job.numbers):
                job.settle(Done(job.request, [job.finished[i] for i in range(len(job.numbers))]))
