import io
import os
import time
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from glide_jax.errors import GlideError
from glide_jax.sample.image_inputs import load_image, load_mask
from glide_jax.ui.uploads import (
    AHEAD,
    SIDE,
    bound_ahead,
    bound_folder,
    check_files,
    mask_of,
    open_edited,
    open_in_child,
    open_upload,
    uploaded,
)


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, **{"format": "PNG"} | options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_images_of_any_mode_are_read(mode):
    assert open_upload(encoded(Image.new(mode, (5, 4))), 20).mode == "RGBA"
    assert open_upload(encoded(Image.new("CMYK", (5, 4)), format="JPEG"), 20).size == (5, 4)


def test_a_photograph_is_turned_upright():
    exif = Image.Exif()
    exif[274] = 6
    assert open_upload(encoded(Image.new("RGB", (6, 3)), format="JPEG", exif=exif), 99).size == (3, 6)


def test_more_pixels_than_allowed_are_refused_before_they_are_decoded():
    content = encoded(Image.new("L", (3000, 2000)))
    with pytest.raises(GlideError, match="3000 x 2000 pixels, more than 1 million"):
        open_upload(content[:200], 1_000_000)


def test_a_decompression_bomb_is_refused():
    with pytest.raises(GlideError, match="too many pixels"):
        open_upload(encoded(Image.new("1", (13500, 13500))), 10**9)


@pytest.mark.parametrize("content", [b"", b"a text", encoded(Image.new("RGB", (64, 64), "red"))[:100], b"%!PS-Adobe"])
def test_what_is_no_image_is_refused(content, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    for source in (content, tmp_path / "x.png"):
        with pytest.raises(GlideError, match=r"^not a readable image: it is damaged, or no JPEG, PNG, WebP"):
            open_upload(source, 10**6)


@pytest.mark.parametrize("options", [{}, {"format": "JPEG", "quality": 95}])
def test_a_large_image_is_reduced_as_it_is_opened(options):
    rows = np.linspace(0, 255, 2 * SIDE + 100).astype(np.uint8)
    large = Image.fromarray(np.broadcast_to(rows[:, None, None], (len(rows), len(rows), 3)))
    opened = open_upload(encoded(large, **options), 10**7)
    assert opened.size == (len(rows) // 2,) * 2
    np.testing.assert_allclose(load_image(opened, 64), load_image(large, 64), atol=3 / 255)
    assert open_upload(encoded(large.crop((0, 0, 9, 2 * SIDE)), **options), 10**7).size == (9, 2 * SIDE)


def of_many_scans(side, scans):
    """A progressive JPEG, small to send and long to decode: its last scan over and over."""
    content = encoded(Image.new("L", (side, side), 200), format="JPEG", progressive=True)
    last = content[content.rfind(b"\xff\xc4", 0, content.rfind(b"\xff\xda")) : -2]
    return content[:-2] + scans * last + b"\xff\xd9"


def test_what_takes_too_long_is_ended(tmp_path):
    (tmp_path / "a.jpg").write_bytes(of_many_scans(2000, 100_000))
    for source in (tmp_path / "a.jpg", (tmp_path / "a.jpg").read_bytes()):
        begun = time.monotonic()
        with pytest.raises(GlideError, match=r"^not a readable image: it takes longer than 1 s$"):
            open_in_child(source, 10**7, seconds=1)
        assert time.monotonic() - begun < 5


def test_a_child_process_opens_the_same(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    (tmp_path / "a ü.png").write_bytes(encoded(image))
    for source in (tmp_path / "a ü.png", encoded(image)):
        np.testing.assert_array_equal(open_in_child(source, 600), open_upload(source, 600))
    with pytest.raises(GlideError, match=r"^not a readable image: it has 30 x 20 pixels"):
        open_in_child(tmp_path / "a ü.png", 599)


def test_what_is_painted_is_inpainted_and_the_rest_is_kept():
    layer = np.zeros((40, 60, 4), np.uint8)
    layer[10:30, 20:40] = 255
    image = Image.new("RGBA", (60, 40))
    kept = load_mask(mask_of(image, Image.fromarray(layer)), 40)[..., 0]
    assert kept[20, 20] == 0
    assert kept.mean() == 1 - 20 * 20 / 40 / 40
    assert mask_of(image, None).getextrema() == (255, 255)


def test_an_editor_is_opened_from_files_or_what_was_sent_ahead(tmp_path):
    image, layer = Image.new("RGBA", (6, 4), "red"), Image.new("RGBA", (3, 2), "blue")
    files = []
    for name, each in (("image.png", image), ("layer.png", layer)):
        each.save(tmp_path / name)
        files.append({"path": str(tmp_path / name)})
    background, painted = ((tmp_path / name).read_bytes() for name in ("image.png", "layer.png"))
    ahead = {"a": SimpleNamespace(background=background, layers=[None, painted, b"not opened"])}
    sent = {"background": files[0], "layers": [files[1], {"path": "not opened"}], "id": None}
    for each in (sent, {"background": None, "layers": [], "id": "a"}):
        opened = open_edited(each, ahead, str(tmp_path))
        assert (opened["image"], opened["mask"].getextrema()) == (image, (0, 0))
    assert not ahead
    for nothing in (
        None,
        {"background": None, "layers": [], "id": None},
        {"background": None, "layers": [], "id": "a"},
    ):
        assert open_edited(nothing, ahead, str(tmp_path)) == {}


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


@pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio: uv sync --inexact --extra app")
def test_what_editors_send_ahead_is_bounded():
    storage = {}

    def accept(sent):
        storage[sent.data["id"]] = SimpleNamespace(background=b"", layers=[])

    editor = SimpleNamespace(accept_blobs=accept, blob_storage=storage)
    bound_ahead(editor)
    for number in range(AHEAD + 5):
        editor.accept_blobs(blob(type="background", id=number))
    editor.accept_blobs(blob(type="layer", index="3", id="last"))
    assert list(storage) == [*range(6, AHEAD + 5), "last"]


@pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio: uv sync --inexact --extra app")
@pytest.mark.parametrize(
    "data", [{}, {"type": "layer", "id": 1, "index": str(10**9)}, {"type": "layer", "id": 1, "index": "-1"}, None]
)
def test_what_no_editor_sends_is_refused(data):
    from starlette.exceptions import HTTPException

    editor = SimpleNamespace(accept_blobs=lambda _: None, blob_storage={})
    bound_ahead(editor)
    with pytest.raises(HTTPException):
        editor.accept_blobs(SimpleNamespace(data=data))
