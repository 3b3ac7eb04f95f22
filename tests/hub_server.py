"""
A small Hub on this machine: as much of its protocol as pushing and loading a model takes. Repositories, branches and
commits live in memory. What goes wrong on real networks can be asked for.
"""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "loopback" * 4
LFS_SUFFIXES = (".safetensors", ".png")


@dataclass
class Entry:
    """A file in a commit."""

    content: bytes
    is_lfs: bool

    @property
    def etag(self) -> str:
        if self.is_lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repository:
    """Commits by their ids, and the branches that name them."""

    private: bool = False
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, files: dict[str, Entry], message: str) -> str:
        parent = self.branches.get(branch, "")
        names = "".join(f"{name}:{entry.etag};" for name, entry in sorted(files.items()))
        oid = hashlib.sha1(f"{parent}|{message}|{names}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        return oid

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Faults:
    """What goes wrong, by the number of times that it still does."""

    cut_uploads_after: int | None = None  # bytes
    cut_uploads: int = 0
    damage_uploads: int = 0  # one bit of what arrives
    truncate_downloads: int = 0
    damage_downloads: int = 0

    def takes(self, name: str) -> bool:
        left = getattr(self, name)
        setattr(self, name, max(0, left - 1))
        return left > 0


class HubServer(ThreadingHTTPServer):
    """The server; its `requests` are method and path of each, in order, and `uploads` the hashes that were sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults = Faults()
        self.requests: list[str] = []
        self.uploads: list[str] = []
        self.tokens_at_storage = 0
        self.lock = threading.RLock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        """What a branch holds."""
        repository = self.repositories[repo_id]
        return {name: entry.content for name, entry in repository.commits[repository.branches[branch]].items()}

    def handle_error(self, request, client_address):
        """Clients that hang up, and connections that are cut on purpose, are no news."""


@contextmanager
def running_hub():
    """A server that runs as long as the context is open."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._route("GET")

    def do_HEAD(self):
        self._route("HEAD")

    def do_POST(self):
        self._route("POST")

    def do_PUT(self):
        self._route("PUT")

    def _route(self, method: str) -> None:
        parts = urlsplit(self.path)
        self.server.requests.append(f"{method} {parts.path}")
        path = [unquote(part) for part in parts.path.strip("/").split("/")]
        if method == "PUT" and path[:1] == ["storage"]:
            return self._receive(path[1])
        body = self._body() if method == "POST" else b""
        with self.server.lock:
            if path[:1] == ["storage"]:
                self.server.tokens_at_storage += "Authorization" in self.headers
                return self._send_file(self.server.blobs[path[1]], {"ETag": f'"{path[1]}"'})
            if path == ["lfs", "verify"]:
                return self._verify(json.loads(body))
            if path == ["api", "repos", "create"]:
                return self._create(json.loads(body))
            if path == ["api", "validate-yaml"]:
                return self._json({"errors": [], "warnings": []})
            if path[:2] == ["api", "models"]:
                return self._api("/".join(path[2:4]), path[4:], body, parse_qs(parts.query))
            if len(path) > 4 and path[2] == "resolve":
                return self._resolve("/".join(path[:2]), path[3], "/".join(path[4:]))
            if parts.path.endswith(".git/info/lfs/objects/batch"):
                return self._batch(json.loads(body))
        return self._json({"error": "not part of this Hub"}, 404)

    # Requests and answers

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, value, status: int = 200, **headers: str) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_file(self, content: bytes, headers: dict[str, str]) -> None:
        is_weights = self.path.startswith("/storage")
        if self.command == "GET" and is_weights and self.server.faults.takes("damage_downloads"):
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = 0
        if (wanted := self.headers.get("Range", "")).startswith("bytes="):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.command == "GET" and is_weights and self.server.faults.takes("truncate_downloads"):
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content[start : len(content) // 2])
            self.close_connection = True
            return
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[start:])

    def _failed(self, code: str, status: int = 404, **headers: str) -> None:
        self._json({"error": code}, status, **{"X-Error-Code": code, "X-Error-Message": code}, **headers)

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._json({"error": "Invalid username or password."}, 401)
        return False

    def _repository(self, repo_id: str) -> Repository | None:
        repository = self.server.repositories.get(repo_id)
        hidden = repository is not None and repository.private
        if repository is None or (hidden and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self._failed("RepoNotFound")
            return None
        return repository

    # What is asked for

    def _create(self, asked: dict) -> None:
        if not self._may_write():
            return None
        repo_id = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
        answer = {"url": f"{self.server.endpoint}/{repo_id}", "name": repo_id}
        if repo_id in self.server.repositories:
            return self._json({"error": "You already created this model repo", **answer}, 409)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.server.repositories[repo_id] = Repository(private)
        return self._json(answer)

    def _api(self, repo_id: str, rest: list[str], body: bytes, query: dict) -> None:
        if (repository := self._repository(repo_id)) is None:
            return None
        if not rest or rest[0] in ("revision", "tree", "refs", "paths-info"):
            return self._read(repository, repo_id, rest, body)
        if not self._may_write():
            return None
        if rest[0] == "preupload":
            files = [
                {"path": file["path"], "uploadMode": _mode(file["path"]), "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if rest[0] == "branch":
            if rest[1] in repository.branches:
                return self._json({"error": "Reference already exists"}, 409)
            repository.branches[rest[1]] = repository.branches["main"]
            return self._json({})
        if rest[0] == "commit":
            return self._commit(repository, repo_id, rest[1], body)
        return self._json({"error": "not part of this Hub"}, 404)

    def _read(self, repository: Repository, repo_id: str, rest: list[str], body: bytes) -> None:
        oid = repository.find(rest[1] if len(rest) > 1 else "main")
        if oid is None:
            return self._failed("RevisionNotFound")
        listed = [
            {"type": "file", "path": name, "size": len(entry.content), "oid": entry.etag}
            | ({"lfs": {"oid": entry.etag, "size": len(entry.content), "pointerSize": 130}} if entry.is_lfs else {})
            for name, entry in sorted(repository.commits[oid].items())
        ]
        if rest[:1] == ["tree"]:
            folder = "".join(f"{part}/" for part in rest[2:])
            inside = [file for file in listed if file["path"].startswith(folder)]
            return self._json(inside) if inside or not folder else self._failed("EntryNotFound")
        siblings = [{"rfilename": file["path"]} for file in listed]
        known = {"id": repo_id, "modelId": repo_id, "private": repository.private, "sha": oid, "tags": []}
        return self._json({**known, "siblings": siblings})

    def _commit(self, repository: Repository, repo_id: str, branch: str, body: bytes) -> None:
        if branch not in repository.branches:
            return self._failed("RevisionNotFound")
        files = dict(repository.commits[repository.branches[branch]])
        message = ""
        for line in filter(None, body.split(b"\n")):
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = Entry(base64.b64decode(value["content"]), is_lfs=False)
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.server.blobs:
                    return self._json({"error": f"LFS pointer to an object that is not there: {value['path']}"}, 400)
                files[value["path"]] = Entry(self.server.blobs[value["oid"]], is_lfs=True)
            elif item["key"] == "deletedFile":
                files.pop(value["path"], None)
        oid = repository.commit(branch, files, message)
        url = f"{self.server.endpoint}/{repo_id}/commit/{oid}"
        return self._json({"success": True, "commitOid": oid, "commitUrl": url})

    def _batch(self, asked: dict) -> None:
        if not self._may_write():
            return
        objects = []
        for entry in asked["objects"]:
            actions = {
                "upload": {"href": f"{self.server.endpoint}/storage/{entry['oid']}"},
                "verify": {"href": f"{self.server.endpoint}/lfs/verify"},
            }
            objects.append({**entry} if entry["oid"] in self.server.blobs else {**entry, "actions": actions})
        self._json({"transfer": "basic", "objects": objects})

    def _receive(self, oid: str) -> None:
        faults = self.server.faults
        if faults.cut_uploads_after is not None and faults.takes("cut_uploads"):
            self.rfile.read(faults.cut_uploads_after)
            self.close_connection = True
            self.connection.close()
            return
        content = self._body()
        if faults.takes("damage_uploads"):
            content = content[:-1] + bytes([content[-1] ^ 1])
        with self.server.lock:
            self.server.uploads.append(oid)
            if hashlib.sha256(content).hexdigest() == oid:
                self.server.blobs[oid] = content
        self._answer(200, b"", {})

    def _verify(self, asked: dict) -> None:
        found = self.server.blobs.get(asked["oid"])
        if found is None or len(found) != asked["size"]:
            return self._json({"error": "The object that was uploaded has another hash or size."}, 422)
        return self._json({})

    def _resolve(self, repo_id: str, revision: str, name: str) -> None:
        if (repository := self._repository(repo_id)) is None:
            return None
        if (oid := repository.find(revision)) is None:
            return self._failed("RevisionNotFound")
        commit = {"X-Repo-Commit": oid}
        if (entry := repository.commits[oid].get(name)) is None:
            return self._failed("EntryNotFound", **commit)
        if not entry.is_lfs:
            return self._send_file(entry.content, {**commit, "ETag": f'"{entry.etag}"'})
        linked = {"X-Linked-ETag": f'"{entry.etag}"', "X-Linked-Size": str(len(entry.content))}
        # Another host, as that of the Hub's storage: it is not to be told the token.
        location = f"http://localhost:{self.server.server_port}/storage/{entry.etag}"
        return self._answer(302, b"", {**commit, **linked, "Location": location})


def _mode(path: str) -> str:
    return "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
