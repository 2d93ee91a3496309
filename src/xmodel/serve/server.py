"""A service on a socket: starts, says how to call it, and ends without breaking an answer."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import time
from collections.abc import Iterator

import uvicorn

from xmodel.console import log
from xmodel.errors import UserError
from xmodel.serve.app import Service

BACKLOG = 2048  # clients that may connect before they are accepted; uvicorn's number
STALLED_SECONDS = 60  # after which a reader that takes nothing at all has left


def bind(host: str, port: int) -> socket.socket:
    """A socket on that address, so that a port in use is known before a model is loaded.

    Raises:
        UserError: the address is not this machine's, the port is in use or not allowed.
    """
    with _port_errors(host, port):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if stalled := getattr(socket, "TCP_USER_TIMEOUT", None):  # Linux; accepted connections inherit it
            listener.setsockopt(socket.IPPROTO_TCP, stalled, STALLED_SECONDS * 1000)
        listener.bind(address)
    return listener


def listen(listener: socket.socket) -> None:
    """Let clients connect.

    Raises:
        UserError: another server that was started at the same moment listens already: the system lets both bind.
    """
    with _port_errors(*listener.getsockname()[:2]):
        listener.listen(BACKLOG)


@contextlib.contextmanager
def _port_errors(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is in use; --port takes another, 0 any free one") from None
        raise UserError(f"{host}:{port} cannot be listened at: {error.strerror or error}") from None


def url(listener: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    name, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(name), str(name))
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn without its signals, which know no draining and end the process by the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(service: Service, listener: socket.socket, *, drain: float, stop: asyncio.Event | None = None) -> None:
    """Answer requests until a signal (SIGTERM, SIGINT) or `stop`, then drain.

    Draining: new requests get 503 and /health says so; what runs and waits is finished within `drain` seconds; the rest
    is told that the server shut down. A second signal ends the process at once.
    """
    stop = stop or asyncio.Event()
    _on_signals(stop)
    config = uvicorn.Config(
        service.app, http="auto", ws="none", lifespan="off", log_level="error", access_log=False, server_header=False,
        proxy_headers=False, timeout_keep_alive=30, timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        await _drain(service, drain)
    server.should_exit = True
    stopped.cancel()
    await running


async def _drain(service: Service, seconds: float) -> None:
    service.draining = True
    deadline = time.monotonic() + seconds
    log(f"shutting down: {service.open_requests} requests are being answered; at most {seconds:g} s")
    await asyncio.to_thread(service.engine.close, seconds)  # the model's part
    while service.open_requests and time.monotonic() < deadline:  # the network's part
        await asyncio.sleep(0.02)


def _on_signals(stop: asyncio.Event) -> None:
    """Ask to stop by the first signal, exit by the second. In a thread of a test there are no signals."""
    loop = asyncio.get_running_loop()

    def received(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(RuntimeError, ValueError):
            loop.add_signal_handler(number, received, number)
