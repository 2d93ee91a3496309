"""From the engine's thread to the event loop: what is new of an answer, merged, at a bounded price.

The engine calls `Answer.add` for every token of every answer; the loop writes to sockets. Both need Python's lock, so
whatever the loop does is taken from the engine when the model is small. Therefore the loop is woken at most once for a
step of the engine, and writes only as often as keeps it within SHARE of the time: a stream alone gets every token at
once, hundreds of streams get several tokens in one piece. What waits for its reader is one text, however long it waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from xmodel.inference.engine import Delta, Engine, Ticket, Token
from xmodel.inference.sampling import Sampling

SHARE = 0.02  # of one core's time, for writing what is not the first or the last of an answer
LONGEST_WAIT = 0.25  # seconds between two pieces of a stream, at most


class Post:
    """Wakes the requests of one event loop when the engine has something for them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """To be made in the loop's thread: its processor time is what is bounded."""
        self._loop = loop
        self._urgent: deque[Answer] = deque()
        self._calm: deque[Answer] = deque()
        self._urgent_called = self._calm_called = False
        self._began, self._spent = loop.time(), time.thread_time()

    def ring(self, answer: Answer, urgent: bool) -> None:
        """In the engine's thread: `answer` has something new; first and last pieces are urgent."""
        if urgent:
            self._urgent.append(answer)
            if not self._urgent_called:
                self._urgent_called = True
                self._call(self._deliver_urgent)
        else:
            self._calm.append(answer)
            if not self._calm_called:
                self._calm_called = True
                self._call(self._plan)

    def _call(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(function)

    def _plan(self) -> None:
        cost = time.thread_time() - self._spent  # of all that the loop did since it wrote last
        wait = min(cost / SHARE, LONGEST_WAIT) - (self._loop.time() - self._began)
        if wait > 0:
            self._loop.call_later(wait, self._deliver_calm)
        else:
            self._deliver_calm()

    def _deliver_calm(self) -> None:
        self._began, self._spent = self._loop.time(), time.thread_time()
        self._calm_called = False  # before the queue is emptied: what comes after this line calls again
        _wake(self._calm)

    def _deliver_urgent(self) -> None:
        self._urgent_called = False
        _wake(self._urgent)


def _wake(answers: deque[Answer]) -> None:
    while answers:
        answers.popleft().wake.set()


class Answer:
    """One answer under way: the engine's thread adds to it, its request's task takes.

    Attributes:
        wake: of the request, which may wait for several answers.
        submitted, first, last: seconds of `time.perf_counter`, first and last when a token came; None: none yet.
        new_tokens: so far. finish: why it ended, None while it goes on.
    """

    def __init__(self, post: Post, wake: asyncio.Event, stream: bool) -> None:
        self.wake = wake
        self.submitted = time.perf_counter()
        self.first: float | None = None
        self.last: float | None = None
        self.new_tokens = 0
        self.finish: str | None = None
        self.ticket: Ticket | None = None
        self._post, self._stream = post, stream
        self._lock = threading.Lock()
        self._text, self._tokens, self._rung = "", [], False

    def submit(self, engine: Engine, prompt: Sequence[int], settings: Sampling) -> None:
        """Hand the request to the engine; raises what `Engine.submit` raises."""
        self.ticket = engine.submit(prompt, settings, self.add)

    def add(self, delta: Delta) -> None:
        """In the engine's thread: take in what is new."""
        self.last = time.perf_counter()
        urgent = delta.finish is not None
        if self.first is None and delta.new_tokens:
            self.first, urgent = self.last, True
        with self._lock:
            self._text += delta.text
            self._tokens += delta.tokens
            self.new_tokens = delta.new_tokens
            self.finish = delta.finish
            rung, self._rung = self._rung, True
        if delta.finish is not None or (self._stream and (urgent or not rung)):
            self._post.ring(self, urgent)

    def take(self) -> tuple[str, list[Token], str | None]:
        """In the loop: text and tokens since the last call, and why the answer ended, None while it goes on."""
        with self._lock:
            text, tokens, self._text, self._tokens, self._rung = self._text, self._tokens, "", [], False
            return text, tokens, self.finish
