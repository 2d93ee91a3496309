"""The engine: requests join and leave a running batch at any step (continuous batching), one thread runs the model.

A turn of the thread: cancelled requests leave; waiting ones get free rows, first come, first served; at most one chunk
of prompts goes through the model, of one prompt or of several; every row takes one decoding step. So a long prompt
delays the others by one chunk for each of their tokens, and no more.
"""

from __future__ import annotations

import queue as queues
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from xmodel.console import log
from xmodel.errors import UserError
from xmodel.inference.batch import CHUNK, Batch, Row
from xmodel.inference.sampling import Choice, Sampler, Sampling, SettingError, pick
from xmodel.inference.subjects import Subject
from xmodel.inference.templates import end_ids
from xmodel.inference.text import AnswerText, Token

CELLS = 131_072
FINISHES: tuple[str, ...] = ("stop", "length", "cancelled", "error")


class QueueFull(Exception):
    """As many requests wait already as the engine lets wait."""


class Closed(Exception):
    """The engine takes no more requests."""


class Delta(NamedTuple):
    """What is new of an answer.

    Attributes:
        text: whole characters; what may be the beginning of a stop text is held back until that is settled.
        tokens: those that the text belongs to; filled when `Sampling.logprobs` is set.
        finish: None while the answer goes on; at its end "stop" (end of text, or a stop text), "length", "cancelled"
            or "error".
        new_tokens: of the answer so far.
    """

    text: str
    tokens: list[Token]
    finish: str | None
    new_tokens: int


class Stats(NamedTuple):
    """Figures of an engine since its start."""

    running: int
    waiting: int
    rows: int
    cached_tokens: int
    prompt_tokens_total: int
    new_tokens_total: int
    finished: dict[str, int]  # requests by how they ended


class Ticket(Row):
    """One request, as the engine keeps it; for its sender something to cancel."""

    def __init__(
        self, prompt: Sequence[int], room: int, sampler: Sampler, text: AnswerText, deliver: Callable[[Delta], None]
    ) -> None:
        super().__init__(prompt, room)
        self.sampler, self.text, self.deliver = sampler, text, deliver
        self.new_tokens = 0
        self.cancelled = False
        self.finish: str | None = None


