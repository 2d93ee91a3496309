"""The settings of a request, and what is allowed of them. What they do to the logits: sampler.py.

Without torch, so that a command can refuse a wrong setting before it loads anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from xmodel.errors import UserError

MOST_LOGPROBS = 20


class SettingError(UserError):
    """A setting of a request that is out of range.

    Attributes:
        field: its name in `Sampling`, or "prompt".
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Sampling:
    """Settings of one request.

    Attributes:
        max_new_tokens: the answer ends after so many, or where the context is full.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it and a token is drawn.
        top_k: draw from the k likeliest tokens; 0: from all.
        top_p: draw from the fewest likeliest tokens whose probabilities reach p (arXiv 1904.09751); 1: from all.
        min_p: draw from tokens that have at least this share of the likeliest one's probability (arXiv 2407.01082).
        repetition_penalty: of tokens in prompt and answer: positive logits are divided by it, negative ones multiplied
            (arXiv 1909.05858); as transformers does.
        frequency_penalty, presence_penalty: taken off the logit of a token of the answer: for each time it stands
            there, and once; as OpenAI defines them.
        seed: of the request's own random generator: the same seed gives the same text. None: a new one.
        stop: texts that end the answer and do not belong to it.
        logprobs: None, or k: the log-probability of each token and of the k likeliest ones, by the model's own logits,
            before penalties and temperature.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def check(self) -> None:
        """Raise a SettingError for the first setting that is of a wrong type or out of range."""
        for name, kind, least, most, words in RANGES:
            value: Any = getattr(self, name)
            if value is None and name in ("seed", "logprobs"):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, kind)) or not least <= value <= most:
                raise SettingError(name, f"{name} is {value!r}; it has to be {words}")
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise SettingError("stop", f"stop is {self.stop!r}; it has to be texts, none of them empty")


MOST = 2.0**63 - 1
TINY = math.ulp(0.0)  # the least number above 0
RANGES: tuple[tuple[str, type[int] | type[float], float, float, str], ...] = (
    ("max_new_tokens", int, 1, MOST, "a whole number, at least 1"),
    ("temperature", float, 0, 1e6, "a number, 0 (greedy) or more"),
    ("top_k", int, 0, MOST, "a whole number, 0 (all tokens) or more"),
    ("top_p", float, TINY, 1, "a number above 0 and at most 1 (all tokens)"),
    ("min_p", float, 0, 1, "a number from 0 (all tokens) to 1"),
    ("repetition_penalty", float, TINY, 1e6, "a number above 0; 1 changes nothing"),
    ("frequency_penalty", float, -2, 2, "a number from -2 to 2"),
    ("presence_penalty", float, -2, 2, "a number from -2 to 2"),
    ("seed", int, -(2**63), 2**64 - 1, "a whole number of at most 64 bits"),
    ("logprobs", int, 0, MOST_LOGPROBS, f"a whole number from 0 to {MOST_LOGPROBS}"),
)
