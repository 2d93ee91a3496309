"""How the next token is chosen from logits: one request's choices, and one function for all rows of a step.

The order is that of transformers: penalties, temperature, top-k, top-p, min-p. Every request draws from a random
generator of its own, one number for each token, on the CPU: a seed means the same whatever the device, and whatever
runs beside the request.

Legend of the shape suffixes: R rows, V vocabulary, N tokens that may be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xmodel.inference.sampling import Sampling

NUCLEUS = 256  # so many of the likeliest tokens are looked at before all are sorted for top_p


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
