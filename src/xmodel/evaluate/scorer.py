"""The engine under every score: log-likelihoods of continuations, as lm-evaluation-harness defines them, but fast.

What makes it fast: the continuations of one context share its computation, only scored positions reach the output head,
and batches are filled by a budget of tokens with requests of like length.

Legend of the shape suffixes: B rows of a batch, T tokens of a row, N scored positions, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from xmodel.errors import UserError
from xmodel.model.transformer import KVCache, Transformer

BUDGET = 8_192  # tokens of a batch, padding included
HEAD_VALUES = 2**24  # logits in memory at a time

Request = tuple[Sequence[int], Sequence[int]]


class Score(NamedTuple):
    """Of one continuation."""

    logprob: float  # sum over its tokens, nats
    greedy: bool  # whether greedy decoding of the context would produce it


class Row(NamedTuple):
    """A request, cut to the model's context."""

    number: int  # place among the requests
    context: tuple[int, ...]
    continuation: tuple[int, ...]


@torch.no_grad()
def loglikelihood(
    model: Transformer,
    requests: Sequence[Request],
    *,
    budget: int = BUDGET,
    done: Callable[[int], object] = lambda count: None,
) -> list[Score]:
    """log P(continuation | context) of every request, in the order of the requests.

    A request longer than the model's context loses tokens at its left (`truncated` counts them), as in
    lm-evaluation-harness. Results do not depend on the budget or on the order, up to rounding.

    Args:
        requests: (context ids, continuation ids); a context has at least one token: <s>, or the </s> before a document.
        budget: tokens of a batch; memory for keys and values grows with it.
        done: called with the number of requests that each batch has finished.

    Raises:
        UserError: an empty context or continuation, a continuation longer than the model's context, or log-likelihoods
            that are not finite.
    """
    limit = model.config.context_length
    rows = [_fit(number, *request, limit) for number, request in enumerate(requests)]
    scores: list[Score] = [Score(0.0, False)] * len(rows)
    for batch in _batches(rows, budget):
        for row, score in zip(batch, _score(model, batch), strict=True):
            scores[row.number] = score
        done(len(batch))
    if not np.isfinite([score.logprob for score in scores]).all():
        raise UserError("the model gives log-likelihoods that are not finite: its weights are damaged or have diverged")
    return scores


def truncated(model: Transformer, requests: Sequence[Request]) -> int:
    """How many requests are longer than the model's context, and so lose the beginning of their context."""
    limit = model.config.context_length
    return sum(len(context) + len(continuation) - 1 > limit for context, continuation in requests)


def target_logprobs(model: Transformer, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """log P of each target (float32, [N]) and whether it is the likeliest token (bool, [N]).

    The softmax is computed in float32, a chunk of positions at a time.
    """
    logprobs, greedy = [], []
    size = max(1, HEAD_VALUES // model.config.vocab_size)
    for hidden, targets in zip(hidden_ND.split(size), targets_N.split(size), strict=True):
        logits_NV = model.head(hidden).float()
        target_logits = logits_NV.gather(1, targets.unsqueeze(1)).squeeze(1)
        logprobs.append(target_logits - logits_NV.logsumexp(1))
        greedy.append(logits_NV.argmax(1) == targets)
    return torch.cat(logprobs), torch.cat(greedy)


def _fit(number: int, context: Sequence[int], continuation: Sequence[int], limit: int) -> Row:
    if not len(context) or not len(continuation):
        raise UserError(f"request {number}: the context and the continuation need at least one token each")
    if len(continuation) > limit:
        raise UserError(
            f"request {number}: a continuation of {len(continuation)} tokens is longer than the context, {limit}"
        )
    surplus = max(0, len(context) + len(continuation) - 1 - limit)  # the last token is predicted, never read
    return Row(number, tuple(context[surplus:]), tuple(continuation))


def _batches(rows: Sequence[Row], budget: int) -> Iterator[list[Row]]:
    """Rows in batches of like context length, equal contexts together, the longest first (so memory fails early)."""
    batch: list[Row] = []
    longest = 0
    for row in sorted(rows, key=lambda row: (len(row.context), row.context, len(row.continuation)), reverse=True):
        grown = max(longest, len(row.context) + len(row.continuation))
        apart = batch and len(row.context) < 0.95 * len(batch[0].context) - 2
        if batch and (apart or grown * (len(batch) + 1) > budget):
            yield batch
            batch, grown = [], len(row.context) + len(row.continuation)
        batch.append(row)
        longest = grown
    if batch:
        yield batch


def _score(model: Transformer, batch: Sequence[Row]) -> list[Score]:
    """One batch. Padding is at the right, where causal attention cannot see it.

    The first `past` tokens of the contexts go through the model once for each different context. Since `past` is the
    same in all rows, no row needs a mask of its own; it is less than every context's length, so the rest of each row
    still holds the position that predicts its first scored token.
    """
    device = model.rotary.device
    contexts = list(dict.fromkeys(row.context for row in batch))
    shared = len(contexts) < len(batch)
    past = min(map(len, contexts)) - 1 if shared else 0
    inputs = [(row.context + row.continuation)[past:-1] for row in batch]
    tokens_BT = np.zeros((len(batch), max(map(len, inputs))), np.int64)
    for row, ids in zip(tokens_BT, inputs, strict=True):
        row[: len(ids)] = ids

    cache = None
    if past:
        prefix = KVCache(model.config, len(contexts), past, model.compute_dtype, device)
        model.hidden(torch.tensor([context[:past] for context in contexts], device=device), prefix)
        place = {context: index for index, context in enumerate(contexts)}
        index_B = torch.tensor([place[row.context] for row in batch], device=device)
        cache = KVCache(model.config, len(batch), past + tokens_BT.shape[1], model.compute_dtype, device)
        cache.keys_LBKSC[:, :, :, :past] = prefix.keys_LBKSC[:, index_B]
        cache.values_LBKSC[:, :, :, :past] = prefix.values_LBKSC[:, index_B]
        cache.length = past
    hidden_BTD = model.hidden(torch.from_numpy(tokens_BT).to(device), cache)

    lengths = [len(row.continuation) for row in batch]
    starts = [len(row.context) - 1 - past for row in batch]
    rows_N = np.repeat(np.arange(len(batch)), lengths)
    columns_N = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
    targets_N = np.concatenate([np.asarray(row.continuation, np.int64) for row in batch])
    hidden_ND = hidden_BTD[torch.from_numpy(rows_N).to(device), torch.from_numpy(columns_N).to(device)]
    logprobs_N, greedy_N = target_logprobs(model, hidden_ND, torch.from_numpy(targets_N).to(device))
    sums = [part.sum().item() for part in logprobs_N.double().cpu().split(lengths)]
    return [Score(total, bool(part.all())) for total, part in zip(sums, greedy_N.cpu().split(lengths), strict=True)]
