"""A small Hub on loopback that the real `huggingface_hub` client speaks with: repos, commits, objects, downloads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".parquet", ".arrow", ".png")


class Refused(Exception):
    """An answer that is an error, with the headers by which the client tells its kind."""

    def __init__(self, status: int, message: str, code: str | None = None, **content: Any):
        super().__init__(message)
        self.status, self.code, self.content = status, code, {"error": message, **content}


@dataclass
class Repo:
    """One repo: its commits as `{sha: {path: bytes}}`, and what `main`, branches and pull requests point to."""

    kind: str
    id: str
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, ref: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{self.kind} {self.id} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        return sha

    def sha(self, revision: str) -> str:
        sha = self.refs.get(revision, revision)
        if sha not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.sha(revision)]


class HubServer(ThreadingHTTPServer):
    """The Hub's memory, and the switches a test turns.

    Args:
        users (`dict[str, list[str]]`): for each accepted token the names under which it may write, its user first.
    """

    daemon_threads = True

    def __init__(self, users: dict[str, list[str]]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.users = users
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[str] = []  # "METHOD path", never a header
        self.cuts = 0  # how many uploads lose their connection half-way …
        self.cut_after = 0  # … once so many have got through
        self.got_through = 0
        self.lock = threading.RLock()
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def repo(self, id: str, kind: str = "model") -> Repo:
        return self.repos[kind, id]

    def uploads(self) -> int:
        """How many objects have been begun to be uploaded."""
        return sum(line.startswith("PUT ") for line in self.log)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone, or was cut off on purpose, is no news."""


