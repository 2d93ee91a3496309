"""A model and its engine as the partner of a conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xmodel.chat.session import Message
from xmodel.chat.words import Words
from xmodel.console import count
from xmodel.inference.engine import Delta, Engine, Ticket
from xmodel.inference.sampling import Sampling
from xmodel.inference.subjects import Subject
from xmodel.inference.templates import NAMES, chat_prompt, chat_stops
from xmodel.inference.text import encode_prompt


class ModelPartner:
    """What session.Partner asks for."""

    def __init__(self, subject: Subject, engine: Engine, *, raw: bool = False) -> None:
        """`raw`: no frame around turns; the model continues the whole conversation as one text."""
        self.subject, self.engine, self.verbatim = subject, engine, raw
        self.name: str = subject.name
        self.context: int = subject.model.config.context_length

    def introduction(self, say: Words) -> list[str]:
        """What model it is, and how turns are framed."""
        about = self.subject.about
        title = say(
            "title",
            name=self.name,
            parameters=count(about["parameters"]),
            dtype=about["dtype"],
            device=about["device"],
            context=self.context,
        )
        if self.verbatim:
            return [title, say("raw")]
        return [title, say("base", **FRAMES) if self.stops() else say("chat")]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids that the model continues."""
        if self.verbatim:
            text = "".join(message["content"] for message in messages)
            return encode_prompt(self.subject.tokenizer, text, self.subject.bos)
        return chat_prompt(self.subject, messages)

    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer: the next turn of a base model's frame."""
        return () if self.verbatim else chat_stops(self.subject)

    def start(self, prompt: list[int], settings: Sampling, deliver: Callable[[Delta], None]) -> Ticket:
        """Ask the engine for an answer."""
        return self.engine.submit(prompt, settings, deliver)

    def stop(self, ticket: Ticket) -> None:
        """Have the engine end it."""
        self.engine.cancel(ticket)

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none for ids of the model that the tokenizer does not have."""
        pieces = self.subject.tokenizer.pieces
        return pieces[token] if token < len(pieces) else b""


FRAMES = {language: f"“{names['user']}… {names['assistant']}”" for language, names in NAMES.items()}
