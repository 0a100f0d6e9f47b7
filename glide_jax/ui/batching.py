"""Images of several requests generated together: a device that one image hardly occupies serves many."""

import contextlib
import itertools
import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from glide_jax.errors import GlideError
from glide_jax.ui.jobs import DEVICE, Stopped
from glide_jax.ui.models import Models
from glide_jax.ui.request import Limits, Request
from glide_jax.ui.service import Generated


class QueueFull(GlideError):
    """As many requests are waiting as are allowed."""


@dataclass(eq=False)
class _Job:
    """A request, the numbers of its images, and those that are finished, by place."""

    request: Request
    numbers: Sequence[int]
    future: "Future[Done]" = field(default_factory=Future)
    finished: dict[int, Generated] = field(default_factory=dict)

    @property
    def alike(self) -> tuple[Any, ...]:
        """What requests must have in common to share a batch."""
        own = self.request
        return own.base, own.upsampler, own.negative_prompt, own.seed, own.options, own.upsampler_options

    def settle(self, outcome: "Done | Exception") -> None:
        """Ends the wait for it, unless nobody waits any more or it has ended."""
        with contextlib.suppress(InvalidStateError):
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)


class Done(NamedTuple):
    """A request as it was carried out, and its images in order."""

    request: Request
    images: list[Generated]


class _Waiting(NamedTuple):
    """One image to generate; the lowest goes first."""

    turn: int
    arrival: int
    place: int
    job: _Job


class Batches:
    """Requests in a queue, from which a thread takes a batch of images at a time.

    Only requests of the same models and settings share a batch. Turns are those of start-time fair queueing: a large
    request lets later ones in between, but they do not overtake all of it.

    Args:
        models: to generate with.
        limits: how many images a batch has, and how many requests may wait.
    """

    def __init__(self, models: Models, limits: Limits) -> None:
        self._models, self._limits = models, limits
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        self._turn, self._arrivals = 0, itertools.count()
        # Requests without a seed have this one in common, and numbers of their own: else none could share a batch.
        self._seed, self._numbers = secrets.randbelow(2**31), itertools.count()
        threading.Thread(target=self._serve, daemon=True).start()

    def submit(self, request: Request, *, any_seed: bool) -> "Future[Done]":
        """Queues a request; cancelling its future takes it out again.

        Args:
            request: for the task "draw".
            any_seed: its seed may be replaced.

        Raises:
            QueueFull: too many are waiting.
        """
        if any_seed:
            request = replace(request, seed=self._seed)
            job = _Job(request, list(itertools.islice(self._numbers, request.num_images)))
        else:
            job = _Job(request, range(request.num_images))
        with self._changed:
            if len({each.arrival for each in self._waiting if not each.job.future.done()}) >= self._limits.max_queue:
                raise QueueFull(f"{self._limits.max_queue} requests are waiting already: try again in a moment")
            arrival = next(self._arrivals)
            self._waiting += [_Waiting(self._turn + place, arrival, place, job) for place in range(len(job.numbers))]
            self._waiting.sort(key=lambda waiting: waiting[:3])
            self._changed.notify()
        return job.future

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
            # While the device is busy, more requests come together.
            with DEVICE.mine():
                batch = self._take()
                try:
                    self._generate(batch)
                except Exception as error:
                    for waiting in batch:
                        waiting.job.settle(error)

    def _take(self) -> list[_Waiting]:
        """The next batch; what nobody waits for any more is dropped."""
        with self._changed:
            wanted = [waiting for waiting in self._waiting if not waiting.job.future.done()]
            batch = [waiting for waiting in wanted if waiting.job.alike == wanted[0].job.alike]
            batch = batch[: self._limits.batch_size]
            self._waiting = [waiting for waiting in wanted if waiting not in batch]
            self._turn = batch[0].turn if batch else self._turn
        return batch

    def _generate(self, batch: Sequence[_Waiting]) -> None:
        if not batch:
            return
        request = batch[0].job.request

        def stop_if_unwanted(_done: int, _x_0: Any) -> None:
            if all(waiting.job.future.done() for waiting in batch):
                raise Stopped

        # Programs for 1, 2, 4, ... images: each size is compiled once.
        size = min(1 << (len(batch) - 1).bit_length(), self._limits.batch_size)
        pipeline = self._models.pipeline(request.base, request.upsampler)
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
