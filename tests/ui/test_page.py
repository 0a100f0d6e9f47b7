"""The page's endpoints over plain HTTP: what a browser sends, and what else anyone may."""

import base64
import io
import json
import os
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
from PIL import Image

from glide_jax.ui.request import Limits, request_fields
from tests.ui.test_worker import concurrently


class Refused(Exception):
    """The server's own words."""


def post(url, content, kind="application/json", **headers):
    request = urllib.request.Request(url, content, {"Content-Type": kind} | headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def call(app, task="draw", **values):
    """The last of an endpoint's outputs: status, seed, images, download."""
    sent = {"base": "models/base", "prompt": "a cat", "num_images": 1, "num_steps": 4, "seed": "1"} | values
    event = post(f"{app}/gradio_api/call/v2/{task}", json.dumps(sent).encode())["event_id"]
    with urllib.request.urlopen(f"{app}/gradio_api/call/{task}/{event}", timeout=120) as stream:
        for line in stream.read().decode().splitlines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                data = json.loads(line[6:])
    if kind != "complete":
        raise Refused(data)
    return [each["value"] if isinstance(each, dict) and "value" in each else each for each in data]


def fetched(file):
    with urllib.request.urlopen(file["url"], timeout=30) as answer:
        return answer.read()


def pixels(images):
    return np.stack([np.asarray(Image.open(io.BytesIO(fetched(each["image"])))) for each in images])


def upload(app, content, name="picture.png"):
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="' + name.encode()
    body += b'"\r\nContent-Type: image/png\r\n\r\n' + content + b"\r\n--b--\r\n"
    [path] = post(f"{app}/gradio_api/upload", body, "multipart/form-data; boundary=b")
    return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def noise(*size):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))


def encoded(image):
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def test_it_generates_and_the_files_say_how(app):
    status, seed, images, download = call(app, num_images=2)
    assert "2 images of 8 x 8 pixels" in status
    assert seed == "1"
    archive = zipfile.ZipFile(io.BytesIO(fetched(download)))
    assert archive.namelist() == ["glide-1-00.png", "glide-1-01.png"]
    for content in (archive.read("glide-1-00.png"), fetched(images[0]["image"])):
        with Image.open(io.BytesIO(content)) as image:
            assert (image.text["prompt"], image.text["seed"], image.text["index"]) == ("a cat", "1", "0")


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"num_images": 10**6}, "num_images must be in [1, 8], not 1000000"),
        ({"num_steps": [4]}, "num_steps must be a number"),
        ({"num_steps": {}}, "num_steps must be a number"),
        ({"num_steps": float("nan")}, "num_steps must be in [1, 250], not nan"),
        ({"num_steps": 10**400}, "num_steps must be in [1, 250], not 1000"),
        ({"sampler": "dpmpp_2m", "rho": 0.1, "num_steps": 2}, "rho 0.1"),
        ({"sampler": ["ddim"]}, "sampler must be one of"),
        ({"prompt": ["a cat"]}, "prompt must be text"),
        ({"base": 3}, "base must be text"),
        ({"timestep_respacing": "1000"}, "1000 steps are too many"),
        ({"prompt": "x" * 100_000}, "at most 1000"),
        ({"base": "../../etc"}, "there is no model"),
        ({"base": "broken"}, "broken could not be loaded"),
        ({"lora": "../lora"}, "for models/base; there are: "),
        ({"base": "inpaint", "lora": ["lora"]}, "for inpaint; there are: none"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_the_server(app, sent, message):
    """What values may be is tested with requests; here that gradio hands all of them on."""
    with pytest.raises(Refused) as refused:
        call(app, **sent)
    [said] = refused.value.args[0]["error"].splitlines()
    assert message in said


@pytest.mark.parametrize("picture", ["a.png", 5, [], {"path": 5}, {"meta": {"_type": "gradio.FileData"}}, {"a": []}])
def test_what_is_no_image_is_one_line(app, picture):
    for task, field in (("redraw", "picture"), ("inpaint", "editor")):
        with pytest.raises(Refused) as refused:
            call(app, task, **{field: picture})
        assert len(refused.value.args[0]["error"].splitlines()) == 1


def test_a_grid_and_adapters_are_for_programs_too(app):
    sent = {"x_option": "guidance_scale", "x_values": "1,3", "lora": ["lora"], "lora_scale": 0.5}
    status, _, images, _ = call(app, "compare", **sent)
    assert "2 images in a grid of 268 x " in status
    with Image.open(io.BytesIO(fetched(images[0]["image"]))) as image:
        assert (image.text["xy"], image.text["lora"]) == ("guidance_scale=1.0,3.0", "lora:0.5")
    with pytest.raises(Refused, match="a grid of 9 images is too large: at most 8"):
        call(app, "compare", **sent | {"x_values": "1,2,3,4,5,6,7,8,9"})


def test_what_nobody_expected_is_one_line_and_in_the_log(app):
    """Gradio itself complains of too few values."""
    event = post(f"{app}/gradio_api/call/draw", b'{"data": []}')["event_id"]
    with urllib.request.urlopen(f"{app}/gradio_api/call/draw/{event}", timeout=30) as stream:
        assert "an internal error occurred; the server" in stream.read().decode()


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example:80"}],
)
def test_other_sites_are_refused(app, headers):
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nx\r\n--b--\r\n'
    for path, content, kind in (
        ("upload", body, "multipart/form-data; boundary=b"),
        ("call/v2/draw", b"{}", "text/plain"),
        ("queue/join", b"{}", "application/json"),
    ):
        with pytest.raises(urllib.error.HTTPError, match="403") as refused:
            post(f"{app}/gradio_api/{path}", content, kind, **headers)
        assert "--allowed_host" in json.load(refused.value)["detail"]


