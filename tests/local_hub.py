"""
A Hub of its own for the tests: the part of the Hub's HTTP interface that pushing and loading need, in memory, on loopback.

    with LocalHub(token="hf_secret") as hub, hub.connected(folder):       # huggingface_hub, transformers, datasets in this process
        model.push_to_hub("org/name")
        hub.files("org/name")                                             # {"config.json": b"...", ...}
    subprocess.run(..., env={**os.environ, **hub.environment(folder)})    # the same for another process
    hub.fail("PUT", "/lfs/", "cut")                                       # the next upload of a large file loses its connection

Model and dataset repositories, branches, tags, commits of plain and of LFS files, pull requests, range requests. Not spoken:
Xet (its answers say so), pages of listings, multi-part uploads.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = ("*.safetensors", "*.parquet", "*.arrow", "*.tar", "*.mp4", "*.bin", "*.pt", "*.npy", "*.zip")  # go through LFS
PREFIXES = {"models": "", "datasets": "datasets/"}


class Refusal(Exception):
    """An answer that is an error: status, message, and the Hub's code for it where there is one."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class File:
    """One file of a commit."""

    data: bytes
    large: bool

    @property
    def oid(self) -> str:
        """As git names a file's content; for a large file git holds a pointer to the content instead."""
        held = b"oid sha256:" + self.sha256.encode() if self.large else self.data
        return hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass
class Commit:
    """A state of a repository: all its files."""

    files: dict[str, File]
    parent: str | None
    title: str
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"))


@dataclass
class Repository:
    """Commits by their hash, and what names them."""

    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, commit: Commit, branch: str) -> str:
        content = [commit.parent, commit.title, len(self.commits), sorted((p, f.oid) for p, f in commit.files.items())]
        sha = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.commits[sha] = commit
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str:
        name = unquote(revision).removeprefix("refs/heads/")
        sha = self.branches.get(name) or self.tags.get(name) or name
        if sha not in self.commits:
            raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return sha


