"""The endpoints: OpenAI's completions and chat completions, the page, health, metrics."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from xmodel.errors import MachineError, UserError
from xmodel.inference.engine import Closed, Engine, QueueFull
from xmodel.inference.sampling import Sampling
from xmodel.inference.subjects import Subject
from xmodel.inference.text import encode_prompt
from xmodel.serve.answers import DONE, Place, Shape
from xmodel.serve.delivery import Answer, Post
from xmodel.serve.errors import ApiError, to_json
from xmodel.serve.guard import CLOSE, Guard, read_body
from xmodel.serve.metrics import Metrics
from xmodel.serve.page import page
from xmodel.serve.protocol import Ask, understand

ASIDE = 64_000  # bytes of a body from which on it is read and encoded beside the event loop
STREAM_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}
STREAM_HEADERS |= {"X-Accel-Buffering": "no"}  # nginx would gather a stream before it passes it on
PAGE_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
RETRY_SECONDS = 1  # what a client that met a full queue is told to wait


@dataclass(frozen=True)
class Limits:
    """What one server allows.

    Attributes:
        max_tokens: new tokens of one answer; None: the context.
        max_body: bytes. body_seconds: a body may take.
        keys, origins, loopback: see `Guard`.
    """

    max_tokens: int | None = None
    max_body: int = 1 << 20
    body_seconds: float = 30.0
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    loopback: bool = True


class Service:
    """One model behind HTTP.

    Attributes:
        app: for an ASGI server.
        names: of the model; answers carry the first.
        draining: new requests get 503.
        open_requests: that wait for their answer or are being answered.
    """

    def __init__(self, subject: Subject, engine: Engine, *, name: str | None = None, limits: Limits | None = None):
        self.subject, self.engine, self.limits = subject, engine, limits or Limits()
        self.names = (name,) if name else (subject.name,)
        self.context = subject.model.config.context_length
        self.metrics = Metrics(engine, self.names[0])
        self.draining = False
        self.open_requests = 0
        self.created = int(time.time())
        self.app = self._application()

    def _application(self) -> ASGIApp:
        routes = [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/health/live", self.live),
            Route("/metrics", self.show_metrics),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
        ]
        app: ASGIApp = Guard(
            Router(routes, redirect_slashes=False),
            metrics=self.metrics,
            endpoints=[route.path for route in routes],
            keys=self.limits.keys,
            origins=self.limits.origins,
            loopback=self.limits.loopback,
        )
        if origins := list(self.limits.origins):  # outside: a page that may come in may read errors, too
            app = CORSMiddleware(app, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])
        return app

    def warm_up(self) -> None:
        """Answer once, so that no request waits for what is compiled or loaded at its first use.

        Raises:
            MachineError: the model cannot answer; the engine has written why.
        """
        prompt = encode_prompt(self.subject.tokenizer, "Hello 你好", self.subject.bos)[: self.context - 1]
        for settings in (Sampling(2, logprobs=1), Sampling(2, temperature=1.0, top_p=0.9, seed=0)):
            *_, last = self.engine.stream(prompt, settings)
            if last.finish not in ("stop", "length"):
                raise MachineError("the model failed at its first answer, so it is not served; the lines above say why")

    @cached_property
    def post(self) -> Post:
        """Made by the first request, in the event loop's thread."""
        return Post(asyncio.get_running_loop())

    @cached_property
    def _page(self) -> tuple[bytes, dict[str, str]]:
        html, policy = page()
        return html, PAGE_HEADERS | {"Content-Security-Policy": policy}

    async def page(self, request: Request) -> Response:
        html, headers = self._page
        return Response(html, media_type="text/html", headers=headers)

    async def health(self, request: Request) -> Response:
        live = self.engine.alive or self.draining
        ready = live and not self.draining
        status = "ready" if ready else "draining" if live else "failed"
        state = {"status": status, "live": live, "ready": ready, "draining": self.draining}
        return _json(state, 200 if ready else 503)

    async def live(self, request: Request) -> Response:
        live = self.engine.alive or self.draining  # else only a new process helps
        return _json({"status": "live" if live else "failed"}, 200 if live else 503)

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _about(self) -> dict[str, Any]:
        about = self.subject.about
        more = {"max_model_len": self.context, "parameters": about["parameters"], "dtype": about["dtype"]}
        return {"id": self.names[0], "object": "model", "created": self.created, "owned_by": "xmodel", **more}

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._about()]})

    async def model(self, request: Request) -> Response:
        if (name := request.path_params["name"]) not in self.names:
            raise ApiError(404, f"no model {name!r} here", param="model", code="model_not_found")
        return _json(self._about())

    async def completions(self, request: Request) -> ASGIApp:
        return await self._answer(request, chat=False)

    async def chat_completions(self, request: Request) -> ASGIApp:
        return await self._answer(request, chat=True)

    async def _answer(self, request: Request, *, chat: bool) -> ASGIApp:
        self._refuse_if_draining()
        body = await read_body(request, self.limits.max_body, self.limits.body_seconds)
        arguments = (body, self.subject, self.names, min(self.limits.max_tokens or self.context, self.context))
        if len(body) < ASIDE:
            ask = understand(*arguments, chat=chat)
        else:
            ask = await asyncio.to_thread(understand, *arguments, chat=chat)
        self._refuse_if_draining()
        return Reply(self, ask, request)

    def _refuse_if_draining(self) -> None:
        if self.draining:
            headers = CLOSE | {"Retry-After": str(RETRY_SECONDS)}
            raise ApiError(503, "the server is shutting down", code="draining", headers=headers)


