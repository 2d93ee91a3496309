"""A Hugging Face hub on this machine's loopback: what its real clients ask for, for small repositories in memory.

Paths are those that `huggingface_hub` and `datasets` call (found out with huggingface_hub 2.4 and datasets 5.2). A client
is pointed at it by `HF_ENDPOINT`, in a process of its own: both libraries read that when they are imported.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

COMMIT = "c0ffee" * 6 + "c0de"
TOKEN = "hf_of_this_test"
LARGE = (".safetensors", ".gguf", ".model")  # sent beside the commit, as the hub has it for large files
Files = dict[str, bytes]
# Several commands in one process of their own: their exit codes, messages and output. Nothing waits between tries.
# `endpoint URL` and `token TEXT` are no commands: they change what the next ones ask, and as whom.
COMMANDS = """
import json, os, sys, time
time.sleep = lambda seconds: None
import huggingface_hub.constants as constants
constants.HF_HUB_ETAG_TIMEOUT = constants.HF_HUB_DOWNLOAD_TIMEOUT = 0.1
from click.testing import CliRunner
from xmodel.cli.main import cli
found = []
for arguments in json.load(sys.stdin):
    if arguments[0] == "endpoint":
        constants.ENDPOINT = arguments[1]
        continue
    if arguments[0] == "token":
        os.environ["HF_TOKEN"] = arguments[1]
        continue
    result = CliRunner().invoke(cli, arguments)
    error = result.exception
    known = {"code": getattr(error, "exit_code", result.exit_code), "message": str(error or ""), "out": result.stdout}
    found.append(known | {"kind": type(error).__name__, "err": result.stderr})
