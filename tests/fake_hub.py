"""A Hugging Face Hub on this machine: the HTTP endpoints that huggingface_hub asks, and a record of every request."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

TOKEN = "hf_right"
LARGE = (".safetensors", ".bin")  # stored by LFS, as the Hub's default .gitattributes has it


@dataclass
class Repository:
    """Branches (name -> commits, the last one is the head), each commit all files of that time."""

    branches: dict[str, list[dict[str, bytes]]]
    private: bool = False
    gated: bool = False
    messages: list[str] = field(default_factory=list)

    def files(self, revision):
        """(commit, files) of a branch or commit; None when there is none."""
        for name, commits in self.branches.items():
            for number, files in enumerate(commits):
                commit = hashlib.sha1(f"{name} {number} {sorted(files)}".encode()).hexdigest()
                if revision == commit or (revision == name and number == len(commits) - 1):
                    return commit, files
        return None


class FakeHub:
    """Repositories by name, and the requests that came: (method, path)."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.uploaded: dict[str, bytes] = {}  # LFS objects by sha256
        self.cut_after: int | None = None  # close the connection after so many bytes of a large file
        self.delay = 0.0  # seconds before every answer
        self.refuse: tuple[int, str] | None = None  # answer every request so
        self.remarks: list[str] = []  # on the metadata of every card
        self.complaints: list[str] = []  # likewise, for which it is refused
        self.url = ""

    def add(self, name: str, folder: Path | dict[str, bytes], branch="main", **options) -> Repository:
        """Put the files of a folder into a repository's branch."""
        files = folder
        if isinstance(folder, Path):
            files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        repository = self.repositories.setdefault(name, Repository({}, **options))
        repository.branches.setdefault(branch, []).append(files)
        return repository

    def downloads(self):
        """Names of the files whose bytes were asked for, sorted."""
        return sorted(path.split("/resolve/")[1].split("/", 1)[1] for method, path in self.requests if method == "GET" and "/resolve/" in path)  # noqa: E501  # fmt: skip