@contextmanager
def running_hub(users: dict[str, list[str]]) -> Iterator[HubServer]:
    """A Hub that answers until the block ends."""
    server = HubServer(users)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def describe_file(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
    if is_lfs(path):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


def card_data(files: dict[str, bytes]) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---", files.get("README.md", b"").decode(), re.DOTALL)
    return yaml.safe_load(found[1]) if found else {}


class Handler(BaseHTTPRequestHandler):
    """One request. A route is a method called after its place in the address."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def do(self) -> None:
        url = urlsplit(self.path)
        self.parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.query = parse_qs(url.query)
        with self.server.lock:
            self.server.log.append(f"{self.command} {url.path}")
        try:
            if self.command == "PUT":
                self.store_object()
                return
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with self.server.lock:
                self.route()
        except Refused as refused:
            headers = {"X-Error-Message": refused.content["error"]}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self.answer(refused.content, refused.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr; `server.log` has it."""

    # Answers ---------------------------------------------------------------------------------------------------------

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # Who asks --------------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The names under which the caller may write; none when nobody has signed in."""
        header = self.headers.get("Authorization")
        if header is None:
            return []
        names = self.server.users.get(header.removeprefix("Bearer "))
        if names is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return names

    def find(self, kind: str, id: str, write: bool = False) -> Repo:
        names, owner = self.names(), id.split("/")[0]
        repo = self.server.repos.get((kind, id))
        if repo is None or (repo.private and owner not in names):
            raise Refused(404 if names else 401, "Repository not found", "RepoNotFound")
        if write and owner not in names:
            raise Refused(403, f"You have no right to write to {id}")
        return repo

    # Routes ----------------------------------------------------------------------------------------------------------

    def route(self) -> None:
        match self.parts:
            case ["api", "whoami-v2"]:
                self.whoami()
            case ["api", "validate-yaml"]:
                self.answer({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                self.create(json.loads(self.body))
            case ["api", ("models" | "datasets") as kinds, owner, name, *rest]:
                self.api(kinds.removesuffix("s"), f"{owner}/{name}", rest)
            case ["verify"]:
                self.answer({})
            case ["datasets", owner, name, *rest]:
                self.files("dataset", f"{owner}/{name}", rest)
            case [owner, name, *rest]:
                self.files("model", f"{owner}/{name}", rest)
            case _:
                raise Refused(404, "there is nothing here")

    def whoami(self) -> None:
        user, *others = self.names() or [None]
        if user is None:
            raise Refused(401, "Invalid username or password.")
        self.answer({"type": "user", "name": user, "orgs": [{"name": name} for name in others], "auth": {}})

    def create(self, asked: dict[str, Any]) -> None:
        names = self.names()
        owner = asked.get("organization") or (names or [""])[0]
        kind, id = asked.get("type") or "model", f"{owner}/{asked['name']}"
        url = f"{self.server.endpoint}/{'datasets/' * (kind == 'dataset')}{id}"
        if not names:
            raise Refused(401, "Invalid username or password.")
        if owner not in names:
            raise Refused(403, f"You don't have the rights to create a {kind} under the namespace {owner}")
        if (kind, id) in self.server.repos:
            raise Refused(409, f"You already created this {kind} repo", url=url)
        repo = Repo(kind, id, private=asked.get("visibility") == "private")
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.server.repos[kind, id] = repo
        self.answer({"url": url, "name": id, "id": id})

    def api(self, kind: str, id: str, rest: list[str]) -> None:
        match rest:
            case []:
                self.info(self.find(kind, id), "main")
            case ["revision", revision]:
                self.info(self.find(kind, id), revision)
            case ["refs"]:
                self.refs(self.find(kind, id))
            case ["tree", revision, *folder]:
                self.tree(self.find(kind, id), revision, "/".join(folder))
            case ["paths-info", revision]:
                self.paths_info(self.find(kind, id), revision)
            case ["branch", branch]:
                self.branch(self.find(kind, id, write=True), branch)
            case ["preupload", revision]:
                self.preupload(self.find(kind, id, write="create_pr" not in self.query), revision)
            case ["commit", revision]:
                self.commit(self.find(kind, id, write="create_pr" not in self.query), revision)
            case _:
                raise Refused(404, "there is nothing here")

    def info(self, repo: Repo, revision: str) -> None:
        sha = repo.sha(revision)
        files = repo.commits[sha]
        tags = card_data(files).get("tags", [])
        siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
        self.answer(
            {
                **{"_id": repo.id, "id": repo.id, "modelId": repo.id, "sha": sha, "private": repo.private},
                **{"siblings": siblings, "tags": tags, "cardData": card_data(files), "downloads": 0, "likes": 0},
            }
        )

    def refs(self, repo: Repo) -> None:
        listed: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        for name, sha in repo.refs.items():
            is_pull_request = name.startswith("refs/")
            ref = name if is_pull_request else f"refs/heads/{name}"
            listed["pullRequests" if is_pull_request else "branches"].append(
                {"name": name, "ref": ref, "targetCommit": sha}
            )
        self.answer(listed)

    def tree(self, repo: Repo, revision: str, folder: str) -> None:
        start = f"{folder}/" if folder else ""
        files = {path: content for path, content in repo.files(revision).items() if path.startswith(start)}
        if folder and not files:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        deep = self.query.get("recursive", ["false"])[0].lower() == "true"
        entries: dict[str, dict[str, Any]] = {}
        for path, content in files.items():
            above = path.removeprefix(start).split("/")[:-1]
            for depth in range(1, len(above) + 1 if deep else min(len(above), 1) + 1):
                name = start + "/".join(above[:depth])
                entries[name] = {"type": "directory", "path": name, "size": 0, "oid": blob_id(name.encode())}
            if deep or not above:
                entries[path] = describe_file(path, content)
        self.answer(list(entries.values()))

    def paths_info(self, repo: Repo, revision: str) -> None:
        files = repo.files(revision)
        if "json" in self.headers.get("Content-Type", ""):
            asked = json.loads(self.body)["paths"]
        else:
            asked = parse_qs(self.body.decode()).get("paths", [])
        found = [describe_file(path, files[path]) for path in asked if path in files]
        folders = [path for path in asked if any(name.startswith(f"{path}/") for name in files)]
        found += [{"type": "directory", "path": path, "oid": blob_id(path.encode())} for path in folders]
        self.answer(found)

    def branch(self, repo: Repo, branch: str) -> None:
        if branch in repo.refs:
            raise Refused(409, f"Reference already exists: {branch}")
        repo.refs[branch] = repo.refs["main"]
        self.answer({})

    # Uploads ---------------------------------------------------------------------------------------------------------

    def preupload(self, repo: Repo, revision: str) -> None:
        there = repo.files(revision)
        files = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            entry = {"path": path, "uploadMode": "lfs" if is_lfs(path) else "regular", "shouldIgnore": False}
            if path in there:
                entry["oid"] = describe_file(path, there[path]).get("lfs", {}).get("oid") or blob_id(there[path])
            files.append(entry)
        self.answer({"files": files})

    def lfs_batch(self, repo: Repo) -> None:
        objects = []
        for asked in json.loads(self.body)["objects"]:
            if asked["oid"] not in self.server.objects:
                href = f"{self.server.endpoint}/objects/{asked['oid']}"
                asked["actions"] = {"upload": {"href": href}, "verify": {"href": f"{self.server.endpoint}/verify"}}
            objects.append(asked)
        self.answer({"transfer": "basic", "objects": objects})

    def store_object(self) -> None:
        """Takes an object in, or cuts the line in the middle of it."""
        length = int(self.headers["Content-Length"])
        with self.server.lock:
            cut = self.server.cuts > 0 and self.server.got_through >= self.server.cut_after
            self.server.cuts -= cut
            self.server.got_through += not cut
        content = self.rfile.read(length // 2 if cut else length)
        if cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if hashlib.sha256(content).hexdigest() != self.parts[-1]:
            raise Refused(400, "the content is not what its name says")
        with self.server.lock:
            self.server.objects[self.parts[-1]] = content
        self.answer({})

    def commit(self, repo: Repo, revision: str) -> None:
        files = dict(repo.files(revision))
        for line in self.body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.server.objects:
                        raise Refused(400, f"the object of {value['path']} has not been uploaded")
                    files[value["path"]] = self.server.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        ref, url = revision, None
        if "create_pr" in self.query:
            number = sum(name.startswith("refs/pr/") for name in repo.refs) + 1
            ref, url = f"refs/pr/{number}", f"{self.server.endpoint}/{repo.id}/discussions/{number}"
        sha = repo.commit(ref, files)
        address = f"{self.server.endpoint}/{'datasets/' * (repo.kind == 'dataset')}{repo.id}/commit/{sha}"
        self.answer({"success": True, "commitOid": sha, "commitUrl": address, "pullRequestUrl": url})

    # Downloads -------------------------------------------------------------------------------------------------------

    def files(self, kind: str, id: str, rest: list[str]) -> None:
        match rest:
            case ["info", "lfs", "objects", "batch"] if id.endswith(".git"):
                self.lfs_batch(self.find(kind, id.removesuffix(".git")))
            case ["resolve", revision, *path]:
                self.resolve(self.find(kind, id), revision, "/".join(path))
            case _:
                raise Refused(404, "there is nothing here")

    def resolve(self, repo: Repo, revision: str, path: str) -> None:
        sha = repo.sha(revision)
        if path not in repo.commits[sha]:
            self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        content = repo.commits[sha][path]
        entry = describe_file(path, content)
        etag = entry.get("lfs", entry)["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        status = 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            status, whole = 206, len(content)
            content = content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{first + len(content) - 1}/{whole}"
        self.send(content, status, headers)
