import time

import numpy as np
import pytest

from glide_jax.ui.batching import Batches, QueueFull
from glide_jax.ui.models import Wanted
from glide_jax.ui.request import Limits, checked, request_fields
from glide_jax.ui.worker import DEVICE

LIMITS = Limits(batch_size=2, max_queue=4)
FIELDS = request_fields(LIMITS, {})


def wanted(prompt, n=1, models=Wanted(), **more):  # noqa: B008
    request = {"base": "base", "prompt": prompt, "num_images": n, "num_steps": 3, **more}
    return checked("draw", request, FIELDS), models


@pytest.fixture
def pipeline(models):
    return models.pipeline("base", None)


@pytest.fixture
def batches(pipeline):
    return Batches(LIMITS, lambda _: pipeline)


@pytest.fixture
def seen(pipeline, monkeypatch):
    return watch(pipeline, monkeypatch)


class Seen(list):
    """The prompts of every batch; `then` is called before a batch is generated."""

    def then(self):
        pass


def watch(pipeline, monkeypatch):
    seen, generate = Seen(), pipeline.batches

    def watched(prompts, *args, **named):
        seen.append("".join(prompts))
        seen.then()
        return generate(prompts, *args, **named)

    monkeypatch.setattr(pipeline, "batches", watched)
    return seen


def test_images_are_the_same_alone_and_in_company(batches, pipeline):
    with DEVICE.mine():
        futures = [batches.submit(*wanted(prompt, n)) for prompt, n in (("a", 3), ("b", 2))]
        mine = batches.submit(*wanted("c", 2, seed=7))
    for done in [*(future.result(60) for future in futures), mine.result(60)]:
        numbers = [each.number for each in done.images]
        expected = pipeline([done.request.prompt] * len(numbers), seed=done.request.seed, indices=numbers, num_steps=3)
        np.testing.assert_array_equal([each.pixels for each in done.images], expected.images)
    assert (mine.result().request.seed, [each.number for each in mine.result().images]) == (7, [0, 1])
    drawn = [each.number for future in futures for each in future.result().images]
    assert len({futures[0].result().request.seed, futures[1].result().request.seed}) == 1
    assert sorted(drawn) == list(range(5))


def test_a_batch_has_images_of_requests_alike_and_a_large_one_lets_others_in_between(batches, pipeline, seen):
    late = []

    def one_more_comes():
        if len(seen) == 3:
            late.append(batches.submit(*wanted("e")))

    seen.then = one_more_comes
    with DEVICE.mine():
        requests = wanted("a", 4), wanted("b"), wanted("c", num_steps=4), wanted("d", 2)
        futures = [batches.submit(*request) for request in requests]
        with pytest.raises(QueueFull, match="4 requests are waiting already"):
            batches.submit(*wanted("f"))
    for future in futures:
        future.result(60)
    late[0].result(60)
    assert seen == ["ab", "c", "da", "de", "aa"]


def test_requests_of_other_models_or_adapters_share_no_batch(batches, models, seen):
    plain = models.wanted("base", None)
    for name, other in (
        ("base", models.wanted("inpaint", None)),
        ("upsampler", models.wanted("base", "more/up")),
        ("adapters", models.wanted("base", None, {"lora": 0.5})),
        ("step", plain._replace(base=plain.base._replace(stamp=(1,)))),
    ):
        seen.clear()
        with DEVICE.mine():
            futures = [batches.submit(*wanted(prompt, models=each)) for prompt, each in (("a", plain), ("b", other))]
        assert [len(future.result(60).images) for future in futures] == [1, 1]
        assert seen == ["a", "b"], name


def test_a_large_request_comes_forward_among_ever_new_ones(batches, pipeline, seen):
    def others_come():
        while len(seen) < 20 and len(batches._unfinished()) < LIMITS.max_queue:
            batches.submit(*wanted("b"))

    seen.then = others_come
    with DEVICE.mine():
        large = batches.submit(*wanted("a", 4))
        batches.submit(*wanted("b"))
    large.result(60)
    assert len(seen) <= 10
    while batches._waiting:
        time.sleep(0.01)


def test_what_nobody_waits_for_is_not_generated(batches, pipeline, seen):
    with DEVICE.mine():
        gone = batches.submit(*wanted("a", 8))
        stays = batches.submit(*wanted("b"))
        gone.cancel()
    assert len(stays.result(60).images) == 1
    assert seen == ["b"]


def test_an_error_ends_those_of_its_batch_alone(batches, pipeline, seen):
    def fail_once():
        if len(seen) == 1:
            raise SystemExit("no reason")

    seen.then = fail_once
    with DEVICE.mine():
        bad = batches.submit(*wanted("a"))
        good = batches.submit(*wanted("b", num_steps=4))
    with pytest.raises(SystemExit, match="no reason"):
        bad.result(60)
    assert len(good.result(60).images) == 1
