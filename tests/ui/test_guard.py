import asyncio
import socket
from importlib.util import find_spec

import pytest

from glide_jax.ui.guard import BODY, Guard, Hosts, is_loopback, is_name


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:7860", "127.0.0.1:1", "127.3.2.1", "[::1]:7860"])
def test_this_machine_itself_may_ask(host):
    assert Hosts("127.0.0.1").refusal(host) is None
    assert Hosts("127.0.0.1").refusal(host, f"http://{host}") is None


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.1.2.3", "", "[", "a@evil.example:80"])
def test_other_names_are_not_ours(host):
    assert "--allowed_host" in Hosts("127.0.0.1").refusal(host)
    assert "evil.example" not in host or "evil.example" in Hosts("127.0.0.1").refusal(host)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://10.1.2.3:80", "http://[", "https://a.localhost"]
)
@pytest.mark.parametrize("listening", ["127.0.0.1", "0.0.0.0"])
def test_other_sites_may_not_ask(origin, listening):
    assert "--allowed_host" in Hosts(listening).refusal("localhost:7860", origin)


def test_names_given_at_the_start_are_ours():
    hosts = Hosts("box.lan", ["Glide.example"])
    assert hosts.refusal("box.lan:7860", "http://box.lan:7860") is None
    assert hosts.refusal("glide.example", "https://glide.example") is None
    assert hosts.refusal("127.0.0.1:7860", "https://glide.example:8443") is None, "a proxy that names what it asks"
    assert hosts.refusal("10.1.2.3") is not None


@pytest.mark.parametrize("listening", ["0.0.0.0", "::"])
def test_every_address_is_ours_where_all_are_listened_on(listening):
    hosts = Hosts(listening)
    for host in ("10.1.2.3:7860", "[fe80::1]:7860", socket.gethostname(), "0.0.0.0:7860"):
        assert hosts.refusal(host, f"http://{host}") is None
    assert hosts.refusal("10.1.2.3", "http://10.1.2.4") is not None
    assert hosts.refusal("evil.example") is not None


def test_only_loopback_addresses_are_of_this_machine_alone():
    assert all(map(is_loopback, ["127.0.0.1", "localhost", "::1"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "box"]))


def test_a_name_has_no_scheme_port_or_path():
    assert all(map(is_name, ["glide.example", "Box", "10.0.0.1", "::1"]))
    assert not any(map(is_name, ["https://glide.example", "glide.example:80", "a/b", "", "*"]))


def answered(*chunks, passed=None, **scope):
    """The status of the answer to a request in these chunks; `passed` gets what the server behind received."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def endpoint(request):
        async for chunk in request.stream():
            passed.append(len(chunk))
        return PlainTextResponse("")

    tidied, sent, waiting = [], [], list(chunks)

    async def receive():
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    passed = [] if passed is None else passed
    app = Starlette(routes=[Route("/{path:path}", endpoint, methods=["POST"])])
    app.add_middleware(Guard, hosts=Hosts("127.0.0.1"), tidy=lambda: tidied.append(1))
    headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data")]
    request = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": headers, "query_string": b""}
    asyncio.run(app(request | scope, receive, send))
    return sent[0]["status"], len(tidied)


needs_starlette = pytest.mark.skipif(
    find_spec("starlette") is None, reason="comes with gradio: uv sync --inexact --extra app"
)


@needs_starlette
def test_uploads_are_bounded_and_tidied_after():
    assert answered(b"abc", b"de") == (200, 1)
    passed = []
    assert answered(*[bytes(BODY // 4)] * 9, passed=passed) == (413, 1)
    assert sum(passed) == BODY


@needs_starlette
@pytest.mark.parametrize(
    ("scope", "status"),
    [
        ({"headers": [(b"host", b"evil.example")]}, 403),
        ({"headers": [(b"host", b"localhost"), (b"origin", b"http://evil.example")]}, 403),
        ({"headers": []}, 403),
        ({"path": "/gradio_api/process_recording"}, 404),
        ({"path": "/gradio_api/file=HTTP://a.example/b"}, 404),
        ({"path": "/gradio_api/file=/tmp/http"}, 200),
    ],
)
def test_what_is_refused_does_not_reach_the_server(scope, status):
    passed = []
    assert answered(b"abc", passed=passed, **scope)[0] == status
    assert (sum(passed) > 0) == (status == 200)
