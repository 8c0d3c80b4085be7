"""A small Hugging Face hub on this machine: folders as repositories, by the protocol that the libraries speak."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, socket
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

# Files that the hub keeps apart from git, and sends from another address.
LARGE = {".parquet", ".tar", ".safetensors", ".jpg"}
API = re.compile(r"/api/(?P<kind>datasets|models)/(?P<repo>[^/]+/[^/]+)(?P<rest>/.*)?")
FILE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+(/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class Hub:
    """Serves `folder/datasets/OWNER/NAME` and `folder/models/OWNER/NAME` in a thread.

    A commit is named by what its files hold: `commit` notes the present one, which stays under its name when the
    folder changes.

    Args:
        folder: Where the repositories are.

    Attributes:
        url: What `HF_ENDPOINT` should be.
        requests: How often each path was asked for, as `METHOD /path`.
        sent: Bytes of files sent, by path in the repository.
        refused: For a repository the status and the `X-Error-Code` that its files are refused with.
        refs: Commits of further branches and tags, by `OWNER/NAME@REVISION`.
        silent: Repositories of which nothing is ever answered.
        redirected: Repositories whose files are always said to be elsewhere.
        cut: For a path in a repository, how many more answers end in their middle.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.refused: dict[str, tuple[int, str]] = {}
        self.silent: set[str] = set()
        self.redirected: set[str] = set()
        self.cut: Counter[str] = Counter()
        self.refs: dict[str, str] = {}
        self._commits: dict[str, Path] = {}
        self._server: Server | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        """Address and port."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def store(self) -> str:
        """Where large files are sent from, to the libraries another host."""
        return f"http://localhost:{self._port}/store"

    def start(self) -> None:
        """Listen, on the same port as before."""
        hub = self
        self._server = Server(("127.0.0.1", self._port), type("Answers", (Answers,), {"hub": hub}))
        self._port = self._server.server_port
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Close all connections, and refuse new ones."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.hang_up()
            self._server = None

    def environment(self, home: Path, **changes: str) -> dict[str, str]:
        """The environment of a process that uses this hub, with its caches in `home`."""
        known = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        return known | {"HF_ENDPOINT": self.url, "HF_HOME": str(home), **SWITCHES} | changes

    def commit(self, kind: str, repo: str) -> str:
        """The name of the present commit of a repository."""
        folder = self.folder / kind / repo
        found = hashlib.sha1()
        for path in files(folder):
            found.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
        name = found.hexdigest()
        if name not in self._commits:
            copy = self.folder / "commits" / name
            shutil.copytree(folder, copy)
            self._commits[name] = copy
        return name

    def find(self, kind: str, repo: str, revision: str) -> tuple[str, Path] | None:
        """A commit and its files; None if there is no such revision."""
        name = self.commit(kind, repo) if revision == "main" else self.refs.get(f"{repo}@{revision}", revision)
        return (name, self._commits[name]) if name in self._commits else None


def use(hub: Hub, home: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the libraries of this process use the hub, as `environment` lets those of another one.

    They read the environment when they are imported, and the same names whenever they ask for something.
    """
    import datasets
    from huggingface_hub import HfFileSystem, constants

    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"):
        patch.setattr(constants, name, True)
    patch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    patch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", home / "datasets" / "downloads")
    patch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    offline(patch, False)
    HfFileSystem.clear_instance_cache()


def offline(patch: pytest.MonkeyPatch, yes: bool = True) -> None:
    """What `HF_HUB_OFFLINE` sets."""
    import datasets
    from huggingface_hub import constants

    patch.setattr(constants, "HF_HUB_OFFLINE", yes)
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", yes)


# What the libraries would ask of other machines, or of the hub's newer stores.
SWITCHES = {
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
}


def files(folder: Path) -> list[Path]:
    """All files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


class Server(ThreadingHTTPServer):
    """Knows its open connections."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self.connections: set[socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Note the connection."""
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget it."""
        self.connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End all connections."""
        for connection in [*self.connections]:
            with suppress(OSError):
                connection.shutdown(SHUT_RDWR)


