import os
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.sample.inputs import load_mask
from glide_jax.ui.uploads import _AHEAD, _bounded, bound_folder, check_files, from_editor, uploaded


def test_what_is_painted_is_drawn_anew_and_the_rest_is_kept():
    layer = np.zeros((40, 60, 4), np.uint8)
    layer[10:30, 20:40] = 255
    picture = Image.new("RGBA", (60, 40))
    background, mask = from_editor({"background": picture, "layers": [Image.fromarray(layer)]})
    assert background is picture
    kept = load_mask(mask, 40)[..., 0]
    assert kept[20, 20] == 0
    assert kept.mean() == 1 - 20 * 20 / 40 / 40
    assert from_editor({"background": picture, "layers": []})[1].getextrema() == (255, 255)
    assert from_editor(None) == (None, None)


@pytest.mark.parametrize(
    "path", ["", None, "a\0b", "x" * 5000, "/dev/null", "/etc/hostname", "loop", "folder", "nowhere"]
)
def test_only_regular_files_of_the_upload_folder_are_opened(tmp_path, path):
    folder = tmp_path / "uploads"
    (folder / "folder").mkdir(parents=True)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "a.png").write_bytes(b"")
    assert uploaded(str(folder / "a.png"), str(folder)) == folder / "a.png"
    inside = path if path in ("", None) or path.startswith("/") else f"{folder}/{path}"
    with pytest.raises(GlideError, match="upload the image as a file"):
        uploaded(inside, str(folder))


@pytest.mark.parametrize(
    "sent", [{"path": "http://a.example/b.png"}, ["a", {"layers": [{"path": "/etc/hostname"}]}], {"path": ""}]
)
def test_files_are_looked_for_in_all_that_is_sent(tmp_path, sent):
    (tmp_path / "a.png").write_bytes(b"")
    check_files(["a", None, 3, {"picture": {"path": str(tmp_path / "a.png"), "url": "x"}}], str(tmp_path))
    with pytest.raises(GlideError, match="upload the image as a file"):
        check_files(sent, str(tmp_path))


def test_the_oldest_files_go_first(tmp_path):
    for age in range(5):
        path = tmp_path / "files" / f"upload{age}" / "a.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(100_000 if age else 1))
        os.utime(path, (10**9 - age, 10**9 - age))
    (tmp_path / "files" / "link").symlink_to("nowhere")
    bound_folder(tmp_path, 350_000)
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["link", "upload0", "upload1", "upload2"]
    bound_folder(tmp_path, 0)
    assert list(tmp_path.rglob("*")) == [tmp_path / "files"]


def blob(**data):
    return SimpleNamespace(data=data, files=[("a.png", b"")])


@pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio: uv sync --extra app")
def test_what_editors_send_ahead_is_bounded():
    storage = {}

    def accept(sent):
        storage[sent.data["id"]] = SimpleNamespace(background=b"", layers=[])

    accepting = _bounded(accept, storage)
    for number in range(_AHEAD + 5):
        accepting(blob(type="background", id=number))
    accepting(blob(type="layer", index="3", id="last"))
    assert list(storage) == [*range(6, _AHEAD + 5), "last"]


@pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio: uv sync --extra app")
@pytest.mark.parametrize(
    "data", [{}, {"type": "layer", "id": 1, "index": str(10**9)}, {"type": "layer", "id": 1, "index": "-1"}, None]
)
def test_what_no_editor_sends_is_refused(data):
    from starlette.exceptions import HTTPException

    with pytest.raises(HTTPException):
        _bounded(lambda _: None, {})(SimpleNamespace(data=data))
