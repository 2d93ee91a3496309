"""A tiny random model in a live server, over real sockets. Fixtures: conftest.py imports them."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
import pytest
from tiny import make_model, texts, train_tokenizer

from xmodel.inference.batch import Batch
from xmodel.inference.engine import Engine
from xmodel.inference.sampling import Sampling
from xmodel.inference.subjects import Subject
from xmodel.inference.text import encode_prompt
from xmodel.serve.app import Limits, Service
from xmodel.serve.server import bind, serve, url

CONTEXT = 256
ROWS = QUEUE = 3


class Live(NamedTuple):
    """A server that is running."""

    address: str
    service: Service
    http: httpx.Client

    @property
    def engine(self) -> Engine:
        return self.service.engine

    def ask(self, path: str = "completions", **fields: Any) -> httpx.Response:
        """POST to /v1/PATH."""
        return self.http.post(f"/v1/{path}", json=fields)

    def idle(self) -> bool:
        """Whether no request has a row or waits for one, in time."""
        return eventually(lambda: self.engine.stats()[:2] == (0, 0))


def eventually(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether something becomes true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@contextmanager
def live_server(subject: Subject, engine: Engine, **limits: Any) -> Iterator[Live]:
    """A server in a thread, started and stopped as `xmodel serve` does."""
    service = Service(subject, engine, limits=Limits(**limits))
    listener = bind("127.0.0.1", 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)  # so that a reader that stops is soon felt
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        stop = asyncio.Event()
        started.append((asyncio.get_running_loop(), stop))
        await serve(service, listener, drain=0, stop=stop)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    address = url(listener)
    with httpx.Client(base_url=address, timeout=30) as http:

        def answers() -> bool:
            try:
                return http.get("/health").status_code in (200, 503)
            except httpx.TransportError:
                return False

        assert eventually(answers)
        try:
            yield Live(address, service, http)
        finally:
            loop, stop = started[0]
            service.engine = Ended(engine)  # several servers share one engine, which goes on
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            listener.close()


class Ended:
    """An engine that is not closed with its server."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self, drain: float | None = None) -> None:
        """Leave it to those who still use it."""


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    tokenizer = train_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    model = make_model(tokenizer.vocab_size, context=CONTEXT)
    return Subject(model, tokenizer, True, "tiny", None, {"parameters": 12345, "dtype": "float32", "device": "cpu"})


@pytest.fixture(scope="module")
def engine(subject: Subject) -> Iterator[Engine]:
    with Engine(subject, rows=ROWS, queue=QUEUE) as engine:
        yield engine


@pytest.fixture(scope="module")
def live(subject: Subject, engine: Engine) -> Iterator[Live]:
    with live_server(subject, engine, max_body=100_000) as live:
        yield live


@pytest.fixture(scope="module")
def prompt(subject: Subject, engine: Engine) -> str:
    """One whose greedy answer goes on to the end of the context: a random model may end its text soon."""
    for text in texts()[::7]:
        beginning = text[:12]
        *_, last = engine.stream(encode_prompt(subject.tokenizer, beginning, subject.bos), Sampling(CONTEXT))
        if last.finish == "length":
            return beginning
    raise AssertionError("no prompt with a long answer")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that take a while, 50 ms a token: a test that fills the context has more than ten seconds for the rest."""
    step = Batch.step

    def slowed(batch: Batch[Any]) -> Any:
        time.sleep(0.05)
        return step(batch)

    monkeypatch.setattr(Batch, "step", slowed)
