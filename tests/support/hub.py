"""A model hub on this machine that speaks the Hub's HTTP API, and misbehaves when it is told to.

It serves what the real client needs for models: info with files, sizes and hashes, trees, and
`resolve` with ranges. Large files are redirected to another address, as the Hub does with its CDN.
"""

import hashlib
import json
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_LARGE = 10_000
_PIECE = 1 << 16


@dataclass(frozen=True)
class Content:
    """One file of a commit."""

    data: bytes

    @property
    def is_large(self) -> bool:
        """Kept outside of git."""
        return len(self.data) >= _LARGE

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def blob_id(self) -> str:
        """As git names the blob; of a large file that of its pointer, here without its rules."""
        data = self.sha256.encode() if self.is_large else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.blob_id

    def lfs(self) -> dict[str, Any]:
        return {"oid": self.sha256, "sha256": self.sha256, "size": len(self.data),
                "pointerSize": 134}  # fmt: skip


@dataclass
class Repo:
    """Branches and commits."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Content]] = field(default_factory=dict)
    readers: set[str] | None = None
    """Tokens that may read a gated repository; None: not gated."""


@dataclass
class Asked:
    """A request, and how many bytes of a body it got."""

    method: str
    path: str
    file: str
    """Of a repository; empty for everything else."""
    begin: int
    authorization: str | None
    sent: int = 0


@dataclass
class Fault:
    """What goes wrong with a file."""

    cut_at: int | None = None
    """The connection ends before this byte."""
    hold_at: int | None = None
    """Nothing comes from this byte on until `LocalHub.go_on`."""
    wrong: bool = False
    """Another first byte."""
    longer: int = 0
    """So many bytes more than the list says; a negative number: less."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: "LocalHub"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what is tested."""


