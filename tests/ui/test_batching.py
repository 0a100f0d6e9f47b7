import numpy as np
import pytest

from glide_jax.errors import GlideError
from glide_jax.ui.batching import Batches, QueueFull
from glide_jax.ui.jobs import DEVICE
from glide_jax.ui.request import Limits, checked, request_fields

LIMITS = Limits(batch_size=2, max_queue=4)
FIELDS = request_fields(LIMITS, {})


def wanted(prompt, n=1, **more):
    return checked("draw", {"base": "base", "prompt": prompt, "num_images": n, "num_steps": 3, **more}, FIELDS)


@pytest.fixture
def batches(models):
    return Batches(models, LIMITS)


@pytest.fixture
def seen(models, monkeypatch):
    """The prompts of every batch, in a list that calls `seen.then` before a batch is generated."""
    return watch(models, monkeypatch)


class Seen(list):
    def then(self):
        pass


def watch(models, monkeypatch):
    pipeline, seen = models.pipeline("base", None), Seen()
    generate = pipeline.batches

    def watched(prompts, *args, **named):
        seen.append("".join(prompts))
        seen.then()
        return generate(prompts, *args, **named)

    monkeypatch.setattr(pipeline, "batches", watched)
    monkeypatch.setattr(models, "pipeline", lambda base, upsampler: pipeline)
    return seen


def test_images_are_the_same_alone_and_in_company(batches, models):
    with DEVICE.mine():
        futures = [batches.submit(wanted(prompt, n), any_seed=True) for prompt, n in (("a", 3), ("b", 2))]
        mine = batches.submit(wanted("c", 2, seed=7), any_seed=False)
    for done in [*(future.result(60) for future in futures), mine.result(60)]:
        numbers = [each.number for each in done.images]
        expected = models.pipeline("base", None)(
            [done.request.prompt] * len(numbers), seed=done.request.seed, indices=numbers, num_steps=3
        )
        np.testing.assert_array_equal([each.pixels for each in done.images], expected.images)
    assert (mine.result().request.seed, [each.number for each in mine.result().images]) == (7, [0, 1])
    drawn = [each.number for future in futures for each in future.result().images]
    assert len({futures[0].result().request.seed, futures[1].result().request.seed}) == 1
    assert sorted(drawn) == list(range(5))


def test_a_batch_has_images_of_requests_alike_and_a_large_one_lets_others_in_between(batches, seen):
    late = []

    def one_more_comes():
        if len(seen) == 3:
            late.append(batches.submit(wanted("e"), any_seed=True))

    seen.then = one_more_comes
    with DEVICE.mine():
        requests = wanted("a", 4), wanted("b"), wanted("c", num_steps=4), wanted("d", 2)
        futures = [batches.submit(request, any_seed=True) for request in requests]
        with pytest.raises(QueueFull, match="4 requests are waiting already"):
            batches.submit(wanted("f"), any_seed=True)
    for future in futures:
        future.result(60)
    late[0].result(60)
    assert seen == ["ab", "c", "da", "ed", "aa"]


def test_what_nobody_waits_for_is_not_generated(batches, seen):
    with DEVICE.mine():
        gone = batches.submit(wanted("a", 8), any_seed=True)
        stays = batches.submit(wanted("b"), any_seed=True)
        gone.cancel()
    assert len(stays.result(60).images) == 1
    assert seen == ["b"]


def test_an_error_ends_those_of_its_batch_alone(batches, models):
    with DEVICE.mine():
        bad = batches.submit(wanted("a", base="gone"), any_seed=True)
        good = batches.submit(wanted("b"), any_seed=True)
    with pytest.raises(GlideError, match="no model 'gone'"):
        bad.result(60)
    assert len(good.result(60).images) == 1
