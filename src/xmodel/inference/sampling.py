"""How the next token is chosen from logits: the settings of a request, and one function for all rows of a step.

The order is that of transformers: penalties, temperature, top-k, top-p, min-p. Every request draws from a random
generator of its own, one number for each token, on the CPU: a seed means the same whatever the device, and whatever
runs beside the request.

Legend of the shape suffixes: R rows, V vocabulary, N tokens that may be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xmodel.errors import UserError

MOST_LOGPROBS = 20
NUCLEUS = 256  # so many of the likeliest tokens are looked at before all are sorted for top_p


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


class Choice(NamedTuple):
    """A token that was chosen, with what `Sampling.logprobs` asks for."""

    token: int
    logprob: float | None = None
    top: list[tuple[int, float]] = []  # noqa: RUF012 - never changed


class Sampler:
    """Chooses the tokens of one request, one after another."""

    def __init__(self, settings: Sampling, prompt: Sequence[int] = ()) -> None:
        self.settings = settings
        self.generator: torch.Generator | None = None
        if settings.temperature > 0:
            self.generator = torch.Generator("cpu")
            if settings.seed is None:
                self.generator.seed()
            else:
                self.generator.manual_seed(settings.seed)
        self.repeated = set(prompt) if settings.repetition_penalty != 1 else None
        penalised = settings.frequency_penalty or settings.presence_penalty
        self.counts: dict[int, int] | None = {} if penalised else None

    @property
    def plain(self) -> bool:
        """Whether it takes the likeliest token and nothing else is asked for."""
        return (
            self.generator is None and self.repeated is None and self.counts is None and self.settings.logprobs is None
        )

    def choose(self, logits_V: Tensor) -> Choice:
        """Choose from one row of logits, float32 on the CPU."""
        scores_V = self._penalise(logits_V)
        token = int(scores_V.argmax()) if self.generator is None else self._draw(scores_V / self.settings.temperature)
        if self.repeated is not None:
            self.repeated.add(token)
        if self.counts is not None:
            self.counts[token] = self.counts.get(token, 0) + 1
        if self.settings.logprobs is None:
            return Choice(token)
        logs_V = logits_V.log_softmax(0)
        values, ids = logs_V.topk(min(self.settings.logprobs, len(logs_V)))
        return Choice(token, float(logs_V[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))

    def _penalise(self, logits_V: Tensor) -> Tensor:
        if self.repeated:
            logits_V = logits_V.clone()
            ids = torch.tensor(sorted(self.repeated))
            found, penalty = logits_V[ids], self.settings.repetition_penalty
            logits_V[ids] = torch.where(found > 0, found / penalty, found * penalty)
        if self.counts:
            logits_V = logits_V.clone()
            times = torch.tensor(list(self.counts.values()), dtype=torch.float32)
            less = times * self.settings.frequency_penalty + self.settings.presence_penalty
            logits_V[torch.tensor(list(self.counts))] -= less
        return logits_V

    def _draw(self, scaled_V: Tensor) -> int:
        """A token from the distribution that is left of softmax(scaled)."""
        settings, size = self.settings, len(scaled_V)
        count = min(settings.top_k or size, size)
        ids_N = None
        if count < size or settings.top_p < 1:
            part = count if count < size else min(NUCLEUS, size)
            scores_N, ids_N = scaled_V.topk(part)
            mass = scores_N.logsumexp(0) if count < size else scaled_V.logsumexp(0)
            if settings.top_p < 1:
                if count == size and float((scores_N - mass).exp().sum()) < settings.top_p:
                    scores_N, ids_N = scaled_V.sort(descending=True)
                chances_N = (scores_N - mass).exp()
                before_N = chances_N.cumsum(0) - chances_N  # of the likelier tokens: the first one always stays
                scores_N = scores_N[before_N < settings.top_p]
        else:
            scores_N = scaled_V
        if settings.min_p > 0:
            scores_N = scores_N.masked_fill(scores_N < scores_N.max() + math.log(settings.min_p), -torch.inf)
        sums_N = (scores_N - scores_N.max()).double().exp().cumsum(0)
        point = torch.rand(1, dtype=torch.float64, generator=self.generator) * sums_N[-1]
        place = min(int(torch.searchsorted(sums_N, point, right=True)), len(sums_N) - 1)
        return place if ids_N is None else int(ids_N[place])


def pick(logits_RV: Tensor, samplers: Sequence[Sampler]) -> list[Choice | Exception]:
    """The next token of every row; where choosing fails, what was raised: it concerns this row only."""
    if all(sampler.plain for sampler in samplers):
        return [Choice(token) for token in logits_RV.argmax(-1).tolist()]
    found: list[Any] = []
    for logits_V, sampler in zip(logits_RV.float().cpu(), samplers, strict=True):
        try:
            found.append(sampler.choose(logits_V))
        except Exception as error:
            found.append(error)
    return found
