"""A stand-in for the Hugging Face Hub on this machine: public repositories out of a folder."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "1" * 40


@contextmanager
def served(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serves each folder USER/NAME of `root`; gives the address, and the paths in it of the files that are fetched."""
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, *, with_body):
            path = self.path.split("?")[0].strip("/")
            user, name, *rest = path.removeprefix("api/models/").split("/")
            folder = root / user / name
            if not folder.is_dir():
                self.refuse("RepoNotFound")
                return
            if path.startswith("api/models/"):
                self.list_files(folder, rest)
                return
            revision, name = rest[1], "/".join(rest[2:])
            if revision not in ("main", COMMIT):
                self.refuse("RevisionNotFound")
            elif not (folder / name).is_file():
                self.refuse("EntryNotFound")
            else:
                data = (folder / name).read_bytes()
                if with_body:
                    fetched.append((folder / name).relative_to(root).as_posix())
                self.send(200, data if with_body else b"", size=len(data), ETag=f'"{hashlib.sha1(data).hexdigest()}"')

        def list_files(self, folder, what):
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            if what[1] not in ("main", COMMIT):
                self.refuse("RevisionNotFound")
            elif what[0] == "tree":
                listed = [
                    {"type": "file", "path": file.relative_to(folder).as_posix(), "size": file.stat().st_size,
                     "oid": hashlib.sha1(file.read_bytes()).hexdigest()}
                    for file in files
                ]  # fmt: skip
                self.send_json(listed)
            else:
                siblings = [{"rfilename": file.relative_to(folder).as_posix()} for file in files]
                self.send_json({"id": folder.relative_to(root).as_posix(), "sha": COMMIT, "siblings": siblings})

        def send_json(self, content):
            self.send(200, json.dumps(content).encode(), kind="application/json")

        def refuse(self, code):
            self.send(404, b"", **{"X-Error-Code": code})

        def send(self, status, body, *, size=None, kind="application/octet-stream", **headers):
            self.send_response(status)
            headers |= {"X-Repo-Commit": COMMIT, "Content-Type": kind, "Content-Length": str(size or len(body))}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