class Reply:
    """The answers to one request, as an ASGI application: whole, or as a stream."""

    def __init__(self, service: Service, ask: Ask, request: Request) -> None:
        """Submits all of them.

        Raises:
            ApiError: 429 when the queue is full, 400 for a prompt beyond the context; nothing is submitted then.
        """
        self._service, self._ask = service, ask
        self._pieces = service.subject.tokenizer.pieces
        self._shape = Shape(
            service.names[0], self._pieces, chat=ask.chat, logprobs=ask.settings.logprobs is not None, usage=ask.usage
        )
        self._wake = asyncio.Event()
        self._gone = False
        self._answers = [Answer(service.post, self._wake, ask.stream) for _ in range(len(ask.prompts) * ask.n)]
        self._prefixes = [text for text in ask.texts or [""] * len(ask.prompts) for _ in range(ask.n)]
        self._places = [Place(len(prefix)) for prefix in self._prefixes]
        engine = service.engine
        if len(self._answers) > engine.rows + engine.queue:
            field = "n" if ask.n > 1 else "prompt"
            most = f"this server takes {engine.rows + engine.queue} at once"
            raise ApiError(
                400, f"{len(self._answers)} answers are asked for; {most}", param=field, code="invalid_value"
            )
        self._submit()

    def _submit(self) -> None:
        settings, n = self._ask.settings, self._ask.n
        try:
            for index, answer in enumerate(self._answers):
                # n answers with one seed would be the same; each has the seed after the one before.
                seed = None if settings.seed is None else settings.seed + index % n
                answer.submit(self._service.engine, self._ask.prompts[index // n], replace(settings, seed=seed))
        except QueueFull:
            self._cancel()
            message = f"{len(self._answers)} more answers do not fit into the queue; try again in a moment"
            headers = {"Retry-After": str(RETRY_SECONDS)}
            raise ApiError(429, message, code="queue_full", headers=headers) from None
        except Closed:
            self._cancel()
            raise _broken("cancelled" if self._service.draining else "error") from None
        except UserError as error:  # a prompt: settings were checked before
            self._cancel()
            field = "messages" if self._ask.chat else "prompt"
            long = max(map(len, self._ask.prompts)) >= self._service.context
            code = "context_length_exceeded" if long else "invalid_value"
            raise ApiError(400, str(error), param=field, code=code) from None

    def _cancel(self) -> None:
        for answer in self._answers:
            if answer.ticket is not None and answer.finish is None:
                self._service.engine.cancel(answer.ticket)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._service.open_requests += 1
        listener = asyncio.create_task(self._listen(receive))
        try:
            await (self._stream(send) if self._ask.stream else self._whole(send))
        finally:
            listener.cancel()
            self._cancel()
            self._service.open_requests -= 1
            for answer in self._answers:
                self._service.metrics.answered(answer)

    async def _listen(self, receive: Receive) -> None:
        """A client that leaves does not keep its row: the answer is cancelled as soon as the connection is closed."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._cancel()
        self._wake.set()

    async def _whole(self, send: Send) -> None:
        while not self._gone and any(answer.finish is None for answer in self._answers):
            await self._wake.wait()
            self._wake.clear()
        if self._gone:
            return
        choices = []
        for index, answer in enumerate(self._answers):
            text, tokens, finish = answer.take()
            if finish not in ("stop", "length"):
                raise _broken(finish)
            logprobs = self._shape.logprobs(self._places[index], tokens)
            choices.append(self._shape.choice(index, self._prefixes[index] + text, logprobs, finish))
        response = Response(
            self._shape.whole(choices, self._usage()),
            media_type="application/json",
            headers={"X-Request-Id": self._shape.id},
        )
        await response({"type": "http"}, _nothing, send)

    async def _stream(self, send: Send) -> None:
        headers = STREAM_HEADERS | {"X-Request-Id": self._shape.id}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        opening = [self._shape.opening(index) for index in range(len(self._answers))]
        opening += [self._shape.piece(index, text, None, None) for index, text in enumerate(self._prefixes) if text]
        await self._send(send, opening)
        going_on = dict(enumerate(self._answers))
        events: list[bytes] = []
        while going_on:
            await self._wake.wait()
            self._wake.clear()
            if self._gone:
                return
            events = []
            for index, answer in list(going_on.items()):
                text, tokens, finish = answer.take()
                if finish not in (None, "stop", "length"):
                    await send({"type": "http.response.body", "body": b"data: " + _broken(finish).body() + b"\n\n"})
                    return
                if text or tokens or finish:
                    logprobs = self._shape.logprobs(self._places[index], tokens)
                    events.append(self._shape.piece(index, text, logprobs, finish))
                if finish:
                    del going_on[index]
            if going_on:
                await self._send(send, events)
        # The last piece and what ends the stream are one write: the client wakes up once.
        end = [self._shape.usage(self._usage())] if self._ask.usage else []
        await send({"type": "http.response.body", "body": b"".join([*events, *end, DONE])})

    async def _send(self, send: Send, events: list[bytes]) -> None:
        """Waits while the client reads more slowly than the model writes; nobody else does."""
        if body := b"".join(events):
            await send({"type": "http.response.body", "body": body, "more_body": True})

    def _usage(self) -> dict[str, int]:
        prompt, new = sum(map(len, self._ask.prompts)), sum(answer.new_tokens for answer in self._answers)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _broken(finish: str | None) -> ApiError:
    """What a client is told whose answer neither ended nor was cancelled by itself."""
    if finish == "cancelled":
        return ApiError(503, "the server shut down before the answer was done", code="draining", headers=CLOSE)
    return ApiError(500, "the answer failed; the server's log says why", code="internal_error")


def _json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")


async def _nothing() -> Any:
    raise AssertionError("a response reads nothing")
