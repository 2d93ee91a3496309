"""A server that answers as ours does, from a script instead of a model: what the page shows is then known beforehand.

The prompt names the script: `slow` goes on until it is stopped, `busy` is refused, and so on; see `SCRIPTS`.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from xmodel.serve.page import page

CONTEXT = 256
# A token: its bytes, its probability, and its rivals' bytes and probabilities.
Token = tuple[bytes, float, list[tuple[bytes, float]]]
PLAIN: list[Token] = [
    (b" the", 0.62, [(b" the", 0.62), (b" a", 0.21), (b" his", 0.06)]),
    (b" old", 0.11, [(b" green", 0.34), (b" little", 0.19), (b" old", 0.11)]),
    (b" harbour", 0.97, [(b" harbour", 0.97), (b" man", 0.01), (b" town", 0.004)]),
    (b",", 0.55, [(b",", 0.55), (b".", 0.31), (b" and", 0.05)]),
    (b"\n", 0.03, [(b" and", 0.61), (b" where", 0.22), (b" with", 0.04)]),
    (b"where", 0.28, [(b"where", 0.28), (b"The", 0.22), (b"\t", 0.1)]),
    (b" it", 0.004, [(b" the", 0.5), (b" he", 0.2), (b" she", 0.1)]),
    (b" is", 0.91, [(b" is", 0.91), (b" was", 0.06), (b"\xe6", 0.01)]),
    (b" written", 0.4, [(b" written", 0.4), (b" called", 0.3), (b" still", 0.1)]),
    (b" ", 0.7, [(b" ", 0.7), (b":", 0.2), (b"", 0.05)]),
    (b"\xe6", 0.3, [(b"\xe6", 0.3), (b"\xe5", 0.2), (b"\xe7", 0.1)]),
    (b"\xb8", 0.6, [(b"\xb8", 0.6), (b"\xb5", 0.2), (b"\x8a", 0.1)]),
    (b"\xaf", 0.99, [(b"\xaf", 0.99), (b"\xb8", 0.004), (b"\x8a", 0.002)]),
    ("口".encode(), 0.8, [("口".encode(), 0.8), ("湾".encode(), 0.1), ("城".encode(), 0.05)]),
    (b".", 0.9, [(b".", 0.9), (b",", 0.08), (b"!", 0.01)]),
]
PLAIN_TEXT = b"".join(token[0] for token in PLAIN).decode()
HTML: list[Token] = [
    (b" <b>bold</b>", 0.5, []),
    (b"<img src=/bad onerror=\"document.title='broken'\">", 0.5, []),
    (b"<script>document.title='broken'</script>&amp;", 0.5, []),
]
WORD: list[Token] = [(b" word", 0.5, [(b" word", 0.5), (b" other", 0.25)])]


class Script:
    """The server's memory: requests that came, and how it behaves."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.needs_key: str | None = None
        self.stopped = 0  # answers that the client broke off

    def refusal(self, prompt: str, body: dict[str, Any]) -> Response | None:
        if body.get("temperature", 0) > 2:
            return _error(400, "temperature is 3; it has to be from 0 to 2", "temperature")
        if prompt == "busy":
            return _error(429, "256 requests wait already", None, {"Retry-After": "7"})
        if prompt == "long":
            return _error(400, "the prompt has 999 tokens; the model's context holds 256", "prompt")
        return None


def _error(status: int, message: str, param: str | None, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "type": "x", "param": param, "code": None}}, status, headers)


def _tokens(prompt: str) -> tuple[list[Token], float]:
    """Tokens of the answer, and the seconds between two."""
    if prompt == "slow":
        return WORD * 2000, 0.02
    if prompt == "late":
        return WORD, 5.0
    return (HTML if prompt == "html" else PLAIN), 0.01


def _name(piece: bytes) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _logprobs(token: Token, chat: bool) -> dict[str, Any]:
    piece, p, rivals = token

    def entry(piece: bytes, p: float) -> dict[str, Any]:
        return {"token": piece.decode("utf-8", "replace"), "logprob": math.log(p), "bytes": list(piece)}

    if chat:
        return {"content": [entry(piece, p) | {"top_logprobs": [entry(*rival) for rival in rivals]}]}
    top = {_name(rival): math.log(q) for rival, q in rivals}
    return {"tokens": [_name(piece)], "token_logprobs": [math.log(p)], "top_logprobs": [top], "text_offset": [0]}


async def _stream(script: Script, prompt: str, body: dict[str, Any], chat: bool) -> AsyncIterator[str]:
    def event(choices: list[Any], usage: dict[str, int] | None = None) -> str:
        return f"data: {json.dumps({'id': 'x', 'choices': choices, 'usage': usage})}\n\n"

    tokens, pause = _tokens(prompt)
    held = b""
    try:
        if chat:
            yield event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        for number, token in enumerate(tokens):
            await asyncio.sleep(pause)
            if prompt == "break" and number == 3:
                return  # no [DONE]
            held += token[0]
            try:
                text, held = held.decode(), b""
            except UnicodeDecodeError:
                text = ""
            said = {"delta": {"content": text}} if chat else {"text": text}
            odds = _logprobs(token, chat) if body.get("logprobs") else None
            yield event([{"index": 0, **said, "logprobs": odds, "finish_reason": None}])
        said = {"delta": {}} if chat else {"text": ""}
        yield event([{"index": 0, **said, "logprobs": None, "finish_reason": "stop"}])
        n = len(tokens)
        yield event([], {"prompt_tokens": 6, "completion_tokens": n, "total_tokens": n + 6})
        yield "data: [DONE]\n\n"
    except (asyncio.CancelledError, GeneratorExit):
        script.stopped += 1
        raise


def make_app(script: Script) -> Starlette:
    async def root(request: Request) -> Response:
        html, policy = page()
        return Response(html, media_type="text/html", headers={"Content-Security-Policy": policy})

    async def models(request: Request) -> Response:
        if script.needs_key and request.headers.get("authorization") != f"Bearer {script.needs_key}":
            return _error(401, "this server needs an API key", None)
        return JSONResponse(
            {"object": "list", "data": [{"id": "small-harbour", "max_model_len": CONTEXT, "parameters": 1_380_000}]}
        )

    async def answer(request: Request) -> Response:
        body = await request.json()
        chat = "messages" in body
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        script.keys.append(request.headers.get("authorization"))
        script.bodies.append(body)
        refusal = script.refusal(prompt, body)
        return refusal or StreamingResponse(_stream(script, prompt, body, chat), media_type="text/event-stream")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    routes = [Route("/", root), Route("/v1/models", models), Route("/health", health)]
    for path in ("/v1/completions", "/v1/chat/completions"):
        routes.append(Route(path, answer, methods=["POST"]))
    return Starlette(routes=routes)


@contextmanager
def serving(app: Any, port: int = 0) -> Iterator[str]:
    """The address of an app that a thread serves."""
    listener = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