print(json.dumps(found))
"""


@dataclass
class Hub:
    """Repositories by "models/OWNER/NAME" or "datasets/OWNER/NAME", and what was asked of them."""

    repositories: dict[str, Files]
    private: set[str] = field(default_factory=set)  # those that ask for the token
    faults: dict[str, float] = field(default_factory=dict)  # part of a path -> a status from 400 on, or seconds to wait
    url: str = ""
    asked: list[str] = field(default_factory=list)
    made: list[dict[str, Any]] = field(default_factory=list)  # bodies of `create_repo`
    stored: dict[str, bytes] = field(default_factory=dict)  # large files by their SHA-256

    def environment(self, home: Path, token: str = "") -> dict[str, str]:
        """Variables for a client's process."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }

    async def serve(self, request: Request) -> Response:
        return await run_in_threadpool(self.answer, request, await request.body())

    def answer(self, request: Request, body: bytes) -> Response:
        path = request.url.path
        self.asked.append(f"{request.method} {path}")
        for part, fault in self.faults.items():
            if part in path and fault >= 400:
                return PlainTextResponse("broken", int(fault))
            time.sleep(fault if part in path else 0)
        if path == "/api/repos/create":
            return self._create(request, json.loads(body))
        if path == "/api/validate-yaml":
            return JSONResponse({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/large/(\w+)", path):
            self.stored[found[1]] = body
            return Response()
        if found := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            wanted = json.loads(body)["objects"]
            uploads = [each | {"actions": {"upload": {"href": f"{self.url}/large/{each['oid']}"}}} for each in wanted]
            return JSONResponse({"transfer": "basic", "objects": uploads})
        found = re.fullmatch(r"/api/(models|datasets)/([\w.-]+/[\w.-]+?)(?:/([a-z-]+)(?:/(.*))?)?", path)
        if found:
            return self._api(request, f"{found[1]}/{found[2]}", found[3] or "revision", found[4] or "", body)
        found = re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        if found:
            return self._file(request, f"{(found[1] or 'models/')}{found[2]}", found[4])
        return PlainTextResponse("nothing here", 404)

    def _refused(self, request: Request, repository: str) -> Response | None:
        """As the hub answers for a repository that is not there, or that a caller without the token may not see."""
        known = request.headers.get("authorization") == f"Bearer {TOKEN}"
        if repository in self.repositories and (known or repository not in self.private):
            return None
        code = {} if repository in self.private else {"X-Error-Code": "RepoNotFound"}
        said = "Invalid username or password." if not known else "Repository not found"
        return JSONResponse({"error": said}, 404 if known else 401, {"X-Error-Message": said, **code})

    def _api(self, request: Request, repository: str, what: str, rest: str, body: bytes) -> Response:
        if refused := self._refused(request, repository):
            return refused
        files = self.repositories[repository]
        if what == "revision":
            names = [{"rfilename": name} for name in files]
            about = {"id": repository.partition("/")[2], "sha": COMMIT, "siblings": names, "private": False, "tags": []}
            return JSONResponse(about | {"downloads": 0, "likes": 0})
        if what == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            return JSONResponse([entry(name, files[name]) for name in wanted if name in files])
        if what == "tree":
            folder = f"{rest.partition('/')[2]}/".lstrip("/")
            inside = {name: data for name, data in files.items() if name.startswith(folder)}
            if not inside:
                return JSONResponse({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            if request.query_params.get("recursive", "").lower() in ("true", "1"):
                return JSONResponse([entry(name, data) for name, data in inside.items()])
            own = [entry(name, data) for name, data in inside.items() if "/" not in name[len(folder) :]]
            below = {folder + name[len(folder) :].partition("/")[0] for name in inside if "/" in name[len(folder) :]}
            return JSONResponse([*own, *({"type": "directory", "path": name, "oid": COMMIT} for name in sorted(below))])
        if what == "preupload":
            modes = [
                {"path": each["path"], "uploadMode": "lfs" if each["path"].endswith(LARGE) else "regular"}
                | {"shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return JSONResponse({"files": modes})
        if what == "commit":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.stored[value["oid"]]
            name = repository.partition("/")[2]
            return JSONResponse(
                {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.url}/{name}/commit/{COMMIT}"}
            )
        return PlainTextResponse("nothing here", 404)

    def _file(self, request: Request, repository: str, path: str) -> Response:
        if refused := self._refused(request, repository):
            return refused
        if path not in self.repositories[repository]:
            return JSONResponse({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        data = self.repositories[repository][path]
        headers = {"ETag": f'"{digest(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if request.method == "HEAD":
            return Response(headers=headers | {"Content-Length": str(len(data))})
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", "")):
            first, last = int(part[1]), int(part[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return Response(data[first : last + 1], 206, headers)
        return Response(data, headers=headers)

    def _create(self, request: Request, body: dict[str, Any]) -> Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"error": "Invalid username or password."}, 401)
        if body.get("organization") not in (None, "me"):
            return JSONResponse({"error": "You don't have the rights to create a model there"}, 403)
        self.made.append(body)
        name = f"{body.get('organization', 'me')}/{body['name']}"
        self.repositories.setdefault(f"models/{name}", {})
        return JSONResponse({"url": f"{self.url}/{name}"})


def entry(name: str, data: bytes) -> dict[str, Any]:
    """A file as a listing has it."""
    return {"type": "file", "path": name, "size": len(data), "oid": digest(data)}


def digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@contextmanager
def fake_hub(repositories: dict[str, Files]) -> Iterator[Hub]:
    """A hub with these repositories, while the block lasts."""
    hub = Hub(dict(repositories))
    app = Starlette(routes=[Route("/{path:path}", hub.serve, methods=["GET", "HEAD", "POST", "PUT"])])
    listening = socket.create_server(("127.0.0.1", 0))
    hub.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


def commands(hub: Hub, home: Path, *calls: list[Any], token: str = "") -> list[dict[str, Any]]:
    """What commands of xmodel say to this hub: "code", "kind" and "message" of an error, "out" and "err"."""
    environment = os.environ | hub.environment(home, token)
    written = json.dumps([[str(part) for part in call] for call in calls])
    result = subprocess.run(
        [sys.executable, "-c", COMMANDS], env=environment, input=written, capture_output=True, text=True, timeout=200, check=False
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
