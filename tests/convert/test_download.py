"""Downloads from a real server on this machine: whole, resumed, cut short, changed, offline."""

import errno
import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from convert import download as downloading
from convert.download import download, open_source
from glide_jax.errors import GlideError

BODY = b"\x80\x02" + np.random.default_rng(0).bytes(2_999_998)
CHANGED = BODY[:2] + BODY[:1:-1]


class Handler(BaseHTTPRequestHandler):
    """Serves `server.body` with ranges, at most `server.limit` bytes an answer; `next_body` after a HEAD."""

    def do_HEAD(self):
        self.answer(send=False)

    def do_GET(self):
        self.server.ranges.append(self.headers.get("Range"))
        self.answer(send=True)

    def answer(self, send):
        body, start = self.server.body, 0
        if self.path != "/base.pt":
            return self.send_error(404, "Not Found")
        etag = self.server.etag.format(hashlib.md5(body).hexdigest())
        unchanged = self.headers.get("If-Range", etag) == etag
        if (asked := self.headers.get("Range")) and self.server.resumable and unchanged:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        headers = {"Content-Length": str(len(body) - start), "ETag": etag} | self.server.headers
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        if not send:
            self.server.body = self.server.next_body or body
        self.end_headers()
        if send:
            self.wfile.write(body[start:][: self.server.limit])
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("GLIDE_JAX_CACHE", str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.body, server.next_body, server.limit, server.ranges = BODY, None, None, []
    server.resumable, server.headers, server.etag = True, {}, '"{}"'
    server.url = f"http://127.0.0.1:{server.server_port}/base.pt"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def parts(folder):
    return list(folder.glob("*.part"))


def test_a_file_arrives_whole_and_leaves_nothing_else(server, tmp_path):
    download(server.url, tmp_path / "deep" / "base.pt")
    assert (tmp_path / "deep" / "base.pt").read_bytes() == BODY
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["base.pt"]


def test_answers_cut_short_are_continued_until_all_is_there(server, tmp_path):
    server.limit = 1_000_000
    download(server.url, tmp_path / "base.pt")
    assert (tmp_path / "base.pt").read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000000-", "bytes=2000000-"]


def test_a_download_that_stops_is_resumed_by_the_next_call(server, tmp_path):
    server.body, server.limit = BODY, 1_500_000
    original, answers = Handler.do_GET, []

    def only_once(self):
        answers.append(1)
        if len(answers) > 1:
            self.server.limit = 0
        original(self)

    Handler.do_GET = only_once
    try:
        with pytest.raises(GlideError, match="stopped at 1500000 of 3000000 bytes: run again to resume"):
            download(server.url, tmp_path / "base.pt")
    finally:
        Handler.do_GET = original
    assert not (tmp_path / "base.pt").exists()
    assert [part.stat().st_size for part in parts(tmp_path)] == [1_500_000]
    server.limit, server.ranges = None, []
    download(server.url, tmp_path / "base.pt")
    assert server.ranges == ["bytes=1500000-"]
    assert (tmp_path / "base.pt").read_bytes() == BODY
    assert not parts(tmp_path)


def test_a_part_of_an_older_version_is_not_continued(server, tmp_path):
    server.limit = 0
    with pytest.raises(GlideError, match="stopped at 0"):
        download(server.url, tmp_path / "base.pt")
    (old,) = parts(tmp_path)
    old.write_bytes(b"old" * 100)
    server.body, server.limit = CHANGED, None
    download(server.url, tmp_path / "base.pt")
    assert (tmp_path / "base.pt").read_bytes() == CHANGED
    assert server.ranges[-1] is None


def test_a_server_that_cannot_resume_sends_it_all_again(server, tmp_path):
    server.limit = 0
    with pytest.raises(GlideError, match="stopped at 0"):
        download(server.url, tmp_path / "base.pt")
    parts(tmp_path)[0].write_bytes(BODY[:1000])
    server.limit, server.resumable = None, False
    download(server.url, tmp_path / "base.pt")
    assert (tmp_path / "base.pt").read_bytes() == BODY


def test_processes_that_want_the_same_file_fetch_it_once(server, tmp_path):
    threads = [threading.Thread(target=download, args=(server.url, tmp_path / "base.pt")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "base.pt").read_bytes() == BODY
    assert server.ranges == [None]
    assert not parts(tmp_path)


def test_what_is_in_the_cache_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIDE_JAX_CACHE", str(tmp_path))
    (tmp_path / "upsample_inpaint.pt").write_bytes(b"weights")
    monkeypatch.setattr(downloading, "download", lambda *_: pytest.fail("asked the network"))
    assert open_source("upsample-inpaint").path == tmp_path / "upsample_inpaint.pt"


def test_a_published_name_is_downloaded_into_the_cache(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloading, "ADDRESS", server.url.removesuffix("/base.pt"))
    assert open_source("base").path == tmp_path / "base.pt"
    assert (tmp_path / "base.pt").read_bytes() == BODY


def test_the_sha256_is_remembered_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIDE_JAX_CACHE", str(tmp_path))
    (tmp_path / "clip_text_enc.pt").write_bytes(BODY)
    source = open_source("clip/text-enc")
    assert source.name == "clip/text-enc"
    assert source.sha256 == hashlib.sha256(BODY).hexdigest()
    assert (tmp_path / "clip_text_enc.pt.sha256").read_text() == f"{source.sha256}  clip_text_enc.pt\n"
    assert open_source("clip/text-enc") == source
    (tmp_path / "clip_text_enc.pt").write_bytes(BODY[:-1])
    with pytest.raises(GlideError, match=r"clip_text_enc.pt has changed since it was first used .*: delete both"):
        open_source("clip/text-enc")


def test_errors_of_the_server_are_one_line(server, tmp_path):
    with pytest.raises(GlideError, match=r"other.pt answered 404 Not Found"):
        download(server.url.replace("base", "other"), tmp_path / "other.pt")
    server.headers = {"Content-Length": None}
    with pytest.raises(GlideError, match="does not tell its size"):
        download(server.url, tmp_path / "base.pt")


def test_offline_is_one_line_that_tells_where_to_put_the_file(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/base.pt"
        with pytest.raises(GlideError, match=r"run again when online, or put the file at .*base.pt"):
            download(url, tmp_path / "base.pt")


def test_other_sources_are_explained(tmp_path):
    with pytest.raises(GlideError, match=r"nothing is neither a file nor a published name \(base, upsample,"):
        open_source("nothing")


NO_FILE = {
    "no number": ({"Content-Length": "abc"}, BODY, "base.pt tells 'abc' as its size, which is not a number"),
    "below zero": ({"Content-Length": "-5"}, BODY, "base.pt tells '-5' as its size, which is not a number"),
    "a long number": ({"Content-Length": "9" * 5000}, BODY, "base.pt tells '9{40}' as its size, which is not a number"),
    "nothing": ({}, b"", "base.pt is empty"),
    "a page": ({"Content-Type": "text/html"}, BODY, "base.pt answered with a web page, not a file"),
    "a page that says nothing": ({}, b"<html>Sign in</html>", "base.pt is an HTML page, not a PyTorch or safetensors"),
    "an error": ({}, b'{"error": "gone"}', "base.pt is a JSON file, not a PyTorch"),
}


@pytest.mark.parametrize(("headers", "body", "message"), NO_FILE.values(), ids=NO_FILE)
def test_an_answer_that_is_no_file_is_one_line_and_leaves_nothing(server, tmp_path, headers, body, message):
    server.headers, server.body = headers, body
    with pytest.raises(GlideError, match=rf"{server.url.removesuffix('base.pt')}{message}") as caught:
        download(server.url, tmp_path / "base.pt")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_page_after_the_first_answer_is_one_line(server, tmp_path, monkeypatch):
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.send_error(200, "Sign in"))
    with pytest.raises(GlideError, match="answered with a web page"):
        download(server.url, tmp_path / "base.pt")
    assert not (tmp_path / "base.pt").exists()


@pytest.mark.parametrize("begun", [0, 1000])
@pytest.mark.parametrize("size", [None, 1_000_000], ids=["same size", "another size"])
@pytest.mark.parametrize("etag", ['"{}"', 'W/"{}"', "{}"], ids=["strong", "weak", "unquoted"])
def test_a_file_that_changes_between_two_requests_is_never_mixed(server, tmp_path, etag, size, begun):
    server.etag, server.limit = etag, begun
    with pytest.raises(GlideError, match=f"stopped at {begun}"):
        once(server, lambda: download(server.url, tmp_path / "base.pt"))
    server.limit, server.next_body = None, CHANGED[:size]
    with pytest.raises(GlideError, match="changed during the download: run again to start over"):
        download(server.url, tmp_path / "base.pt")
    download(server.url, tmp_path / "base.pt")
    assert (tmp_path / "base.pt").read_bytes() == CHANGED[:size]


def once(server, call):
    """Answers the first request for bytes, and the others by none."""
    with pytest.MonkeyPatch.context() as patch:
        original = Handler.do_GET

        def do_get(self):
            original(self)
            self.server.limit = 0

        patch.setattr(Handler, "do_GET", do_get)
        call()


def test_a_folder_that_cannot_be_written_is_one_line(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GlideError, match=r"cannot download .*base.pt"):
        download(server.url, tmp_path / "file" / "base.pt")


def test_the_first_use_says_that_nothing_vouches_for_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLIDE_JAX_CACHE", str(tmp_path))
    (tmp_path / "base.pt").write_bytes(BODY)
    sha256 = hashlib.sha256(BODY).hexdigest()
    open_source("base")
    told = f"nothing vouches for {tmp_path}/base.pt, used for the first time; recorded in base.pt.sha256: {sha256}"
    assert capsys.readouterr().out == f"{told}  base.pt\n"
    open_source("base")
    assert capsys.readouterr().out == ""
    open_source(str(tmp_path / "base.pt"))  # a file by its path is the user's own
    assert capsys.readouterr().out == ""


def test_a_note_is_written_whole_or_not_at_all(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLIDE_JAX_CACHE", str(tmp_path))
    (tmp_path / "base.pt").write_bytes(BODY)

    def full(path, text):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", full)
        assert open_source("base").sha256 == hashlib.sha256(BODY).hexdigest()
    assert "its sha256 is not recorded: cannot write" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["base.pt"]
    open_source("base")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.pt", "base.pt.sha256"]


NOTES = ["\ufeff{sha256}  base.pt\r\n", "{upper} *base.pt\n"]


@pytest.mark.parametrize("note", NOTES, ids=["byte-order mark", "capitals"])
def test_a_note_of_the_sha256_may_be_of_another_hand(tmp_path, monkeypatch, note):
    monkeypatch.setenv("GLIDE_JAX_CACHE", str(tmp_path))
    (tmp_path / "base.pt").write_bytes(BODY)
    sha256 = hashlib.sha256(BODY).hexdigest()
    (tmp_path / "base.pt.sha256").write_text(note.format(sha256=sha256, upper=sha256.upper()))
    assert open_source("base").sha256 == sha256


@pytest.mark.parametrize("note", ["", "\n", "12ab", "<html>"])
def test_a_note_without_a_sha256_is_one_line(tmp_path, monkeypatch, note):
    monkeypatch.setenv("GLIDE_JAX_CACHE", str(tmp_path))
    (tmp_path / "base.pt").write_bytes(BODY)
    (tmp_path / "base.pt.sha256").write_text(note)
    with pytest.raises(GlideError, match=r"base.pt.sha256 holds no sha256: delete it, and that of base.pt is recorded"):
        open_source("base")
