"""`xmodel serve` as a process: it starts, drains, and says in one line why it does not start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from command import xmodel
from tiny import make_model, train_tokenizer

from xmodel.errors import UserError
from xmodel.model.checkpoint_io import save_model

for extra in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(extra, reason="the extra `serve` is not installed")

from xmodel.serve.server import bind, listen  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, as an export is."""
    folder = tmp_path_factory.mktemp("served")
    train_tokenizer(folder)
    save_model(make_model(420, context=2048), folder)
    return folder


def test_sigterm_lets_answers_end(folder: Path) -> None:
    command = [sys.executable, "-m", "xmodel", "serve", folder, "--port", "0", "--name", "mine", "--drain", "60"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            assert process.stderr
            said = next(line for line in process.stderr if "http://" in line)
            log: list[str] = []
            reader = threading.Thread(target=lambda: log.extend(process.stderr or ()))
            reader.start()
            address = next(word for word in said.split() if word.startswith("http://"))
            assert "mine" in said
            with httpx.Client(base_url=address, timeout=60) as http, httpx.Client(base_url=address, timeout=5) as other:
                asked = {"prompt": "Mira", "max_tokens": 700, "stream": True, "temperature": 5, "seed": 1}
                asked |= {"stream_options": {"include_usage": True}, "n": 8}
                other.get("/health")  # its connection is there already
                with http.stream("POST", "/v1/completions", json=asked) as stream:
                    lines = (line for line in stream.iter_lines() if line)
                    next(lines)
                    process.send_signal(signal.SIGTERM)
                    assert process.poll() is None
                    codes = [other.post("/v1/completions", json={"prompt": "a"}).status_code for _ in range(20)]
                    assert codes[-1] == 503
                    assert other.get("/health").json()["status"] == "draining"
                    *_, counted, done = lines
                assert done == "data: [DONE]"
                assert json.loads(counted.removeprefix("data: "))["usage"]["completion_tokens"] > 400
            assert process.wait(20) == 0
            reader.join()
            assert any("shutting down: " in line for line in log), log  # one, or a refused one as well
            assert not any("Traceback" in line for line in log)
        finally:
            process.kill()


def test_a_second_signal_ends_it_at_once(folder: Path) -> None:
    command = [sys.executable, "-m", "xmodel", "serve", folder, "--port", "0", "--drain", "600"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            assert process.stderr
            said = next(line for line in process.stderr if "http://" in line)
            address = next(word for word in said.split() if word.startswith("http://"))
            asked = {"prompt": "Mira", "max_tokens": 2000, "stream": True, "temperature": 5, "n": 16}
            url = f"{address}/v1/completions"
            with httpx.stream("POST", url, json=asked, timeout=60) as stream:
                lines = stream.iter_lines()
                next(lines)
                process.send_signal(signal.SIGINT)
                next(line for line in process.stderr if "shutting down" in line)
                assert process.poll() is None
                process.send_signal(signal.SIGTERM)
                assert process.wait(10) == 128 + signal.SIGTERM
                with pytest.raises(httpx.RemoteProtocolError):  # it broke off
                    list(lines)
        finally:
            process.kill()


def test_two_servers_that_start_on_one_port() -> None:
    first = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    with first, bind("127.0.0.1", port) as second:  # the system lets both have it until one listens
        listen(first)
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use"):
            listen(second)


def test_what_does_not_start(folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        in_use = xmodel("serve", folder, "--port", port)
    nowhere = xmodel("serve", tmp_path / "nothing", "--port", 0)
    for result, why in ((in_use, f"port {port} of 127.0.0.1 is in use"), (nowhere, "no such folder")):
        assert result.returncode == 2
        assert why in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
