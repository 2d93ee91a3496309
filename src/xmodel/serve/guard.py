"""Who may ask, and how much: keys, hosts, origins, sizes and times, before anything reads a request."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from urllib.parse import SplitResult, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xmodel.console import log
from xmodel.serve.errors import ApiError
from xmodel.serve.metrics import Metrics

OPEN = {"/", "/health", "/health/live"}  # need no key: they hold no secret and do no work
CLOSE = {"Connection": "close"}
DISCARD_SECONDS = 2.0  # for what a client still sends of a body that is refused, so that it reads the answer
GONE = 499  # nobody waits for this answer; the status is for the metrics (nginx' number for it)


def is_loopback(host: str) -> bool:
    """Whether a host's name can only mean this machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Around the whole application: refuses what may not come in, counts what goes out, survives what breaks."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        endpoints: Sequence[str],
        keys: Sequence[str],
        origins: Sequence[str],
        loopback: bool,
    ) -> None:
        """
        Args:
            endpoints: paths that metrics name; all others count as "other", so that their number is bounded.
            keys: any of them opens the API; none: it is open.
            origins: of web pages that may use the API besides our own; "*" for any.
            loopback: whether the server is bound to this machine only. Without keys the Host header is then checked: a
                web page whose name was made to point here (DNS rebinding) carries its own name there.
        """
        self._app, self._metrics, self._endpoints = app, metrics, frozenset(endpoints)
        self._keys = [key.encode() for key in keys]
        self._origins, self._check_host = frozenset(origins), loopback and not keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._admit(scope)
            # "app" tells the router to raise what it cannot route, as it does within a Starlette application.
            await self._app({**scope, "app": self}, receive, counted)
        except ApiError as error:
            await respond(error, counted)
        except HTTPException as error:
            await respond(_not_routed(scope, error), counted)
        except Exception:
            log(f"{scope['method']} {path}: a bug; the server goes on\n{traceback.format_exc().rstrip()}")
            if status:
                raise  # the answer has begun: the connection has to break
            await respond(ApiError(500, "a bug of the server; its log says more", code="internal_error"), counted)
        finally:
            label = path if path in self._endpoints else "other"
            self._metrics.requests.labels(label, status or GONE).inc()

    def _admit(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self._check_host and host and not is_loopback(_split(f"//{host}").hostname or ""):
            raise ApiError(403, f"this server answers to localhost, not to {host!r}", code="wrong_host")
        if scope["method"] == "POST":
            self._check_origin(headers, host)
        if self._keys and scope["path"] not in OPEN and scope["method"] != "OPTIONS":
            kind, _, key = headers.get(b"authorization", b"").partition(b" ")
            given = key.strip() if kind.lower() == b"bearer" else b""
            # Every key is compared, each in constant time: how long it takes says nothing about how near a guess was.
            if not sum(hmac.compare_digest(given, known) for known in self._keys):
                headers_ = {"WWW-Authenticate": "Bearer"}
                what = "a wrong API key" if given else "no API key: send it as `Authorization: Bearer KEY`"
                raise ApiError(401, what, code="invalid_api_key", headers=headers_)

    def _check_origin(self, headers: dict[bytes, bytes], host: str) -> None:
        """Refuse what a web page of another origin sends: a browser would send it without asking us first."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not origin or "*" in self._origins or origin in self._origins:
            return
        site = headers.get(b"sec-fetch-site")  # the browser's own word; older ones do not send it
        same = site in (b"same-origin", b"none") if site else _split(origin).netloc == host
        if not same:
            raise ApiError(403, f"web pages of {origin} may not use this server (--cors {origin})", code="wrong_origin")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # half an IPv6 address
        return urlsplit("")


def _not_routed(scope: Scope, error: HTTPException) -> ApiError:
    what = "no such path" if error.status_code == 404 else f"not with {scope['method']}"
    code = "not_found" if error.status_code == 404 else "wrong_method"
    return ApiError(error.status_code, f"{scope['path']}: {what}", code=code, headers=dict(error.headers or {}))


async def respond(error: ApiError, send: Send) -> None:
    """Send an error in OpenAI's shape."""
    body = error.body()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """The body of a request.

    Raises:
        ApiError: 413 for more than `most` bytes, 408 when it takes more than `seconds`, 499 when the client left.
    """
    parts, size = [], 0
    stream = request.stream()
    try:
        async with asyncio.timeout(seconds):
            async for part in stream:
                size += len(part)
                if size > most:
                    break
                parts.append(part)
            else:
                return b"".join(parts)
    except TimeoutError:
        message = f"the body took more than {seconds:g} seconds"
        raise ApiError(408, message, code="slow_body", headers=CLOSE) from None
    except ClientDisconnect:
        raise ApiError(GONE, "the client left", headers=CLOSE) from None
    await _discard(stream, 8 * most)
    raise ApiError(413, f"the body has more than {most} bytes (--max-body)", code="body_too_large", headers=CLOSE)


async def _discard(stream: AsyncIterator[bytes], most: int) -> None:
    """Read on for a moment without keeping anything: most clients read an answer only after they have sent all."""
    deadline, size = time.monotonic() + DISCARD_SECONDS, 0
    try:
        async with asyncio.timeout(DISCARD_SECONDS):
            async for part in stream:
                size += len(part)
                if size > most or time.monotonic() > deadline:
                    return
    except (TimeoutError, ClientDisconnect):
        return
