"""A conversation: its messages, what of them the model sees, and how an answer comes."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from xmodel.chat.screen import Screen
from xmodel.chat.words import Words
from xmodel.errors import UserError

if TYPE_CHECKING:
    from xmodel.inference.engine import Delta, Token
    from xmodel.inference.sampling import Sampling

RIVALS = 3  # likeliest tokens that are kept beside each token of an answer, for /tokens
ROOM = 4  # at least one part in so many of the context is left to an answer, while there are older turns to leave out

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}


class Partner(Protocol):
    """The model that answers. partner.py makes one of a model and an engine."""

    name: str
    context: int  # tokens, the answer included
    verbatim: bool  # texts follow one another as they are: no frame around turns

    def introduction(self, say: Words) -> list[str]:
        """What a person should know before the first turn, in lines."""
        ...

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids that the model continues."""
        ...

    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        ...

    def start(self, prompt: list[int], settings: Sampling, deliver: Callable[[Delta], None]) -> Any:
        """Have a prompt continued; what comes is delivered from another thread."""
        ...

    def stop(self, ticket: Any) -> None:
        """End an answer early; its last delta comes all the same."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        ...


class Answer(NamedTuple):
    """What is known of an answer beside its text."""

    tokens: list[Token]
    seconds: float


class Refused(Exception):
    """A turn or command that cannot be done; the message says why, in the language of the interface."""


@dataclass
class Session:
    """The state of a conversation.

    Attributes:
        messages: turns of user and assistant, the oldest first, all of them; `system` stands apart.
        first: index of the first message that the model still sees.
        drawn: answers since the seed was set: with a seed, each answer has one of its own.
        last: of the newest answer.
        own_files: files that this conversation was saved in or loaded from: may be written again.
    """

    partner: Partner
    settings: Sampling
    screen: Screen
    say: Words
    system: str = ""
    messages: list[Message] = field(default_factory=list)
    first: int = 0
    drawn: int = 0
    last: Answer | None = None
    own_files: set[Path] = field(default_factory=set)

    def ask(self, text: str) -> None:
        """A turn of the person's, and the model's answer to it; without an answer the turn is taken back."""
        self.messages.append({"role": "user", "content": text})
        try:
            self.answer()
        finally:
            if self.messages[-1]["role"] == "user":
                self.messages.pop()

    def answer(self) -> bool:
        """Have the newest message answered, and keep the answer; False, with a note, where none came."""
        first = self.first
        seed = None if self.settings.seed is None else self.settings.seed + self.drawn
        settings = replace(self.settings, seed=seed, stop=self.partner.stops(), logprobs=RIVALS)
        self.drawn += 1
        started = time.monotonic()
        try:
            prompt = self._prompt()
            text, tokens, finish, stopped = self._listen(prompt, settings)
        except UserError as error:
            self.first = first
            self.screen.note(str(error))
            return False
        if not text:
            self.screen.note(self.say("failed" if finish == "error" else "taken_back" if stopped else "nothing"))
            return False
        self.messages.append({"role": "assistant", "content": text})
        self.last = Answer(tokens, time.monotonic() - started)
        self._note_end(finish, stopped, len(prompt) + len(tokens))
        return True

    def _listen(self, prompt: list[int], settings: Sampling) -> tuple[str, list[Token], str | None, bool]:
        """Show an answer as it comes: its text, its tokens, how it ended, and whether the person ended it."""
        deltas: queue.SimpleQueue[Delta | None] = queue.SimpleQueue()  # its put is safe in a signal handler
        kept, held, tokens, stopped = "", "", [], False
        with self.screen.listening(lambda: deltas.put(None)):
            ticket = self.partner.start(prompt, settings, deltas.put)
            try:
                while True:
                    delta = deltas.get()
                    if delta is None:
                        stopped = True
                        self.partner.stop(ticket)
                        continue
                    tokens += delta.tokens
                    piece = held + delta.text
                    if not self.partner.verbatim:  # white space around an answer belongs to the frame
                        piece = piece if kept else piece.lstrip()
                        piece, held = piece.rstrip(), piece[len(piece.rstrip()) :]
                    self.screen.stream(piece)
                    kept += piece
                    if delta.finish:
                        break
            except BaseException:
                self.partner.stop(ticket)
                raise
            finally:
                self.screen.end()
        return kept, tokens, delta.finish, stopped

    def _note_end(self, finish: str | None, stopped: bool, used: int) -> None:
        if finish == "error":
            self.screen.note(self.say("failed"))
        elif stopped:
            self.screen.note(f"[{self.say('stopped')}]")
        elif finish == "length" and used >= self.partner.context:
            self.screen.note(f"[{self.say('full', context=self.partner.context)}]")
        elif finish == "length":
            self.screen.note(f"[{self.say('length', count=self.settings.max_new_tokens)}]")

    @property
    def turns(self) -> int:
        """Turns of the person's so far."""
        return _turns(self.messages)

    def seen(self) -> list[Message]:
        """The messages that the model sees, the system's before them."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + self.messages[self.first :]

    def _prompt(self) -> list[int]:
        """The prompt of the newest messages that leave room for an answer; says so when older ones are left out.

        Raises:
            UserError: the newest turn alone is more than the context.
        """
        context, before = self.partner.context, self.first
        room = min(self.settings.max_new_tokens, context // ROOM)
        while len(prompt := self.partner.prompt(self.seen())) + room > context:
            later = [i for i in range(self.first + 1, len(self.messages)) if self.messages[i]["role"] == "user"]
            if not later:
                if len(prompt) < context:
                    break
                raise UserError(self.say("too_long", count=len(prompt), context=context))
            self.first = later[0]
        if self.first > before:
            left_out = _turns(self.messages[: self.first])
            self.screen.note(self.say("dropped", context=context, count=left_out, all=self.turns))
        return prompt

    def take_back(self) -> list[Message]:
        """Remove the newest turn and its answer, and return them."""
        start = max((i for i, message in enumerate(self.messages) if message["role"] == "user"), default=0)
        taken = self.messages[start:]
        del self.messages[start:]
        self.first = 0  # what did not fit may fit again
        return taken

    def replace_messages(self, system: str, messages: list[Message]) -> None:
        """Go on with another conversation."""
        self.system, self.messages, self.first, self.last = system, messages, 0, None


def _turns(messages: Sequence[Message]) -> int:
    return sum(message["role"] == "user" for message in messages)