class Engine:
    """Answers requests with one model. Safe to use from any thread.

    Attributes:
        rows, queue, cells: see `__init__`; cells as the cache was made. context: tokens of a prompt with its answer.
    """

    def __init__(self, subject: Subject, *, rows: int = 16, queue: int = 256, cells: int | None = None) -> None:
        """Starts the engine's thread.

        Args:
            rows: requests that are answered at the same time, at most.
            queue: requests that may wait for a row.
            cells: tokens that the cache holds: of all rows, prompts and answers. None: what `rows` full contexts need,
                but no more than 131,072.

        Raises:
            UserError: a number below 1, or cells that do not hold one context.
        """
        for name, value in (("rows", rows), ("queue", queue)):
            if value < 1:
                raise UserError(f"{name} is {value}; it has to be at least 1")
        self.model = subject.model
        self.context = subject.model.config.context_length
        if cells is not None and cells < self.context:
            raise UserError(
                f"cells is {cells}; it has to hold at least one context of the model, {self.context} tokens"
            )
        self.rows, self.queue = rows, queue
        self._pieces, self._ends = subject.tokenizer.pieces, end_ids(subject)
        self._batch: Batch[Ticket] = Batch(self.model, rows, self.context, cells or min(rows * self.context, CELLS))
        self.cells = self._batch.total
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []  # in the order of their arrival; those at the end may still be in their prompt
        self._closed = False
        self._deadline: float | None = None
        self._prompt_tokens = self._new_tokens = 0
        self._finished: dict[str, int] = dict.fromkeys(FINISHES, 0)
        self._thread = threading.Thread(target=self._run, name="xmodel-engine", daemon=True)
        self._thread.start()

    def submit(self, prompt: Sequence[int], settings: Sampling, deliver: Callable[[Delta], None]) -> Ticket:
        """Ask for an answer. It may be cut short by the end of the context (finish "length").

        Args:
            deliver: called in the engine's thread with every new part of the answer, so it must not wait; the last one
                has a `finish`. One that raises cancels its request.

        Raises:
            SettingError: a setting out of range, an empty prompt, one that leaves no room in the context, or with ids
                that the model does not have.
            QueueFull: `queue` requests wait already, besides those for which rows are free.
            Closed: after `close`.
        """
        settings.check()
        self._check(prompt)
        room = min(settings.max_new_tokens, self.context - len(prompt))
        text = AnswerText(self._pieces, settings.stop, keep_tokens=settings.logprobs is not None)
        ticket = Ticket(tuple(prompt), room, Sampler(settings, prompt), text, deliver)
        with self._changed:
            if self._closed:
                raise Closed("the engine is closed")
            # Rows that are free take in some of those that wait, as soon as the thread has its next turn.
            if len(self._waiting) >= self.queue + self.rows - len(self._running):
                raise QueueFull(f"{len(self._waiting)} requests wait already")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End a request; its last Delta has finish "cancelled". Does nothing to one that has ended."""
        ticket.cancelled = True
        with self._changed:
            self._changed.notify()

    def stream(self, prompt: Sequence[int], settings: Sampling) -> Iterator[Delta]:
        """The parts of an answer as they come; closing the iterator cancels. Raises as `submit`, at the call."""
        parts: queues.SimpleQueue[Delta] = queues.SimpleQueue()
        found = self._parts(self.submit(prompt, settings, parts.put), parts)
        next(found)  # into its try: from here on, closing it cancels
        return found

    def close(self, drain: float | None = None) -> None:
        """Refuse new requests, finish those there are, and stop the thread.

        Args:
            drain: seconds after which what is not finished is cancelled; None: however long it takes.
        """
        with self._changed:
            self._closed = True
            if drain is not None:
                self._deadline = time.monotonic() + drain
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread that runs the model is there; False after `close`, and after a bug that ended it."""
        return self._thread.is_alive()

    def stats(self) -> Stats:
        """Figures of this moment."""
        with self._changed:
            running, waiting = list(self._running), len(self._waiting)
        cached = sum(ticket.length for ticket in running)
        totals = self._prompt_tokens, self._new_tokens, dict(self._finished)
        return Stats(len(running), waiting, self.rows, cached, *totals)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(drain=0)

    def _check(self, prompt: Sequence[int]) -> None:
        vocabulary = self.model.config.vocab_size
        if not len(prompt):
            raise SettingError("prompt", "the prompt is empty: a model continues at least one token, such as <s>")
        if len(prompt) >= self.context:
            message = f"the prompt has {len(prompt)} tokens; the model's context holds {self.context}, "
            raise SettingError("prompt", message + "the answer included")
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            wrong = next(token for token in prompt if not 0 <= token < vocabulary)
            raise SettingError(
                "prompt", f"the prompt has the token id {wrong}; the model has ids 0 to {vocabulary - 1}"
            )

    def _parts(self, ticket: Ticket, parts: queues.SimpleQueue[Delta]) -> Iterator[Any]:
        try:
            yield None
            finish = None
            while finish is None:
                delta = parts.get()
                finish = delta.finish
                yield delta
        finally:
            self.cancel(ticket)

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # whatever it is: nobody may wait for a thread that is gone
            with self._changed:
                self._closed = True
                left, self._waiting = [*self._running, *self._waiting], deque()
            self._fail(left, error)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._closed):
                    self._changed.wait()
                if self._closed and not (self._waiting or self._running):
                    return
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    for ticket in (*self._running, *self._waiting):
                        ticket.cancelled = True
                gone = [ticket for ticket in self._waiting if ticket.cancelled]
                if gone:
                    self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)
                while self._waiting and len(self._running) < self.rows and self._batch.take(self._waiting[0]):
                    self._running.append(self._waiting.popleft())
            for ticket in gone:
                self._end(ticket, "cancelled")
            try:
                self._turn()
            except Exception as error:
                self._fail(list(self._running), error)

    def _turn(self) -> None:
        for ticket in [ticket for ticket in self._running if ticket.cancelled]:
            self._end(ticket, "cancelled")
        left = CHUNK  # tokens of prompts in this turn
        while left > 0 and (prompts := [ticket for ticket in self._running if ticket.length < len(ticket.prompt)]):
            left += sum(ticket.length for ticket in prompts)
            self._prefill(prompts)
            left -= sum(ticket.length for ticket in prompts)
        going = self._batch.going
        if going:
            try:
                logits_RV = self._batch.step()
            except Exception as error:
                self._fail(going, error)
            else:
                self._choose(going, logits_RV)

    def _prefill(self, tickets: list[Ticket]) -> None:
        try:
            done = self._batch.prefill(tickets)
        except Exception as error:
            if len(tickets) == 1:
                self._fail(tickets, error)
            else:  # whose fault it is, nobody knows: each by itself, once
                for ticket in tickets:
                    self._prefill([ticket])
            return
        for ticket, logits_V in done:
            self._prompt_tokens += len(ticket.prompt)
            self._choose([ticket], logits_V[None])

    def _choose(self, tickets: list[Ticket], logits_RV: Tensor) -> None:
        """Give every ticket its next token. What fails here fails one request, not its neighbours."""
        for ticket, choice in zip(tickets, pick(logits_RV, [ticket.sampler for ticket in tickets]), strict=True):
            try:
                if isinstance(choice, Exception):
                    raise choice
                self._take(ticket, choice)
            except Exception as error:
                self._fail([ticket], error)

    def _take(self, ticket: Ticket, choice: Choice) -> None:
        if choice.token in self._ends:
            self._end(ticket, "stop")
            return
        ticket.last = choice.token
        ticket.new_tokens += 1
        self._new_tokens += 1
        ticket.text.push(*choice)
        if ticket.text.stopped:
            self._end(ticket, "stop")
        elif ticket.new_tokens >= ticket.room:
            self._end(ticket, "length")
        else:
            text, tokens = ticket.text.take()
            if text or tokens:
                ticket.deliver(Delta(text, tokens, None, ticket.new_tokens))

    def _end(self, ticket: Ticket, finish: str) -> None:
        if ticket.finish is not None:
            return
        ticket.finish = finish
        self._finished[finish] += 1
        with self._changed:
            if ticket in self._running:
                self._running.remove(ticket)
        self._batch.remove(ticket)
        ticket.text.finish()
        text, tokens = ticket.text.take(last=True)
        try:
            ticket.deliver(Delta(text, tokens, finish, ticket.new_tokens))
        except Exception as error:
            log(f"engine: a receiver failed at the end of its answer: {error!r}")

    def _fail(self, tickets: list[Ticket], error: BaseException) -> None:
        """End requests with finish "error"; the traceback goes to the log, the engine goes on."""
        log("engine: a request failed\n" + "".join(traceback.format_exception(error)).rstrip())
        for ticket in tickets:
            self._end(ticket, "error")
