import base64
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.ui.images_api import PATH, ImagesApi, NoSuchModel, asked
from glide_jax.ui.models import Unloadable
from glide_jax.ui.request import Limits
from glide_jax.ui.service import Service
from glide_jax.ui.worker import DEVICE
from tests.parallel.processes import free_port
from tests.ui.test_batching import watch

pytestmark = pytest.mark.skipif(find_spec("openai") is None, reason="needs openai")
ACCOUNTS = (("ann", "secret"), ("bob", "voilà"))


@pytest.fixture(scope="module")
def service(models):
    limits = Limits(batch_size=2, max_queue=40, max_steps=20)
    return Service(models, "base", "more/up", limits)


@pytest.fixture(scope="module")
def api(service):
    return ImagesApi(service, ACCOUNTS)


@pytest.fixture(scope="module")
def served(api):
    """The endpoint alone on a port of this machine, as the app serves it; its address."""
    import uvicorn
    from starlette.applications import Starlette

    application = Starlette()
    application.add_route(PATH, api.answer, methods=["POST"])
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(application, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)
        assert thread.is_alive()
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def client(served):
    import openai

    with openai.OpenAI(base_url=served, api_key="ann:secret", max_retries=0) as client:
        yield client


def posted(served, content, key="Bearer ann:secret", **how):
    import httpx

    return httpx.post(f"{served}/images/generations", content=content, headers={"Authorization": key.encode()}, **how)


def opened(each):
    image = Image.open(io.BytesIO(base64.b64decode(each.b64_json)))
    return np.asarray(image), image.text


def test_images_are_those_of_the_pipeline_and_say_how(client, models):
    answer = client.images.generate(prompt="a cat", n=3, size="8x8", extra_body={"seed": 5, "sampler": "dpmpp_2m"})
    pixels, entries = zip(*map(opened, answer.data), strict=True)
    expected = models.pipeline("base", None)("a cat", num_images=3, seed=5, num_steps=3, sampler="dpmpp_2m")
    np.testing.assert_array_equal(pixels, expected.images)
    assert [(entry["prompt"], entry["seed"], entry["index"]) for entry in entries] == [
        ("a cat", "5", str(i)) for i in range(3)
    ]
    assert entries[0]["sampler"] == "dpmpp_2m"
    assert [(each.seed, each.index) for each in answer.data] == [(5, 0), (5, 1), (5, 2)]


def test_the_size_says_whether_images_are_upsampled(client):
    sizes = {size: opened(client.images.generate(prompt="a cat", size=size).data[0])[0].shape[0]
             for size in ("auto", "8x8", "16x16")}  # fmt: skip
    assert sizes == {"auto": 16, "8x8": 8, "16x16": 16}


def test_thirty_clients_at_once_share_batches(client, api, models, monkeypatch):
    prompts = [f"{number:03d}" for number in range(30)]
    alone = models.pipeline("base", None)
    seen = watch(alone, monkeypatch)
    monkeypatch.setattr(api._batches, "_load", lambda wanted: alone)
    with ThreadPoolExecutor(30) as clients:
        with DEVICE.mine():
            answers = [clients.submit(client.images.generate, prompt=prompt, size="8x8") for prompt in prompts]
            while len(api._batches._waiting) < 30:
                time.sleep(0.01)
        answers = [answer.result(60).data for answer in answers]
    assert [len(batch) for batch in seen] == [6] * 15
    [seed] = {each.seed for [each] in answers}
    monkeypatch.undo()
    expected = alone(prompts, seed=seed, indices=[each.index for [each] in answers], num_steps=3)
    np.testing.assert_array_equal([opened(each)[0] for [each] in answers], expected.images)


def test_what_a_client_that_went_had_asked_for_is_not_generated(served, api, monkeypatch):
    import httpx

    monkeypatch.setattr("glide_jax.ui.images_api._SECONDS_BETWEEN_LOOKS", 0.05)
    with DEVICE.mine():
        with pytest.raises(httpx.ReadTimeout):
            posted(served, b'{"prompt": "a"}', timeout=1)
        for _ in range(200):
            waiting = list(api._batches._waiting)
            if waiting and all(each.job.future.done() for each in waiting):
                break
            time.sleep(0.05)
        else:
            raise AssertionError("never asked for, or still waiting")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "must be a JSON object"),
        ({}, "the prompt is empty"),
        ({"prompt": 3}, "prompt must be text"),
        ({"prompt": "a", "n": 0}, r"n must be in \[1, 8\]"),
        ({"prompt": "a", "n": "many"}, "n must be a number"),
        ({"prompt": "a", "size": "1024x1024"}, "size must be one of 8x8, 16x16 for model base"),
        ({"prompt": "a", "size": [8]}, "size must be one of"),
        ({"prompt": "a", "size": "8x8", "upsampler": "more/up"}, "give one of them"),
        ({"prompt": "a", "response_format": "url"}, "response_format must be b64_json"),
        ({"prompt": "a", "output_format": "webp"}, "output_format must be png"),
        ({"prompt": "a", "stream": True}, "stream must be false"),
        ({"prompt": "a", "guidence_scale": 2}, "unknown: 'guidence_scale'; did you mean guidance_scale"),
        ({"prompt": "a", "num_images": 2}, "unknown: 'num_images'"),
        ({"prompt": "a", "num_steps": 10**9}, r"num_steps must be in \[1, 20\]"),
        ({"prompt": "a", "sampler": {}}, "sampler must be one of"),
        ({"prompt": "a", "lora": 0}, "lora must be a name or a list of up to 3 names"),
        ({"prompt": "a", "lora_scale": 0.5}, "lora_scale needs one more LoRA"),
        ({"prompt": "a", "lora": "lora", "lora_scale_2": 0.5}, "lora_scale_2 needs one more LoRA"),
    ],
)
def test_what_cannot_be_is_one_line(service, body, message):
    with pytest.raises(GlideError, match=message):
        asked(service, body)


