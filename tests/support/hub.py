"""A hub on loopback that the real ``huggingface_hub`` talks to: repositories with commits, downloads, uploads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import HfFileSystem, constants

RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?")
PATHS = re.compile(r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)")
TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?")
PREUPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)")
COMMIT = re.compile(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)")
BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
LARGE = (".aibit", ".gguf", ".safetensors", ".bin")


class Hub:
    """Serve repositories: ``repositories[id]`` is a list of commits, each a dict of files; ``main`` is the last one."""

    def __init__(self) -> None:
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.refused: dict[str, tuple[int, str]] = {}  # id -> status and error code
        self.break_after: dict[str, int] = {}  # file -> bytes after which its next download breaks off
        self.seen: list[tuple[str, str, str | None]] = []  # method, path, range
        self.messages: list[str] = []
        self.closed = False
        self._stored: dict[str, bytes] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop, also for connections that are open."""
        self.closed = True
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, files: dict[str, bytes]) -> str:
        """Add a commit with these files and all earlier ones; return its id."""
        commits = self.repositories.setdefault(name, [])
        commits.append({**(commits[-1] if commits else {}), **files})
        return sha(name, len(commits) - 1)

    def commit(self, name: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repositories.get(name)
        if not commits:
            return (sha(name, -1), {}) if commits is not None and revision in (None, "main") else None
        known = {sha(name, i): (sha(name, i), files) for i, files in enumerate(commits)}
        known["main"] = known[sha(name, len(commits) - 1)]
        return known.get(revision or "main")


def sha(name: str, number: int) -> str:
    return hashlib.sha1(f"{name} {number}".encode(), usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return

    def do_GET(self) -> None:
        self._route()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _route(self) -> None:
        if self.hub.closed:
            self.close_connection = True
            return None
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append((self.command, path, self.headers.get("Range")))
        for pattern, answer in _ROUTES:
            if found := pattern.fullmatch(path):
                return answer(self, *found.groups())
        return self._json({"error": f"no such address {path}"}, 404)

    def _json(self, value: object, status: int = 200, **headers: str) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _commit(self, name: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        """Return a commit, or answer that there is none."""
        if name in self.hub.refused:
            status, code = self.hub.refused[name]
            self._json({"error": code}, status, X_Error_Code=code)
        elif name not in self.hub.repositories:
            self._json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif (found := self.hub.commit(name, revision)) is None:
            self._json({"error": "Revision not found"}, 404, X_Error_Code="RevisionNotFound")
        else:
            return found
        return None

    def info(self, name: str, revision: str | None) -> None:
        if found := self._commit(name, revision):
            siblings = [{"rfilename": file, **_entry(file, data)} for file, data in found[1].items()]
            self._json({"_id": "1", "id": name, "modelId": name, "sha": found[0], "siblings": siblings, "tags": []})

    def paths(self, name: str, revision: str) -> None:
        if found := self._commit(name, revision):
            wanted = json.loads(self.body)["paths"] if self.body.startswith(b"{") else []
            self._json([_entry(file, found[1][file]) for file in wanted if file in found[1]])

    def tree(self, name: str, revision: str, _: str | None) -> None:
        if found := self._commit(name, revision):
            self._json([_entry(file, data) for file, data in found[1].items()])

    def resolve(self, name: str, revision: str, file: str) -> None:
        found = self._commit(name, revision)
        if found is None:
            return
        if file not in found[1]:
            return self._json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=found[0])
        data = found[1][file]
        start, end = 0, len(data)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else len(data), len(data))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", found[0])
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return
        if (most := self.hub.break_after.pop(file, None)) is not None:
            self.wfile.write(data[start : start + most])
            self.close_connection = True
            return
        self.wfile.write(data[start:end])

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        exists = name in self.hub.repositories
        self.hub.repositories.setdefault(name, [])
        url = f"{self.hub.endpoint}/{name}"
        self._json({"url": url, "name": name, "error": "exists"}, 409 if exists else 200)

    def preupload(self, name: str, revision: str) -> None:
        if self._commit(name, revision):
            files = [
                {"path": each["path"], "uploadMode": "lfs" if each["path"].endswith(LARGE) else "regular",
                 "shouldIgnore": False}
                for each in json.loads(self.body)["files"]
            ]  # fmt: skip
            self._json({"files": files})

    def batch(self, name: str) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{each['oid']}", "header": {}}}}
            for each in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def store(self, digest: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == digest
        self.hub._stored[digest] = self.body
        self._json({})

    def write(self, name: str, _: str) -> None:
        files = {}
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub._stored[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        commit = self.hub.add(name, files)
        self._json({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def yaml(self) -> None:
        self._json({"errors": [], "warnings": []})


def _entry(file: str, data: bytes) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    entry: dict[str, object] = {"type": "file", "path": file, "size": len(data)}
    entry |= {"oid": digest[:40], "blobId": digest[:40]}
    if file.endswith(LARGE):
        entry["lfs"] = {"oid": digest, "sha256": digest, "size": len(data), "pointerSize": 134}
    return entry


_ROUTES = (
    (re.compile(r"/api/repos/create"), _Handler.create),
    (re.compile(r"/api/validate-yaml"), _Handler.yaml),
    (re.compile(r"/lfs/([0-9a-f]{64})"), _Handler.store),
    (BATCH, _Handler.batch),
    (PREUPLOAD, _Handler.preupload),
    (COMMIT, _Handler.write),
    (PATHS, _Handler.paths),
    (TREE, _Handler.tree),
    (INFO, _Handler.info),
    (RESOLVE, _Handler.resolve),
)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that ``huggingface_hub`` in this process talks to, with a cache of its own."""
    made = Hub()
    monkeypatch.setenv("HF_ENDPOINT", made.endpoint)
    for name, value in {
        "HF_HUB_OFFLINE": False, "ENDPOINT": made.endpoint, "HF_HUB_DISABLE_XET": True,
        "HUGGINGFACE_CO_URL_TEMPLATE": made.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": True,
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    HfFileSystem.clear_instance_cache()
    yield made
    made.close()
    HfFileSystem.clear_instance_cache()