class LocalHub:
    """Use as a context. `url` is for HF_ENDPOINT."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[Asked] = []
        self.tokens: set[str] = set()
        self.status: int | None = None
        """Answer everything with this."""
        self.is_silent = False
        """Requests are taken and not answered until `go_on`."""
        self._faults: dict[str, list[Fault]] = {}
        self._go_on = threading.Event()
        self._held = threading.Semaphore(0)
        self._server = self._listen("127.0.0.1", 0)
        self._cdn = self._listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Another name of the same machine is another origin.
        self.cdn_url = f"http://localhost:{self._cdn.server_port}"

    def __enter__(self) -> "LocalHub":
        return self

    def __exit__(self, *_: object) -> None:
        self._go_on.set()
        self.go_away()
        self._end(self._cdn)

    def commit(self, repo: str, files: Mapping[str, bytes], *, branch: str = "main") -> str:
        """Put a branch to a new commit that holds these files; its id."""
        contents = {path: Content(data) for path, data in files.items()}
        text = json.dumps({path: each.etag for path, each in contents.items()} | {"": branch})
        commit = hashlib.sha1(text.encode()).hexdigest()
        known = self.repos.setdefault(repo, Repo())
        known.commits[commit] = contents
        known.branches[branch] = commit
        return commit

    def gate(self, repo: str, *readers: str) -> None:
        """Only these tokens may read its files; everybody may list them."""
        self.repos[repo].readers = set(readers)
        self.tokens |= set(readers)

    def spoil(self, file: str, *faults: Fault) -> None:
        """The next requests for the file go wrong, one after the other."""
        self._faults[file] = list(faults)

    def wait_until_held(self) -> None:
        """Until a request is at its `hold_at`."""
        assert self._held.acquire(timeout=30)

    def go_on(self) -> None:
        """Held requests get the rest."""
        self._go_on.set()

    def go_away(self) -> None:
        """Nobody answers any more, and open connections end."""
        self._end(self._server)

    def come_back(self) -> None:
        """At the same address."""
        self._server = self._listen("127.0.0.1", self._server.server_port)

    def sent(self, file: str) -> int:
        """Bytes of the file that went out, in all."""
        return sum(each.sent for each in self.asked if each.file == file)

    def fault_of(self, file: str) -> Fault | None:
        """What goes wrong with this request."""
        faults = self._faults.get(file)
        return faults.pop(0) if faults else None

    def hold(self) -> None:
        """Until `go_on`."""
        self._held.release()
        self._go_on.wait(60)

    def _listen(self, host: str, port: int) -> _Server:
        server = _Server((host, port), _Handler)
        server.hub = self
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    @staticmethod
    def _end(server: _Server) -> None:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        begin = int((self.headers.get("range") or "bytes=0-")[6:].split("-")[0])
        asked = Asked(self.command, path, "", begin, self.headers.get("authorization"))
        hub.asked.append(asked)
        if hub.is_silent:
            hub.hold()
        if hub.status is not None:
            self._refuse(hub.status, "", "The hub is not well.")
        elif path.startswith("/cdn/"):
            _, _, digest, file = path.split("/", 3)
            self._body(self._find(digest), file, asked)
        elif self._token() not in hub.tokens | {None}:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif path.startswith("/api/models/"):
            self._about(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            self._resolve(path, asked)
        else:
            self._refuse(404, "", "There is nothing.")

    def _token(self) -> str | None:
        said = self.headers.get("authorization")
        return None if said is None else said.removeprefix("Bearer ")

    def _find(self, digest: str) -> Content:
        return next(
            content
            for repo in self.server.hub.repos.values()
            for commit in repo.commits.values()
            for content in commit.values()
            if content.sha256 == digest
        )

    def _commit(self, name: str, revision: str) -> str | None:
        """Its id; None: the refusal was sent."""
        repo = self.server.hub.repos.get(name)
        if repo is None:
            # Whoever has no token is not told whether it is private or not there.
            self._refuse(401 if self._token() is None else 404, "RepoNotFound", "Not found")
            return None
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return commit

    def _about(self, rest: str) -> None:
        parts = rest.split("/")
        name, revision = "/".join(parts[:2]), "/".join(parts[3:]) or "main"
        commit = self._commit(name, revision)
        if commit is None:
            return
        repo = self.server.hub.repos[name]
        contents = repo.commits[commit]
        if parts[2:3] == ["tree"]:
            self._json([
                {"type": "file", "path": path, "size": len(each.data), "oid": each.blob_id}
                | ({"lfs": each.lfs()} if each.is_large else {})
                for path, each in contents.items()
            ])  # fmt: skip
            return
        siblings = [
            {"rfilename": path, "size": len(each.data), "blobId": each.blob_id}
            | ({"lfs": each.lfs()} if each.is_large else {})
            for path, each in contents.items()
        ]
        gated = "manual" if repo.readers is not None else False
        self._json({"id": name, "modelId": name, "sha": commit, "private": False, "tags": [],
                    "downloads": 0, "likes": 0, "gated": gated, "siblings": siblings})  # fmt: skip

    def _resolve(self, path: str, asked: Asked) -> None:
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        commit = self._commit(name, revision)
        if commit is None:
            return
        repo = self.server.hub.repos[name]
        if repo.readers is not None and self._token() not in repo.readers:
            status = 401 if self._token() is None else 403
            self._refuse(status, "GatedRepo", f"Access to model {name} is restricted.")
        elif file not in repo.commits[commit]:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            content = repo.commits[commit][file]
            headers = {"X-Repo-Commit": commit, "ETag": f'"{content.etag}"'}
            if content.is_large:
                headers |= {
                    "X-Linked-ETag": f'"{content.etag}"',
                    "X-Linked-Size": str(len(content.data)),
                    "Location": f"{self.server.hub.cdn_url}/cdn/{content.sha256}/{file}",
                }
                self._head(302, 0, headers)
            else:
                self._body(content, file, asked, headers)

    def _body(
        self, content: Content, file: str, asked: Asked, headers: Mapping[str, str] | None = None
    ) -> None:
        asked.file = file
        fault = (self.server.hub.fault_of(file) if self.command == "GET" else None) or Fault()
        data = (content.data + b"\0" * fault.longer)[: len(content.data) + fault.longer]
        size = len(data)
        if asked.begin >= size > 0:
            self._head(416, 0, {"Content-Range": f"bytes */{size}"})
            return
        ranged = {"Content-Range": f"bytes {asked.begin}-{size - 1}/{size}"}
        is_part = "range" in self.headers
        self._head(
            206 if is_part else 200,
            size - asked.begin,
            dict(headers or {}) | (ranged if is_part else {}),
        )
        if self.command == "GET":
            self._send(data, asked, fault)

    def _send(self, data: bytes, asked: Asked, fault: Fault) -> None:
        if fault.wrong:
            data = bytes([data[0] ^ 1]) + data[1:]
        place = asked.begin
        stops = {len(data), fault.cut_at or 0, fault.hold_at or 0}
        for stop in sorted(each for each in stops if each > place):
            while place < stop:
                piece = data[place : min(stop, place + _PIECE)]
                self.wfile.write(piece)
                place += len(piece)
                asked.sent += len(piece)
            if stop == fault.cut_at:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if stop == fault.hold_at:
                self.server.hub.hold()

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self._head(200, len(body), {"Content-Type": "application/json"})
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code} if code else {}
        self._head(status, 0, headers | {"X-Error-Message": message})

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
