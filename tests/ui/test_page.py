"""The page's endpoints over plain HTTP: what a browser sends, and what else anyone may."""

import io
import json
import os
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.ui.test_jobs import concurrently


class Refused(Exception):
    """The server's own words."""


def post(url, content, kind="application/json"):
    with urllib.request.urlopen(urllib.request.Request(url, content, {"Content-Type": kind}), timeout=60) as answer:
        return json.load(answer)


def call(app, task="draw", **values):
    """The last of an endpoint's outputs: status, seed, pictures, download."""
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


def pixels(pictures):
    return np.stack([np.asarray(Image.open(io.BytesIO(fetched(each["image"])))) for each in pictures])


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


def test_it_draws_and_the_files_say_how(app):
    status, seed, pictures, download = call(app, num_images=2)
    assert "2 pictures of 8 x 8 pixels" in status
    assert seed == "1"
    archive = zipfile.ZipFile(io.BytesIO(fetched(download)))
    assert archive.namelist() == ["glide-1-00.png", "glide-1-01.png"]
    for content in (archive.read("glide-1-00.png"), fetched(pictures[0]["image"])):
        with Image.open(io.BytesIO(content)) as image:
            assert (image.text["prompt"], image.text["seed"], image.text["index"]) == ("a cat", "1", "0")


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"num_images": 10**6}, "maximum value 8"),
        ({"num_steps": 10**6}, "maximum value 250"),
        ({"num_steps": -1}, "minimum value 1"),
        ({"num_steps": "many"}, ""),
        ({"timestep_respacing": "1000"}, "1000 steps are too many"),
        ({"upsampler_num_steps": "100000"}, "upsampler_num_steps must be from 1 to 250"),
        ({"prompt": "x" * 100_000}, "at most 1000"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"sampler": "prk"}, "not in the list of choices"),
        ({"base": "../../etc"}, "not in the list of choices"),
        ({"base": "broken"}, "broken could not be loaded"),
        ({"guidance": "cfg++"}, "cfg++"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_the_server(app, sent, message):
    with pytest.raises(Refused) as refused:
        call(app, **sent)
    assert message in str(refused.value)
    assert "Traceback" not in str(refused.value)
    assert call(app)[1] == "1"


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
    for file in as_files(named):
        with pytest.raises((Refused, urllib.error.HTTPError)):
            call(app, "redraw", picture=file, strength=0)
        with pytest.raises((Refused, urllib.error.HTTPError)):
            call(app, "enlarge", base="", upsampler="more/up", picture=file)
        with pytest.raises((Refused, urllib.error.HTTPError)):
            call(app, "inpaint", base="inpaint", editor={"background": file, "layers": [file], "composite": None})
    assert call(app)[1] == "1"


def test_an_uploaded_picture_is_redrawn(app):
    picture = noise(8, 8)
    _, _, pictures, _ = call(app, "redraw", picture=upload(app, encoded(picture)), strength=0)
    np.testing.assert_array_equal(pixels(pictures)[0], np.asarray(picture))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "cannot read this image"),
        (encoded(noise(64, 64))[:900], "cannot read this image"),
        (encoded(Image.new("1", (8000, 8000))), "8000 x 8000 pixels, more than 40 million"),
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
    for expected, (_, seed, pictures, _), each in zip(alone * 2, together, sent * 2, strict=True):
        np.testing.assert_array_equal(pixels(pictures), expected)
        assert seed == each["seed"]


def test_only_so_many_requests_wait(app):
    def answer():
        try:
            return len(call(app, num_steps=100)[2])
        except urllib.error.HTTPError as error:
            return error.code

    answers = concurrently(*[answer] * 12)
    assert answers.count(1) >= 5, "one is drawn, four wait"
    assert answers.count(1) + answers.count(503) == 12
    assert 503 in answers


def test_only_the_tasks_are_offered_to_clients(app):
    with urllib.request.urlopen(f"{app}/gradio_api/info", timeout=30) as answer:
        assert set(json.load(answer)["named_endpoints"]) == {"/draw", "/inpaint", "/redraw", "/enlarge", "/rank"}


def test_nothing_is_fetched_from_elsewhere(app):
    with urllib.request.urlopen(app, timeout=30) as answer:
        page = answer.read().decode()
    assert "googleapis" not in page
    assert '"analytics_enabled":false' in page.replace(" ", "")