def test_what_other_models_take_is_let_pass(service):
    request = asked(service, {"prompt": "a", "user": "x", "quality": "hd", "n": None, "size": None, "upsampler": None})
    assert (request.num_images, request.base, request.upsampler) == (1, "base", "more/up")
    assert all(asked(service, {"prompt": "a", "seed": seed}).any_seed for seed in (None, -1, "", "-1"))
    assert asked(service, {"prompt": "a", "model": "inpaint", "upsampler": ""}).upsampler is None


def test_settings_are_those_of_the_model(service):
    steps = [asked(service, {"prompt": "a", "model": name}).options.levels.num_steps for name in ("base", "inpaint")]
    assert steps == [3, 20]


def test_adapters_are_those_named_or_those_that_the_server_starts_with(service):
    started = replace(service, adapters=("lora",))
    for name, body, expected in (
        ("nothing named", {}, {"lora": 1.0}),
        ("another scale", {"lora_scale": 0.5}, {"lora": 0.5}),
        ("none", {"lora": []}, {}),
        ("none, as a text", {"lora": ""}, {}),
        ("another model", {"model": "inpaint"}, {}),
    ):
        assert asked(started, {"prompt": "a", **body}).adapters == expected, name
    assert asked(service, {"prompt": "a", "lora": "lora", "lora_scale": 0.5}).adapters == {"lora": 0.5}
    assert asked(service, {"prompt": "a"}).adapters == {}


@pytest.mark.parametrize("name", ["dall-e-2", "more/up", 3, []])
def test_only_base_models_are_models(service, name):
    with pytest.raises(NoSuchModel, match="there are: base, inpaint"):
        asked(service, {"prompt": "a", "model": name})


def test_errors_are_those_that_the_client_knows(client, served):
    import openai

    with pytest.raises(openai.BadRequestError, match="the prompt is empty"):
        client.images.generate(prompt=" ")
    with pytest.raises(openai.NotFoundError, match="no model 'dall-e-3' here"):
        client.images.generate(prompt="a", model="dall-e-3")
    with pytest.raises(openai.BadRequestError, match="50 steps are too many: at most 20"):
        client.images.generate(prompt="a", extra_body={"timestep_respacing": "50"})
    with (
        openai.OpenAI(base_url=served, api_key="ann:Secret", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError, match="USER:PASSWORD"),
    ):
        other.images.generate(prompt="a")


@pytest.mark.parametrize(
    "key", ["", "Bearer", "Bearer ann", "Basic ann:secret", "Bearer bob:secret", "Bearer ann:sécret"]
)
def test_who_has_no_key_gets_nothing(served, key):
    assert posted(served, b"{}", key).status_code == 401


def test_a_key_may_have_any_letters(served):
    assert posted(served, b"{}", "Bearer bob:voilà").status_code == 400


def test_what_is_too_long_is_refused_before_it_is_all_there(served):
    assert posted(served, b'{"prompt": "a"}' + b" " * 100_000).status_code == 413
    assert posted(served, b'{"%s": 1}' % (b"a" * 90_000)).json()["error"]["message"].startswith("unknown: 'aaa")


def test_nothing_is_loaded_before_its_turn_nor_looked_for_if_the_queue_is_full(
    served, api, models, service, monkeypatch
):
    looked, look = [], models.wanted
    monkeypatch.setattr(models, "wanted", lambda *names: looked.append(names) or look(*names))
    monkeypatch.setattr(models, "load", lambda _: pytest.fail("a model is loaded"))
    request, wanted = api._checked({"prompt": "a", "lora": "lora", "lora_scale": 0.3, "upsampler": ""})
    assert (request.adapters, len(wanted.adapters), len(looked)) == ({"lora": 0.3}, 1, 1)
    with pytest.raises(GlideError, match="300 steps are too many"):
        api._checked({"prompt": "a", "timestep_respacing": "300"})
    looked.clear()
    with DEVICE.mine():
        waiting = [api._batches.submit(request, wanted) for _ in range(service.limits.max_queue)]
        assert posted(served, b'{"prompt": "a"}').status_code == 429
        for each in waiting:
            each.cancel()
    assert not looked


def test_a_model_that_cannot_be_loaded_is_the_servers_fault(served, api, monkeypatch):
    def fail(wanted):
        raise Unloadable("base could not be loaded: its files are cut")

    monkeypatch.setattr(api._batches, "_load", fail)
    answer = posted(served, b'{"prompt": "a"}')
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")


@pytest.mark.parametrize("sent", [b"", b"{", b"\xff", b"[" * 100_000, b'{"prompt": "a", "seed": 1e999}'])
def test_what_is_no_json_is_refused(served, sent):
    answer = posted(served, sent)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
