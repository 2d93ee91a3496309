"""A partner whose answers are written down; run as a script, a chat with it on whatever this process has for a terminal."""

from __future__ import annotations

import argparse
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import log
from typing import NamedTuple

from xmodel.chat.session import Message
from xmodel.chat.words import Words
from xmodel.inference.sampling import Sampling


class Token(NamedTuple):
    id: int
    text: bytes
    logprob: float | None
    top: list[tuple[int, float]]


class Delta(NamedTuple):
    text: str
    tokens: list[Token]
    finish: str | None
    new_tokens: int


@dataclass
class Scripted:
    """Says the next of its answers word by word, Chinese by characters; "=" says what it was told. A token is a character."""

    answers: Iterable[str] = ()
    context: int = 10_000
    verbatim: bool = False
    delay: float = 0.0
    finish: str = "stop"
    name: str = "scripted"
    asked: list[tuple[str, Sampling]] = field(default_factory=list)  # prompts, and the settings that came with them

    def __post_init__(self) -> None:
        self._answers = iter(self.answers)

    def introduction(self, say: Words) -> list[str]:
        return [say("title", name=self.name, parameters="3", dtype="fp32", device="cpu", context=self.context)]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        frame = "" if self.verbatim else "{}:"
        return [ord(c) for m in messages for c in frame.format(m["role"][0]) + m["content"]]

    def stops(self) -> tuple[str, ...]:
        return ("u:",)

    def piece(self, token: int) -> bytes:
        return chr(token).encode()

    def start(self, prompt: list[int], settings: Sampling, deliver: Callable[[Delta], None]) -> threading.Event:
        settings.check()
        said = "".join(map(chr, prompt))
        self.asked.append((said, settings))
        answer, ended = next(self._answers), threading.Event()
        answer = said.rsplit("u:", 1)[-1] if answer == "=" else answer
        threading.Thread(target=self._speak, args=(answer, ended, deliver), daemon=True).start()
        return ended

    def stop(self, ticket: threading.Event) -> None:
        ticket.set()

    def _speak(self, answer: str, ended: threading.Event, deliver: Callable[[Delta], None]) -> None:
        count = 0
        for piece in re.findall(r"[!-~]* |[!-~]+|[^ -~]", answer):
            time.sleep(self.delay)
            if ended.is_set():
                break
            count += 1
            rival = [(ord(piece[0]), log(0.5)), (ord("中"), log(0.125))]
            deliver(Delta(piece, [Token(ord(piece[0]), piece.encode(), log(0.5), rival)], None, count))
        deliver(Delta("", [], "cancelled" if ended.is_set() else self.finish, count))


if __name__ == "__main__":
    from xmodel.chat.talk import talk

    parser = argparse.ArgumentParser()
    parser.add_argument("answers", nargs="*")
    parser.add_argument("--language", default="en")
    parser.add_argument("--delay", type=float, default=0.0)
    given = parser.parse_args()
    talk(Scripted(given.answers, delay=given.delay), Sampling(), Words(given.language))
