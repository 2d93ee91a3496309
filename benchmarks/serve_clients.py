"""The clients of `serve.py`, in a process of their own: each line of its input is a wave, each line of its output what
the clients of that wave saw.

A client keeps what arrives and when; it looks into it after the wave, so that reading costs the machine little while
the server is measured.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import sys
import time
from itertools import pairwise
from typing import Any

SLOW_BYTES = 4096  # of the socket's buffer of a slow reader: the rest waits in the server
SLOW_READ = 0.05  # seconds in which it takes at most one piece
PATIENCE = 60.0  # seconds after which a client gives up


class Client(asyncio.Protocol):
    """One request and its stream.

    Attributes:
        parts: what arrived, and at which second of `time.perf_counter`.
    """

    def __init__(self, request: dict[str, Any], head: str) -> None:
        body = json.dumps(request["body"])
        self.message = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        self.kind, self.leave_after = request["kind"], request.get("leave_after", 0)
        self.parts: list[tuple[float, bytes]] = []
        self.ended = asyncio.get_running_loop().create_future()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.asked = time.perf_counter()
        transport.write(self.message)

    def data_received(self, data: bytes) -> None:
        self.parts.append((time.perf_counter(), data))
        if self.kind == "slow":
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(SLOW_READ, self.transport.resume_reading)
        elif self.kind == "leaves" and len(self.parts) > self.leave_after:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(repr(exc) if exc else None)


async def talk(request: dict[str, Any], host: str, port: int) -> Client:
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if request["kind"] == "slow":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BYTES)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (host, port))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
    _, client = await loop.create_connection(lambda: Client(request, head), sock=sock)
    return client


async def one(request: dict[str, Any], host: str, port: int) -> dict[str, Any]:
    try:
        async with asyncio.timeout(PATIENCE):
            client = await talk(request, host, port)
            lost = await client.ended
    except (OSError, TimeoutError) as error:
        return {"kind": request["kind"], "error": repr(error)}
    return {"kind": request["kind"], "client": client, "error": lost}


def unchunk(data: bytes) -> tuple[bytes, bool]:
    """The body of a chunked response, and whether its end came."""
    parts, place = [], 0
    while (line := data.find(b"\r\n", place)) >= 0:
        size = int(data[place:line], 16)
        if not size:
            return b"".join(parts), True
        parts.append(data[line + 2 : line + 2 + size])
        place = line + size + 4
    return b"".join(parts), False


def read(found: dict[str, Any]) -> dict[str, Any]:
    """What a client's stream says."""
    client = found.pop("client", None)
    if client is None or client.kind == "leaves":
        return {
            "kind": found["kind"],
            "error": None if client is not None and client.parts else found["error"] or "no answer",
        }
    data = b"".join(part for _, part in client.parts)
    head, _, rest = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        return found | {"error": (found["error"] or "") + data[:200].decode("utf-8", "replace")}
    body, whole = unchunk(rest)
    events = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event]
    if not whole or events[-1:] != [b"[DONE]"]:
        return found | {"error": found["error"] or "the stream broke off"}
    values = [json.loads(event) for event in events[:-1]]
    choices = [choice for value in values for choice in value.get("choices", [])]
    text = "".join(choice["text"] for choice in choices)
    # The head of the response comes before the first token; events are behind it.
    times = [when for when, part in client.parts if b"data: " in part]
    return found | {
        "tokens": values[-1]["usage"]["completion_tokens"],
        "finish": choices[-1]["finish_reason"],
        "text": hashlib.sha256(text.encode()).hexdigest()[:16],
        "events": len(choices),
        "wait": times[0] - client.asked,
        "seconds": times[-1] - times[0],
        "longest_gap": max((after - before for before, after in pairwise(times)), default=0.0),
    }


async def wave(order: dict[str, Any]) -> dict[str, Any]:
    began, processor = time.perf_counter(), time.process_time()
    found = await asyncio.gather(*(one(request, order["host"], order["port"]) for request in order["requests"]))
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    return {"seconds": seconds, "processor": processor, "clients": [read(each) for each in found]}


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(asyncio.run(wave(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