class Answers(BaseHTTPRequestHandler):
    """One connection to the hub."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""

    def do_HEAD(self) -> None:
        """As GET, without a body."""
        self.do_GET()

    def do_POST(self) -> None:
        """`paths-info`."""
        self.do_GET()

    def do_GET(self) -> None:
        """API, a file, or a file in the large store."""
        raw = urlsplit(self.path).path  # slashes of a revision are quoted
        path = unquote(raw)
        self.hub.requests[f"{self.command} {path}"] += 1
        if path.startswith("/store/"):
            self._send_file(self.hub.folder / "commits" / path.removeprefix("/store/"), {})
        elif match := API.fullmatch(raw):
            self._api(match["kind"], match["repo"], match["rest"] or "")
        elif match := FILE.fullmatch(raw):
            kind = "datasets" if match["kind"] else "models"
            self._file(kind, match["repo"], unquote(match["revision"]), unquote(match["path"]))
        else:
            self._refuse(404, "")

    def _api(self, kind: str, repo: str, rest: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        what, _, place = rest.removeprefix("/").partition("/")
        revision, inside = map(unquote, (place.partition("/")[::2]))
        if not (self.hub.folder / kind / repo).is_dir():
            return self._refuse(401, "RepoNotFound")
        found = self.hub.find(kind, repo, revision or "main")
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        commit, folder = found
        if what == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
            return self._send_json([entry(folder, path) for path in wanted if (folder / path).exists()])
        if what == "tree":
            recursive = "recursive=true" in self.path.lower()
            top = folder / inside
            if not top.is_dir():
                return self._refuse(404, "EntryNotFound")
            listed = sorted(top.rglob("*") if recursive else top.iterdir())
            return self._send_json([entry(folder, str(path.relative_to(folder))) for path in listed])
        siblings = [{"rfilename": str(path.relative_to(folder))} for path in files(folder)]
        return self._send_json({"id": repo, "sha": commit, "private": False, "siblings": siblings, "tags": []})

    def _file(self, kind: str, repo: str, revision: str, path: str) -> None:
        if not (self.hub.folder / kind / repo).is_dir():
            return self._refuse(401, "RepoNotFound")
        if repo in self.hub.silent:
            Event().wait(60)
        if repo in self.hub.redirected:
            return self._answer(302, {"Location": f"{self.path}/again"})
        if repo in self.hub.refused:
            return self._refuse(*self.hub.refused[repo])
        found = self.hub.find(kind, repo, revision)
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        commit, folder = found
        file, headers = folder / path, {"X-Repo-Commit": commit}
        if not file.is_file():
            return self._refuse(404, "EntryNotFound", headers)
        if file.suffix not in LARGE:
            return self._send_file(file, headers | {"ETag": f'"{etag(file)}"'})
        headers |= {"X-Linked-Size": str(file.stat().st_size), "X-Linked-Etag": f'"{etag(file)}"'}
        headers["Location"] = f"{self.hub.store}/{commit}/{path}"
        return self._answer(302, headers)

    def _send_file(self, file: Path, headers: dict[str, str]) -> None:
        content, status = file.read_bytes(), 200
        size = len(content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or size), size - 1)
            content, status = content[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        name = file.name
        cut = self.command == "GET" and self.hub.cut[name] > 0
        if cut:
            self.hub.cut[name] -= 1
        self._answer(status, headers | {"Accept-Ranges": "bytes"}, content, cut)
        if self.command == "GET":
            self.hub.sent[name] += len(content)

    def _send_json(self, content: Any) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._answer(status, {"X-Error-Code": code, "X-Error-Message": "refused", **(headers or {})})

    def _answer(self, status: int, headers: dict[str, str], content: bytes = b"", cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut


def etag(file: Path) -> str:
    """What a file's content is known by."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def entry(folder: Path, path: str) -> dict[str, Any]:
    """What a tree says of a file or folder."""
    file = folder / path
    if file.is_dir():
        return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
    found = {"type": "file", "path": path, "oid": etag(file)[:40], "size": file.stat().st_size}
    large = {"lfs": {"oid": etag(file), "size": file.stat().st_size, "pointerSize": 134}}
    return found | (large if file.suffix in LARGE else {})