@contextmanager
def running():
    """A `FakeHub` that answers at its `url`."""
    hub = FakeHub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that gave up is no news; anything else is a fault of the fake."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Refusal(Exception):
    """A status, the Hub's X-Error-Code and its message."""


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self):
        path = unquote(self.path.partition("?")[0])
        self.hub.requests.append((self.command, path))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(self.hub.delay)
        try:
            if self.hub.refuse is not None:
                raise _Refusal(self.hub.refuse[0], "", self.hub.refuse[1])
            for pattern, action in ROUTES:
                if found := re.fullmatch(pattern, path):
                    return action(self, *found.groups())
            raise _Refusal(404, "", f"the fake Hub knows no {self.command} {path}")
        except _Refusal as refusal:
            status, code, message = refusal.args
            headers = {"X-Error-Code": code, "X-Error-Message": message}
            self._answer(status, json.dumps({"error": message}).encode(), {k: v for k, v in headers.items() if v})

    def _answer(self, status, body=b"", headers=None, cut=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        self.close_connection = cut is not None and cut < len(body)

    def _json(self, value):
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    # ---------------------------------------------------------------- reading

    def _authorised(self):
        given = self.headers.get("Authorization")
        if given is not None and given != f"Bearer {TOKEN}":
            raise _Refusal(401, "", "Invalid credentials in Authorization header")
        return given is not None

    def _repository(self, name):
        found = self.hub.repositories.get(name)
        if not self._authorised() and (found is None or found.private):
            raise _Refusal(401, "RepoNotFound", "Repository not found")
        if found is None:
            raise _Refusal(404, "RepoNotFound", "Repository not found")
        return found

    def _files(self, name, revision):
        found = self._repository(name).files(revision)
        if found is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def _info(self, name, revision=None):
        commit, files = self._files(name, revision or "main")
        repository = self.hub.repositories[name]
        about = {"id": name, "sha": commit, "private": repository.private, "gated": repository.gated and "manual"}
        self._json({**about, "tags": [], "downloads": 0, "likes": 0, "siblings": [{"rfilename": f} for f in files]})

    def _tree(self, name, revision):
        _, files = self._files(name, revision)
        self._json([_entry(path, content) for path, content in sorted(files.items())])

    def _resolve(self, name, revision, path):
        commit, files = self._files(name, revision)
        if self.hub.repositories[name].gated:
            raise _Refusal(403, "GatedRepo", f"Access to model {name} is restricted")
        if path not in files:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        content = files[path]
        headers = {"ETag": f'"{_entry(path, content)["oid"]}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        begin = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["", "0"])[1])
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        cut = self.hub.cut_after if path.endswith(LARGE) and self.command == "GET" else None
        self._answer(206 if begin else 200, content[begin:], headers, cut)

    # ---------------------------------------------------------------- writing

    def _write(self, name=None):
        if not self._authorised():
            raise _Refusal(401, "", "Invalid username or password.")
        return None if name is None else self._repository(name)

    def _create(self):
        self._write()
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "acme":
            raise _Refusal(403, "", f"You don't have the rights to create a model under {asked['organization']}")
        if name in self.hub.repositories:
            return self._answer(409, json.dumps({"url": f"{self.hub.url}/{name}"}).encode())
        private = asked.get("visibility") == "private" or asked.get("private", False)
        self.hub.add(name, {".gitattributes": b""}, private=private)
        return self._json({"url": f"{self.hub.url}/{name}", "name": name})

    def _branch(self, name, branch):
        repository = self._write(name)
        if branch in repository.branches:
            raise _Refusal(409, "", "Reference already exists")
        repository.branches[branch] = list(repository.branches["main"])
        self._json({})

    def _validate(self):
        complaints, remarks = ([{"message": m} for m in said] for said in (self.hub.complaints, self.hub.remarks))
        answer = json.dumps({"errors": complaints, "warnings": remarks}).encode()
        self._answer(400 if complaints else 200, answer)

    def _preupload(self, name, revision):
        self._write(name)
        self._files(name, revision)
        files = json.loads(self.body)["files"]
        modes = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular", "shouldIgnore": False} for f in files]  # noqa: E501  # fmt: skip
        self._json({"files": modes})

    def _batch(self, name):
        self._write(name)
        objects = json.loads(self.body)["objects"]
        actions = [{**o, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}"}, "verify": {"href": f"{self.hub.url}/verify"}}} for o in objects]  # noqa: E501  # fmt: skip
        self._json({"transfer": "basic", "objects": actions})

    def _put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refusal(400, "", "not the content that was announced")
        self.hub.uploaded[oid] = self.body
        self._answer(200)

    def _verify(self):
        asked = json.loads(self.body)
        if len(self.hub.uploaded[asked["oid"]]) != asked["size"]:
            raise _Refusal(400, "", "not the size that was announced")
        self._json({})

    def _commit(self, name, revision):
        repository = self._write(name)
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = dict(self._files(name, revision)[1])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                files[value["path"]] = self.hub.uploaded[value["oid"]]
        request = "create_pr=1" in self.path
        if request:
            revision = "refs/pr/1"
            repository.branches[revision] = []
        repository.branches[revision].append(files)
        commit = repository.files(revision)[0]
        done = {"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit, "success": True}
        self._json(done | ({"pullRequestUrl": f"{self.hub.url}/{name}/discussions/1"} if request else {}))


def _entry(path, content):
    entry = {"type": "file", "path": path, "size": len(content)}
    entry["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


NAME, REVISION = r"([\w.-]+/[\w.-]+)", r"([\w.-]+)"
ROUTES = (
    ("/api/repos/create", _Handler._create),
    ("/api/validate-yaml", _Handler._validate),
    (f"/api/models/{NAME}", _Handler._info),
    (f"/api/models/{NAME}/revision/{REVISION}", _Handler._info),
    (f"/api/models/{NAME}/tree/{REVISION}", _Handler._tree),
    (f"/api/models/{NAME}/branch/{REVISION}", _Handler._branch),
    (f"/api/models/{NAME}/preupload/{REVISION}", _Handler._preupload),
    (f"/api/models/{NAME}/commit/{REVISION}", _Handler._commit),
    (f"/{NAME}/resolve/{REVISION}/(.+)", _Handler._resolve),
    (rf"/{NAME}\.git/info/lfs/objects/batch", _Handler._batch),
    (r"/lfs/(\w+)", _Handler._put),
    ("/verify", _Handler._verify),
)