@pytest.mark.parametrize("path", ["process_recording", "file=http://localhost/", "file/http://localhost/"])
def test_endpoints_that_the_page_does_not_use_are_closed(app, path):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetched({"url": f"{app}/gradio_api/{path}"})


def test_files_of_the_server_are_not_to_be_had(app):
    for path in ("/etc/passwd", "app.py"):
        with pytest.raises((Refused, urllib.error.HTTPError)):
            call(app, "redraw", picture={"path": path, "meta": {"_type": "gradio.FileData"}}, strength=0)
        with pytest.raises(urllib.error.HTTPError):
            fetched({"url": f"{app}/gradio_api/file={path}"})


def as_files(path):
    """What a client may say of a file: gradio checks only what calls itself one of its own."""
    return [
        {"path": str(path)},
        {"path": str(path), "meta": {"_type": "gradio.FileData"}},
        {"path": str(path), "url": "x"},
    ]


@pytest.mark.parametrize("name", ["secret.png", "endless", "link.png", "../secret.png"])
def test_no_image_but_an_uploaded_one_is_opened(app, tmp_path, name):
    (tmp_path / "secret.png").write_bytes(encoded(noise(8, 8)))
    os.mkfifo(tmp_path / "endless")  # whoever reads it waits for ever
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "secret.png")
    below = upload(app, encoded(noise(8, 8)))["path"]
    named = f"{below}/../../../{tmp_path.name}/{name}" if name.startswith("..") else tmp_path / name
    for file in [*as_files(named), {"path": f"{app}/favicon.ico", "meta": {"_type": "gradio.FileData"}}]:
        with pytest.raises((Refused, urllib.error.HTTPError)):
            call(app, "redraw", picture=file, strength=0)
        with pytest.raises((Refused, urllib.error.HTTPError)):
            call(app, "enlarge", base="", upsampler="more/up", picture=file)
        with pytest.raises((Refused, urllib.error.HTTPError)):
            call(app, "inpaint", base="inpaint", editor={"background": file, "layers": [file], "composite": None})
    assert call(app)[1] == "1"


def test_an_uploaded_image_is_the_start(app):
    image = noise(8, 8)
    _, _, images, _ = call(app, "redraw", picture=upload(app, encoded(image)), strength=0)
    np.testing.assert_array_equal(pixels(images)[0], np.asarray(image))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "not a readable image"),
        (encoded(noise(64, 64))[:900], "not a readable image"),
        (encoded(Image.new("1", (8000, 8000))), "8000 x 8000 pixels, more than 25 million"),
    ],
    ids=["text", "truncated", "huge"],
)
def test_bad_uploads_are_refused_in_one_line(app, content, message):
    with pytest.raises(Refused, match=message):
        call(app, "redraw", picture=upload(app, content), strength=0.5)
    editor = {"background": upload(app, content), "layers": [], "composite": None}
    with pytest.raises(Refused, match=message):
        call(app, "inpaint", base="inpaint", editor=editor)


def test_a_huge_file_is_refused(app):
    with pytest.raises(urllib.error.HTTPError, match="413"):
        upload(app, bytes(21_000_000))


def test_two_users_at_once_get_their_own(app):
    sent = [{"prompt": "a cat", "seed": "1"}, {"prompt": "a dog", "seed": "2", "base": "inpaint"}]
    alone = [pixels(call(app, **each)[2]) for each in sent]
    together = concurrently(*[lambda each=each: call(app, **each) for each in sent * 2])
    for expected, (_, seed, images, _), each in zip(alone * 2, together, sent * 2, strict=True):
        np.testing.assert_array_equal(pixels(images), expected)
        assert seed == each["seed"]


def test_only_so_many_requests_wait(app):
    def answer():
        try:
            return len(call(app, num_steps=100)[2])
        except urllib.error.HTTPError as error:
            return error.code

    answers = concurrently(*[answer] * 12)
    assert answers.count(1) >= 5, "one is generated, four wait"
    assert answers.count(1) + answers.count(503) == 12
    assert 503 in answers


def test_only_the_tasks_are_offered_to_clients_with_all_settings_by_name(app):
    with urllib.request.urlopen(f"{app}/gradio_api/info", timeout=30) as answer:
        endpoints = json.load(answer)["named_endpoints"]
    names = {task: {each["parameter_name"] for each in endpoints[task]["parameters"]} for task in endpoints}
    common = {"base", "upsampler", "lora", "prompt", "negative_prompt", *request_fields(Limits(), {})}
    common -= {"strength", "candidates", "top_k"}
    own = {"inpaint": {"editor"}, "redraw": {"picture", "strength"}, "enlarge": {"picture"}}
    own |= {"draw": set(), "rank": {"candidates", "top_k"}}
    own |= {"compare": {"x_option", "x_values", "y_option", "y_values"}}
    assert names == {f"/{task}": common | fields for task, fields in own.items()}


def test_clients_of_openai_are_served_too(app):
    asked = {"prompt": "a cat", "n": 2, "size": "8x8", "num_steps": 3, "seed": 5}
    sent = urllib.request.Request(f"{app}/v1/images/generations", json.dumps(asked).encode())
    with urllib.request.urlopen(sent, timeout=60) as answer:
        images = [Image.open(io.BytesIO(base64.b64decode(each["b64_json"]))) for each in json.load(answer)["data"]]
    assert [(image.size, image.text["index"]) for image in images] == [((8, 8), "0"), ((8, 8), "1")]
    sent.add_header("Origin", "http://evil.example")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(sent)


def test_nothing_is_fetched_from_elsewhere(app):
    with urllib.request.urlopen(app, timeout=30) as answer:
        page = answer.read().decode()
    assert "googleapis" not in page
    assert '"analytics_enabled":false' in page.replace(" ", "")