class LocalHub:
    """The server; `url` and `token` are what a client needs.

    Args:
        token: what writing and `whoami` require, and reading of private repositories.
        user: whose token it is.

    `requests` lists (method, path, status) of everything that was asked, status 0 where no answer was given; `fail` prepares
    failures.
    """

    def __init__(self, token: str = "hf_of_the_tests", user: str = "tester"):
        self.token, self.user = token, user
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.uploads: dict[str, bytes] = {}  # large files by SHA-256, perhaps not part of a commit yet
        self.requests: list[tuple[str, str, int]] = []
        self.lock = threading.RLock()
        self._failures: list[tuple[str, str, int | str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()

    # ------------------------------------------------------------------------------------------------ for the test

    def environment(self, home: Path | str) -> dict[str, str]:
        """Variables for a client process: this server, `home` for its caches."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }

    @contextlib.contextmanager
    def connected(self, home: Path | str) -> Iterator[None]:
        """Makes this process a client. The libraries read their environment once, on import: so what they read is replaced."""
        import datasets.config
        import huggingface_hub.constants
        import huggingface_hub.hf_api
        import transformers.dynamic_module_utils
        import transformers.utils.hub
        from huggingface_hub import HfFileSystem

        home = Path(home)
        with contextlib.ExitStack() as stack:
            patch = lambda owner, **values: stack.enter_context(mock.patch.multiple(owner, **values))  # noqa: E731
            stack.enter_context(mock.patch.dict("os.environ", self.environment(home)))
            patch(
                huggingface_hub.constants,
                ENDPOINT=self.url,
                HUGGINGFACE_CO_URL_TEMPLATE=self.url + "/{repo_id}/resolve/{revision}/{filename}",
                HF_HUB_OFFLINE=False,
                HF_HUB_DISABLE_XET=True,
                HF_HUB_CACHE=str(home / "hub"),
            )
            patch(huggingface_hub.hf_api.api, endpoint=self.url)
            patch(transformers.utils.hub, _hf_api=None)  # made once, with the address of then
            patch(transformers.dynamic_module_utils, HF_MODULES_CACHE=str(home / "modules"))
            patch(
                datasets.config,
                HF_ENDPOINT=self.url,
                HUB_DATASETS_URL=self.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
                HF_HUB_OFFLINE=False,
                HF_DATASETS_OFFLINE=False,
                HF_DATASETS_CACHE=home / "datasets",
            )
            HfFileSystem.clear_instance_cache()  # file systems are kept by their arguments, and would know another server
            yield
            HfFileSystem.clear_instance_cache()

    def fail(self, method: str, path: str, how: int | str = 500, times: int = 1) -> None:
        """The next `times` requests with `method` whose path contains `path` fail: with a status, or with "cut", a lost
        connection, in the middle of the content where there is some.
        """
        self._failures += [(method, path, how)] * times

    def mend(self) -> None:
        """No request fails any more."""
        self._failures.clear()

    def files(self, repo_id: str, kind: str = "models", revision: str = "main") -> dict[str, bytes]:
        """The files of a repository by their paths."""
        repository = self.repositories[kind, repo_id]
        return {path: file.data for path, file in repository.commits[repository.resolve(revision)].files.items()}

    def titles(self, repo_id: str, kind: str = "models", revision: str = "main") -> list[str]:
        """What the commits of a branch say of themselves, the newest first."""
        repository, titles = self.repositories[kind, repo_id], []
        sha = repository.resolve(revision)
        while sha:
            titles.append(repository.commits[sha].title)
            sha = repository.commits[sha].parent
        return titles

    # ------------------------------------------------------------------------------------------------ for the server

    def failure(self, method: str, path: str) -> int | str | None:
        with self.lock:
            for failure in self._failures:
                if failure[0] == method and failure[1] in path:
                    self._failures.remove(failure)
                    return failure[2]
        return None

    def repository(self, kind: str, repo_id: str, authorised: bool) -> Repository:
        repository = self.repositories.get((kind, repo_id))
        if repository is None or (repository.private and not authorised):
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return repository

    def commit(self, repository: Repository, revision: str, lines: list[dict], pull_request: bool) -> dict:
        """All of the lines, or nothing."""
        with self.lock:
            branch = unquote(revision).removeprefix("refs/heads/")
            parent = repository.resolve(branch)
            if not pull_request and branch not in repository.branches:
                raise Refusal(400, "A commit needs a branch")
            files, header = dict(repository.commits[parent].files), {}
            for line in lines:
                key, value = line["key"], line["value"]
                if key == "header":
                    header = value
                    if value.get("parentCommit") not in (None, parent):
                        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
                elif key == "file":
                    content = value["content"]
                    data = base64.b64decode(content) if value.get("encoding") == "base64" else content.encode()
                    files[value["path"]] = File(data, large=False)
                elif key == "lfsFile":
                    if value["oid"] not in self.uploads:
                        raise Refusal(400, f"LFS pointer to a file that was not uploaded: {value['path']}")
                    files[value["path"]] = File(self.uploads[value["oid"]], large=True)
                elif key == "deletedFile":
                    files.pop(value["path"], None)
                elif key == "deletedFolder":
                    folder = value["path"].rstrip("/") + "/"
                    files = {path: file for path, file in files.items() if not path.startswith(folder)}
                else:
                    raise Refusal(400, f"unknown operation {key}")
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches) if pull_request else None
            target = f"refs/pr/{number}" if pull_request else branch
            sha = repository.add(Commit(files, parent, header.get("summary", "")), target)
            return {"sha": sha, "number": number}


def _front_matter(text: str) -> dict:
    """The metadata at the head of a card; YAML errors are the caller's."""
    found = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---", text, re.DOTALL)
    return (yaml.safe_load(found.group(1)) if found else None) or {}


def card_errors(content: str) -> list[str]:
    """What is wrong with the metadata of a model card, by the rules that the Hub documents for `model-index`."""
    try:
        metadata = _front_matter(content)
    except yaml.YAMLError as error:
        return [str(error)]
    errors = []
    for model in metadata.get("model-index") or []:
        if not model.get("name") or not isinstance(model.get("results"), list):
            errors.append('"model-index" entries need "name" and "results"')
            continue
        for result in model["results"]:
            if not (result.get("task") or {}).get("type"):
                errors.append('"task.type" is required')
            if not all((result.get("dataset") or {}).get(name) for name in ("type", "name")):
                errors.append('"dataset" needs "type" and "name"')
            if not result.get("metrics") or any("type" not in m or "value" not in m for m in result["metrics"]):
                errors.append('"metrics" need "type" and "value"')
    return errors


class _Handler(BaseHTTPRequestHandler):
    """One connection. `ROUTES`, below, leads from method and path to the answer."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    @property
    def hub(self) -> LocalHub:
        return self.server.hub

    @property
    def authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def body(self) -> bytes:
        self._body_read = True
        if (self.headers.get("Transfer-Encoding") or "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self) -> None:
        address = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(address.query).items()}
        self._body_read = self._cut = False
        try:
            failure = self.hub.failure(self.command, unquote(address.path))
            if isinstance(failure, int):
                raise Refusal(failure, "a failure that the test asked for")
            self._cut = failure == "cut"
            if self._cut and self.command not in ("GET", "HEAD"):
                self.note(0)
                return self.hang_up()
            for method, pattern, route in ROUTES:
                found = re.fullmatch(pattern, address.path)
                if found and (method == self.command or (method, self.command) == ("GET", "HEAD")):
                    return route(self, **{name: unquote(value) for name, value in found.groupdict(default="").items()})
            raise Refusal(404, f"no such route: {self.command} {address.path}")
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self.send({"error": refusal.message}, refusal.status, headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def note(self, status: int) -> None:
        """Before the answer goes out: who has it finds the request in the list."""
        self.hub.requests.append((self.command, unquote(urlsplit(self.path).path), status))

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, value=None, status: int = 200, headers: dict | None = None, data: bytes | None = None) -> None:
        if not self._body_read:
            self.body()  # or the next request on this connection would begin with it
        data = data if data is not None else json.dumps(value).encode()
        self.note(status)
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if self._cut else data)
        if self._cut:
            self.wfile.flush()
            self.hang_up()

    def send_file(self, data: bytes, headers: dict) -> None:
        """A file, or the part of it that a range request names."""
        status, total = 200, len(data)
        if found := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = found.groups()
            start = int(first) if first else max(0, total - int(last))
            stop = min(int(last) + 1, total) if first and last else total
            if start >= stop:
                raise Refusal(416, "Requested range not satisfiable")
            status, data = 206, data[start:stop]
            headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{total}"}
        self.send(None, status, {"Content-Type": "application/octet-stream", **headers}, data)

    def require_token(self) -> None:
        if not self.authorised:
            raise Refusal(401, "Invalid username or password.")

    def open(self, kind: str, repo: str, write: bool = False) -> Repository:
        if write:
            self.require_token()
        return self.hub.repository(kind, repo, self.authorised)

    # ------------------------------------------------------------------------------------------------ routes

    def whoami(self) -> None:
        self.require_token()
        token = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}}
        self.send({"type": "user", "name": self.hub.user, "fullname": self.hub.user, "orgs": [], "auth": token})

    def create(self) -> None:
        self.require_token()
        asked = json.loads(self.body())
        kind, repo = f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        url = f"{self.hub.url}/{PREFIXES[kind]}{repo}"
        with self.hub.lock:
            if (kind, repo) in self.hub.repositories:
                return self.send({"error": "You already created this repo", "url": url}, 409)
            repository = Repository(bool(asked.get("private")) or asked.get("visibility") == "private")
            repository.add(Commit({}, None, "initial commit"), "main")
            self.hub.repositories[kind, repo] = repository
        self.send({"url": url, "name": repo, "id": repo})

    def delete(self) -> None:
        self.require_token()
        asked = json.loads(self.body())
        key = f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        if self.hub.repositories.pop(key, None) is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        self.send({})

    def validate_card(self) -> None:
        errors = card_errors(json.loads(self.body())["content"])
        self.send({"errors": [{"message": text} for text in errors], "warnings": []}, 400 if errors else 200)

    def listing(self, kind: str) -> None:
        repos = [name for of_kind, name in sorted(self.hub.repositories) if of_kind == kind]
        wanted = [name for name in repos if name.startswith(self.query.get("author", ""))]
        self.send([{"id": name, "private": self.hub.repositories[kind, name].private} for name in wanted])

    def information(self, kind: str, repo: str, revision: str = "main") -> None:
        repository = self.open(kind, repo)
        sha = repository.resolve(revision or "main")
        commit = repository.commits[sha]
        card = {}
        if "README.md" in commit.files:
            with contextlib.suppress(yaml.YAMLError):
                card = _front_matter(commit.files["README.md"].data.decode())
        siblings = [{"rfilename": path, "size": len(file.data)} for path, file in sorted(commit.files.items())]
        about = {"id": repo, "modelId": repo, "author": repo.split("/")[0], "sha": sha, "lastModified": commit.date}
        about |= {"private": repository.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
        about |= {"tags": card.get("tags") or [], "cardData": card, "siblings": siblings}
        self.send(about | {name: card.get(name) for name in ("pipeline_tag", "library_name", "model-index")})

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        repository = self.open(kind, repo, write=True)
        files = repository.commits[repository.resolve(revision)].files
        answers = []
        for asked in json.loads(self.body())["files"]:
            large = asked["size"] > 1 << 20 or any(fnmatch(asked["path"], pattern) for pattern in LARGE)
            held = files.get(asked["path"])
            there = held and (held.sha256 if held.large else held.oid)
            mode = "lfs" if large else "regular"
            answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": there})
        self.send({"files": answers})

    def upload_plan(self, kind: str, repo: str) -> None:
        self.open({"datasets/": "datasets"}.get(kind, "models"), repo, write=True)
        objects = []
        for asked in json.loads(self.body())["objects"]:
            plan = {"oid": asked["oid"], "size": asked["size"], "authenticated": True}
            if asked["oid"] not in self.hub.uploads:
                plan["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}", "header": {}},
                    "verify": {"href": f"{self.hub.url}/verify", "header": {}},
                }
            objects.append(plan)
        self.send({"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def upload(self, oid: str) -> None:
        data = self.body()
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refusal(400, "The content does not match its oid")
        self.hub.uploads[oid] = data
        self.send({})

    def verify(self) -> None:
        asked = json.loads(self.body())
        if len(self.hub.uploads.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(422, "The size differs")
        self.send({})

    def commit(self, kind: str, repo: str, revision: str) -> None:
        repository = self.open(kind, repo, write=True)
        lines = [json.loads(line) for line in self.body().splitlines() if line.strip()]
        done = self.hub.commit(repository, revision, lines, self.query.get("create_pr") == "1")
        url = f"{self.hub.url}/{PREFIXES[kind]}{repo}"
        answer = {"success": True, "commitOid": done["sha"], "commitUrl": f"{url}/commit/{done['sha']}"}
        if done["number"]:
            answer["pullRequestUrl"] = f"{url}/discussions/{done['number']}"
        self.send(answer)

    def tree(self, kind: str, repo: str, revision: str, folder: str) -> None:
        repository = self.open(kind, repo)
        sha = repository.resolve(revision)
        start = f"{folder.strip('/')}/" if folder.strip("/") else ""
        below = {p: f for p, f in sorted(repository.commits[sha].files.items()) if p.startswith(start)}
        if start and not below:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        entries = {}
        for path, file in below.items():
            parts = path[len(start) :].split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                name = start + "/".join(parts[:depth])
                entries[name] = _folder_entry(name)
            if recursive or len(parts) == 1:
                entries[path] = self.file_entry(path, file, sha, repository.commits[sha])
        self.send(list(entries.values()))

    def paths_information(self, kind: str, repo: str, revision: str) -> None:
        repository = self.open(kind, repo)
        sha = repository.resolve(revision)
        files = repository.commits[sha].files
        json_body, body = "json" in self.headers.get("Content-Type", ""), self.body()
        asked = json.loads(body)["paths"] if json_body else parse_qs(body.decode())["paths"]
        entries = []
        for path in (path.strip("/") for path in asked):
            if path in files:
                entries.append(self.file_entry(path, files[path], sha, repository.commits[sha]))
            elif any(name.startswith(f"{path}/") for name in files):
                entries.append(_folder_entry(path))
        self.send(entries)

    def file_entry(self, path: str, file: File, sha: str, commit: Commit) -> dict:
        entry = {"type": "file", "path": path, "size": len(file.data), "oid": file.oid}
        if file.large:
            entry["lfs"] = {"oid": file.sha256, "size": len(file.data), "pointerSize": 130}
        if self.query.get("expand", "").lower() in ("true", "1"):
            entry["lastCommit"] = {"id": sha, "title": commit.title, "date": commit.date}
        return entry

    def refs(self, kind: str, repo: str) -> None:
        repository = self.open(kind, repo)
        branches = {name: sha for name, sha in repository.branches.items() if not name.startswith("refs/pr/")}
        requests = {name: sha for name, sha in repository.branches.items() if name.startswith("refs/pr/")}

        def listed(names: dict[str, str], prefix: str) -> list[dict]:
            return [{"name": name, "ref": prefix + name, "targetCommit": sha} for name, sha in names.items()]

        found = {"branches": listed(branches, "refs/heads/"), "tags": listed(repository.tags, "refs/tags/")}
        self.send(found | {"converts": [], "pullRequests": listed(requests, "")})

    def commits(self, kind: str, repo: str, revision: str) -> None:
        repository, listed = self.open(kind, repo), []
        sha = repository.resolve(revision)
        while sha:
            commit = repository.commits[sha]
            listed.append({"id": sha, "title": commit.title, "message": "", "date": commit.date, "authors": []})
            sha = commit.parent
        self.send(listed)

    def branch(self, kind: str, repo: str, name: str) -> None:
        repository = self.open(kind, repo, write=True)
        start = json.loads(self.body() or b"{}").get("startingPoint", "main")
        self.name_commit(repository.branches, name, repository.resolve(start))

    def tag(self, kind: str, repo: str, revision: str) -> None:
        repository = self.open(kind, repo, write=True)
        self.name_commit(repository.tags, json.loads(self.body())["tag"], repository.resolve(revision))

    def name_commit(self, names: dict[str, str], name: str, sha: str) -> None:
        if name in names:
            raise Refusal(409, f"Reference already exists: {name}")
        names[name] = sha
        self.send({})

    def resolve(self, kind: str, repo: str, revision: str, path: str) -> None:
        repository = self.open({"datasets/": "datasets"}.get(kind, "models"), repo)
        sha = repository.resolve(revision)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        file = repository.commits[sha].files.get(path)
        if file is None:
            missing = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self.send({"error": "Entry not found"}, 404, headers | missing)
        # The public Hub redirects large files to another host. A client follows a redirect to the same host by itself and
        # would then miss X-Repo-Commit, so they are served here.
        name = file.sha256 if file.large else file.oid
        headers["ETag"] = f'"{name}"'
        if file.large:
            headers |= {"X-Linked-ETag": f'"{name}"', "X-Linked-Size": str(len(file.data))}
        self.send_file(file.data, headers)


def _folder_entry(path: str) -> dict:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


_API = r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("DELETE", "/api/repos/delete", _Handler.delete),
    ("POST", "/api/validate-yaml", _Handler.validate_card),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", _Handler.upload),
    ("POST", "/verify", _Handler.verify),
    ("POST", r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.upload_plan),
    ("GET", "/api/(?P<kind>models|datasets)", _Handler.listing),
    ("POST", _API + "/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", _API + "/commit/(?P<revision>.+)", _Handler.commit),
    ("POST", _API + "/paths-info/(?P<revision>.+)", _Handler.paths_information),
    ("POST", _API + "/branch/(?P<name>.+)", _Handler.branch),
    ("POST", _API + "/tag/(?P<revision>.+)", _Handler.tag),
    ("GET", _API + "/tree/(?P<revision>[^/]+)/?(?P<folder>.*)", _Handler.tree),
    ("GET", _API + "/refs", _Handler.refs),
    ("GET", _API + "/commits/(?P<revision>.+)", _Handler.commits),
    ("GET", _API + "(?:/revision/(?P<revision>.+))?", _Handler.information),
    (
        "GET",
        r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        _Handler.resolve,
    ),
]
