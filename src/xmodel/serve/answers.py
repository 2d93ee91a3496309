"""Answers in the shapes of OpenAI's API: whole as JSON, or piece by piece as server-sent events."""

from __future__ import annotations

import codecs
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from xmodel.inference.engine import Token
from xmodel.serve.errors import to_json

DONE = b"data: [DONE]\n\n"


class Shape:
    """How the answers of one request are written.

    Attributes:
        id: of the request, also in its header x-request-id.
    """

    def __init__(self, model: str, pieces: Sequence[bytes], *, chat: bool, logprobs: bool, usage: bool) -> None:
        """`pieces`: the bytes of each token id. `usage`: whether every event of a stream carries the field."""
        self.id = ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
        self._chat, self._pieces, self._logprobs = chat, pieces, logprobs
        self._head = {"id": self.id, "created": int(time.time()), "model": model}
        kind = "chat.completion.chunk" if chat else "text_completion"
        # Everything of an event that stays the same is made once.
        self._open = b"data: " + to_json(self._head | {"object": kind})[:-1] + b',"choices":['
        self._close = b'],"usage":null}\n\n' if usage else b"]}\n\n"

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> bytes:
        """The response that is not streamed."""
        kind = "chat.completion" if self._chat else "text_completion"
        return to_json(self._head | {"object": kind, "choices": choices, "usage": usage})

    def choice(self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str) -> dict[str, Any]:
        """One answer of such a response."""
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": finish}

    def opening(self, index: int) -> bytes:
        """The event before a chat's first text; nothing for completions."""
        return self._event(index, {"role": "assistant", "content": ""}, None, None) if self._chat else b""

    def piece(self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None) -> bytes:
        """The event with what is new of an answer."""
        if not self._chat:
            return self._event(index, text, logprobs, finish)
        return self._event(index, {"content": text} if text or logprobs else {}, logprobs, finish)

    def _event(self, index: int, said: Any, logprobs: dict[str, Any] | None, finish: str | None) -> bytes:
        name = "delta" if self._chat else "text"
        choice = f'{{"index":{index},"{name}":{json.dumps(said, ensure_ascii=False)}'
        odds = json.dumps(logprobs, ensure_ascii=False) if logprobs else "null"
        end = f'"{finish}"' if finish else "null"
        return self._open + f'{choice},"logprobs":{odds},"finish_reason":{end}}}'.encode() + self._close

    def usage(self, usage: dict[str, int]) -> bytes:
        """The event after the last answer's end that counts the tokens."""
        return self._open + b'],"usage":' + to_json(usage) + b"}\n\n"

    def logprobs(self, place: Place, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """The probabilities of tokens; None when they were not asked for. `place` moves on behind them."""
        if not self._logprobs:
            return None
        return self._chat_logprobs(tokens) if self._chat else self._plain_logprobs(place, tokens)

    def _piece(self, token: int) -> bytes:
        """The bytes of a token; a model may have more ids than its tokenizer has pieces."""
        return self._pieces[token] if token < len(self._pieces) else b""

    def _chat_logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        def entry(piece: bytes, logprob: float | None) -> dict[str, Any]:
            return {"token": piece.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(piece)}

        rows = [
            entry(token.text, token.logprob)
            | {"top_logprobs": [entry(self._piece(rival), logprob) for rival, logprob in token.top]}
            for token in tokens
        ]
        return {"content": rows, "refusal": None}

    def _plain_logprobs(self, place: Place, tokens: Sequence[Token]) -> dict[str, Any]:
        top = []
        for token in tokens:
            # Several control tokens share the empty text: the likeliest of them is named, and rivals come in order.
            named: dict[str, float | None] = {}
            for piece, logprob in [(self._piece(rival), logprob) for rival, logprob in token.top]:
                named.setdefault(_name(piece), _finite(logprob))
            named.setdefault(_name(token.text), _finite(token.logprob))
            top.append(named)
        return {
            "tokens": [_name(token.text) for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": top,
            "text_offset": [place.before(token.text) for token in tokens],
        }


class Place:
    """Where in an answer's text a token begins, in characters: a token may end within one."""

    def __init__(self, offset: int) -> None:
        """`offset`: of the answer's first character; not 0 where the prompt is echoed before it."""
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def before(self, piece: bytes) -> int:
        """The offset at which `piece` begins; it is behind it afterwards."""
        if piece and piece[0] & 0xC0 != 0x80:  # a character that was begun is not gone on with: U+FFFD stands for it
            self._offset += len(self._decoder.decode(b"", final=True))
        offset = self._offset
        self._offset += len(self._decoder.decode(piece))
        return offset


def _name(piece: bytes) -> str:
    """A token as text; one that is only a part of a character as `bytes:\\xe4\\xb8`, as OpenAI writes it."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _finite(logprob: float | None) -> float | None:
    """JSON has no infinity: a token that could not come has -9999, as in OpenAI's answers."""
    return None if logprob is None else max(logprob, -9999.0)
