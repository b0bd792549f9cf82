"""A hub on this machine: what huggingface_hub asks of one, answered from a directory."""

import hashlib
import json
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


def commit_of(revision):
    return hashlib.sha1(revision.encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers for one repository whose revisions are directories by name."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        path = urlsplit(self.path).path
        api, plain = f"/api/models/{self.server.model}/", f"/{self.server.model}/resolve/"
        if path.startswith(api):
            self.describe(*map(unquote, path.removeprefix(api).split("/")[:2]))
        elif path.startswith(plain):
            self.give(*map(unquote, path.removeprefix(plain).split("/", 1)), body=body)
        else:
            self.fail("RepoNotFound")

    def folder_of(self, revision):
        known = {name: name for name in self.server.revisions}
        known |= {commit_of(name): name for name in self.server.revisions}
        name = known.get(revision)
        return None if name is None else (self.server.revisions[name], commit_of(name))

    def describe(self, what, revision):
        found = self.folder_of(revision)
        if found is None:
            self.fail("RevisionNotFound")
            return
        folder, commit = found
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = [str(path.relative_to(folder)) for path in files]
        if what == "tree":
            listed = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}
                for name, path in zip(names, files, strict=True)
            ]
            self.send(json.dumps(listed).encode())
        else:
            listed = [{"rfilename": name} for name in names]
            self.send(
                json.dumps(
                    {"id": self.server.model, "sha": commit, "siblings": listed, "tags": []}
                ).encode()
            )

    def give(self, revision, name, *, body):
        found = self.folder_of(revision)
        if found is None or not (found[0] / name).is_file():
            self.fail("RevisionNotFound" if found is None else "EntryNotFound")
            return
        content = (found[0] / name).read_bytes()
        if body:
            self.server.fetched.append((self.server.model, name))
        etag = hashlib.sha1(content).hexdigest()
        self.send(content, body=body, headers={"ETag": f'"{etag}"', "X-Repo-Commit": found[1]})

    def send(self, content, *, body=True, headers=None):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def fail(self, code):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@contextmanager
def hub(model, revisions):
    """Serve a repository; gives the server, whose `fetched` lists the files that were read."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.model, server.revisions, server.fetched = model, revisions, []
    thread = Thread(target=partial(server.serve_forever, 0.01), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
