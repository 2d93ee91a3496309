"""Tokens of an answer to text that can be shown at once: whole characters, and nothing that may belong to a stop."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, NamedTuple


class Token(NamedTuple):
    """One new token of an answer.

    Attributes:
        id: in the vocabulary.
        text: the UTF-8 bytes that it stands for; perhaps a part of a character.
        logprob: log-probability by the model's own logits; None when it was not asked for.
        top: the likeliest tokens with theirs.
    """

    id: int
    text: bytes
    logprob: float | None
    top: list[tuple[int, float]]


class AnswerText:
    """The text of one answer, as its tokens come.

    A stop text ends the answer with the character that completes it, wherever tokens begin and end. What may be the
    beginning of one is held back until that is settled.

    Attributes:
        stopped: whether a stop text was found; nothing more is to be pushed.
    """

    def __init__(self, pieces: Sequence[bytes], stops: Sequence[str] = (), keep_tokens: bool = False) -> None:
        """`keep_tokens`: give the tokens too, each with the text that it belongs to."""
        self.pieces, self.stops, self.keep_tokens = pieces, stops, keep_tokens
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # characters that were not given yet
        self._given = 0  # bytes of the text that was given
        self._end = 0  # bytes of all tokens
        self._tokens: list[tuple[int, Token]] = []  # where each begins, and it

    def push(self, token: int, logprob: float | None = None, top: list[tuple[int, float]] | None = None) -> None:
        """Add a token; `take` gives what can be shown."""
        piece = self.pieces[token] if token < len(self.pieces) else b""  # a model may have more ids than pieces
        if self.keep_tokens:
            self._tokens.append((self._end, Token(token, piece, logprob, top or [])))
        self._end += len(piece)
        self._add(self._decoder.decode(piece))

    def finish(self) -> None:
        """No token follows: a character that stayed incomplete becomes U+FFFD, and nothing is held back any more."""
        if not self.stopped:
            self._add(self._decoder.decode(b"", final=True))

    def take(self, last: bool = False) -> tuple[str, list[Token]]:
        """What can be shown and was not taken yet: text, and the tokens that begin in it or before.

        Args:
            last: take all that is there; after `finish`, or a stop.
        """
        kept = 0 if last or self.stopped else self._hold()
        text, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        self._given += len(text.encode())
        if last and not self.stopped:
            tokens, self._tokens = self._tokens, []
        else:
            count = sum(start < self._given for start, _ in self._tokens)  # they are in order
            tokens, self._tokens = self._tokens[:count], self._tokens[count:]
        return text, [token for _, token in tokens]

    def _add(self, text: str) -> None:
        self._held += text
        found = [(place + len(stop), place) for stop in self.stops if (place := self._held.find(stop)) >= 0]
        if found:  # the one that is complete first, so that it does not matter how tokens cut the text
            self._held = self._held[: min(found)[1]]
            self.stopped = True

    def _hold(self) -> int:
        """Characters at the end that may be the beginning of a stop text."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for count in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self.stops):
                return count
        return 0


def encode_prompt(tokenizer: Any, prompt: str, bos: bool) -> list[int]:
    """Token ids of a prompt, behind what stood before every text in training: <s>, or the </s> of the one before."""
    return [tokenizer.bos_id if bos else tokenizer.eos_id, *tokenizer.encode(prompt)]
