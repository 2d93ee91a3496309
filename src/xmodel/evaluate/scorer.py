"""The engine under every score: log-likelihoods of continuations, as lm-evaluation-harness defines them, but fast.

What makes it fast: whatever requests have in common at their beginning is computed once (few-shot examples, a question
before its choices; see `inference/prefixes.py`), each scored position reaches the output head once, however many
continuations are read off it, and rows are packed full under a budget of tokens.

Legend of the shape suffixes: B rows of a batch, T tokens of a row, N scored tokens, U scored positions, D hidden width,
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xmodel.errors import UserError
from xmodel.inference.prefixes import Prefix, Rows, Texts, Tree, divide, lay_out, masks, pack, sort_texts
from xmodel.model.cache import KVCache, Layout, Shared, Span

BUDGET = 8_192  # tokens of a batch, padding included
HEAD_VALUES = {"cpu": 2**21, "cuda": 2**24}  # logits at a time: on a CPU they stay in its cache

Request = tuple[Sequence[int], Sequence[int]]


class Costs(NamedTuple):
    """What is worth doing on a device; all in tokens."""

    budget: int  # of a batch, padding included
    tree: int  # branches of so many tokens share a row with their trunk; attention computes them against each other
    worth: int  # a prefix that saves so many is computed apart and cached
    cells: int  # keys of the rows under a cached prefix, where each holds a copy of it
    cascade: bool  # whether rows read a cached prefix where it lies, if the model can do that


COSTS = {"cpu": Costs(1_024, 256, 256, 32_768, True), "cuda": Costs(65_536, 1_024, 4_096, 524_288, False)}


class TooLong(UserError):
    """A continuation that the model's context cannot hold: this model cannot be asked."""


class Score(NamedTuple):
    """Of one continuation."""

    logprob: float  # sum over its tokens, nats
    greedy: bool  # whether greedy decoding of the context would produce it


@torch.no_grad()
def loglikelihood(
    model: Any,
    requests: Sequence[Request],
    *,
    budget: int | None = None,
    done: Callable[[int], object] = lambda count: None,
) -> list[Score]:
    """log P(continuation | context) of every request, in the order of the requests.

    A request longer than the model's context loses tokens at its left (`truncated` counts them), as in
    lm-evaluation-harness. Results do not depend on the budget or on the order, up to rounding.

    Args:
        model: a `Transformer`, or an `HfModel`.
        requests: (context ids, continuation ids); a context has at least one token: <s>, or the </s> before a document.
        budget: tokens of a batch; memory for keys and values grows with it. None: what suits the device.
        done: called with the number of requests that each batch has finished.

    Raises:
        UserError: an empty context or continuation, a continuation longer than the model's context (TooLong), or
            log-likelihoods that are not finite.
    """
    if not requests:
        return []
    costs = COSTS.get(model.device.type, COSTS["cuda"])
    if not getattr(model, "branches", True):
        costs = costs._replace(tree=0, worth=2**62)
    if budget is not None:
        costs = costs._replace(budget=budget, tree=min(costs.tree, budget))
    engine = _Engine(model, requests, costs, done)
    engine.descend(divide(engine.texts, costs.tree, costs.worth))
    return engine.scores()


def truncated(model: Any, requests: Sequence[Request]) -> int:
    """How many requests are longer than the model's context, and so lose the beginning of their context."""
    limit = model.config.context_length
    return sum(len(context) + len(continuation) - 1 > limit for context, continuation in requests)


def target_logprobs(model: Any, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """log P of each target (float32, [N]) and whether it is the likeliest token (bool, [N]).

    The softmax is computed in float32, a chunk of positions at a time.
    """
    return _read_off(model, hidden_ND, np.arange(len(targets_N)), targets_N)


def _read_off(model: Any, hidden_UD: Tensor, rows_N: np.ndarray, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """`target_logprobs` where target n follows position rows_N[n], in ascending order."""
    logprobs, greedy = [], []
    size = max(1, HEAD_VALUES.get(hidden_UD.device.type, HEAD_VALUES["cuda"]) // model.config.vocab_size)
    cuts = np.searchsorted(rows_N, np.arange(0, len(hidden_UD) + size, size)).tolist()
    for chunk, hidden in enumerate(hidden_UD.split(size)):
        first, last = cuts[chunk], cuts[chunk + 1]
        logprobs_UV = F.log_softmax(model.head(hidden), 1, dtype=torch.float32)
        rows = on_device(rows_N[first:last] - chunk * size, hidden.device)
        targets = targets_N[first:last]
        logprobs.append(logprobs_UV[rows, targets])
        greedy.append(logprobs_UV.argmax(1)[rows] == targets)
    return torch.cat(logprobs), torch.cat(greedy)


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """An array on the device; a GPU goes on with its queue meanwhile, and the host does not wait for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class Asked(NamedTuple):
    """A request's scored tokens in the text that holds it."""

    request: int
    first: int  # the position that predicts its first token
    targets: np.ndarray


class _Engine:
    """The requests of one call, as texts with what is asked of each."""

    def __init__(self, model: Any, requests: Sequence[Request], costs: Costs, done: Callable[[int], object]) -> None:
        self.model, self.costs, self.done = model, costs, done
        self.cascade = costs.cascade and getattr(model, "cascades", False)
        self.count = len(requests)
        self.texts, self.asked = _gather(requests, model.config.context_length)
        self.order: list[int] = []  # requests as they are scored
        self.lengths: list[int] = []  # tokens of each
        self.logprobs: list[Tensor] = []
        self.greedy: list[Tensor] = []

    def descend(self, prefix: Prefix, stem: Any = None) -> None:
        """Score all below a prefix, whose tokens are in `stem`: one row, rewound for one branch after another."""
        self._score(prefix, stem)
        for child in prefix.below:
            if stem is None:
                stem = self.model.new_cache(1, max(_deepest(node) for node in prefix.below))
            stem.length = child.start
            ids = self.texts.ids[child.text][child.start : child.end]
            self.model.hidden(on_device(ids[None], self.model.device), stem)
            self.descend(child, stem)

    def scores(self) -> list[Score]:
        """The outcome in the order of the requests. The only place that waits for the device."""
        logprobs_N = torch.cat(self.logprobs).double().cpu().numpy()
        greedy_N = torch.cat(self.greedy).cpu().numpy()
        starts = np.cumsum([0, *self.lengths[:-1]])
        sums = np.add.reduceat(logprobs_N, starts)
        if not np.isfinite(sums).all():
            raise UserError(
                "the model gives log-likelihoods that are not finite: its weights are damaged or have diverged"
            )
        alike = np.logical_and.reduceat(greedy_N, starts)
        found: list[Score] = [Score(0.0, False)] * self.count
        for request, total, greedy in zip(self.order, sums.tolist(), alike.tolist(), strict=True):
            found[request] = Score(total, greedy)
        return found

    def _score(self, prefix: Prefix, stem: Any) -> None:
        """The trees right behind a prefix, in batches."""
        start = prefix.end
        if self.cascade:
            shared = [Shared(stem, start)] if stem and start else []
            for batch in _cut(prefix.trees, self.costs.budget):
                self._run_packed(batch, start, shared)
        elif not stem or not start:
            for batch in pack(prefix.trees, self.costs.budget):
                self._run_rows(batch, 0, None)
        else:
            self._score_copies(prefix, stem)

    def _score_copies(self, prefix: Prefix, stem: Any) -> None:
        """Every row of a batch holds the prefix."""
        start = prefix.end
        width = max([256, *(tree.size for tree in prefix.trees)])  # small trees side by side: fewer copies
        rows = max(1, self.costs.cells // (start + width))
        batches = list(pack(prefix.trees, self.costs.budget, min(width, 256), rows))
        if not batches:
            return
        cache = self.model.new_cache(max(map(len, batches)), start + width)
        cache.fill(stem, start)
        for batch in batches:
            held = cache.first_rows(len(batch))
            held.length = start
            self._run_rows(batch, start, held)

    def _run_packed(self, batch: list[Tree], start: int, shared: list[Shared]) -> None:
        device, dtype = self.model.device, self.model.compute_dtype
        rows = lay_out(self.texts, [batch], start)
        spans = []
        for _, first, last, seen_TT in rows.trees:
            bias_TT = None
            if seen_TT is not None:
                bias_TT = torch.zeros(seen_TT.shape, dtype=dtype)
                bias_TT.masked_fill_(torch.from_numpy(~seen_TT), -math.inf)
            spans.append(Span(first, last, bias_TT))
        layout = Layout(on_device(rows.positions_BT, device), spans=spans, shared=shared)
        self._keep(rows, start, self.model.hidden(on_device(rows.tokens_BT, device), layout=layout))

    def _run_rows(self, batch: list[list[Tree]], start: int, cache: KVCache | None) -> None:
        device = self.model.device
        rows = lay_out(self.texts, batch, start)
        layout, seen_BTS = None, masks(rows, start)
        if seen_BTS is not None:
            layout = Layout(on_device(rows.positions_BT, device), on_device(seen_BTS, device).unsqueeze(1))
        self._keep(rows, start, self.model.hidden(on_device(rows.tokens_BT, device), cache, layout))

    def _keep(self, rows: Rows, start: int, hidden_BTD: Tensor) -> None:
        """Read off what is asked for in a batch."""
        device = self.model.device
        width = rows.tokens_BT.shape[1]
        places, targets, requests = [], [], []
        for text, (row, path) in rows.places.items():
            for span in self.asked[text]:
                at = span.first - start
                places.append(row * width + path[at : at + len(span.targets)])
                targets.append(span.targets)
                requests.append(span.request)
        places_N, targets_N = np.concatenate(places), np.concatenate(targets)
        wanted_U, back_N = np.unique(places_N, return_inverse=True)
        order_N = np.argsort(back_N, kind="stable")
        inverse_N = np.argsort(order_N, kind="stable")
        hidden_UD = hidden_BTD.flatten(0, 1)[on_device(wanted_U, device)]
        logprobs_N, greedy_N = _read_off(self.model, hidden_UD, back_N[order_N], on_device(targets_N[order_N], device))
        inverse_N = on_device(inverse_N, device)
        self.logprobs.append(logprobs_N[inverse_N])
        self.greedy.append(greedy_N[inverse_N])
        self.order += requests
        self.lengths += [len(part) for part in targets]
        self.done(len(requests))


def _cut(trees: Sequence[Tree], budget: int) -> Iterator[list[Tree]]:
    """Trees one behind the other, in batches of at most `budget` tokens; a single tree may have more."""
    batch: list[Tree] = []
    size = 0
    for tree in trees:
        if batch and size + tree.size > budget:
            yield batch
            batch, size = [], 0
        batch.append(tree)
        size += tree.size
    if batch:
        yield batch


def _deepest(prefix: Prefix) -> int:
    return max([prefix.end, *(_deepest(node) for node in prefix.below)])


def _gather(requests: Sequence[Request], limit: int) -> tuple[Texts, list[list[Asked]]]:
    """The distinct texts of all requests, none the beginning of another, and what is asked of each."""
    inputs, asked = [], []
    for number, (context, continuation) in enumerate(requests):
        if not len(context) or not len(continuation):
            raise UserError(f"request {number}: the context and the continuation need at least one token each")
        if len(continuation) > limit:
            raise TooLong(
                f"request {number}: a continuation of {len(continuation)} tokens is longer than the context, {limit}"
            )
        targets = np.asarray(continuation, np.int64)
        ids = np.concatenate([np.asarray(context, np.int64), targets[:-1]])  # the last is predicted, never read
        ids = ids[-limit:]
        inputs.append(ids)
        asked.append(Asked(number, len(ids) - len(targets), targets))
    order, shared = sort_texts(inputs)
    texts: list[np.ndarray] = []
    kept_shared: list[int] = []
    kept: list[list[Asked]] = []
    for place, number in enumerate(order.tolist()):
        if place and shared[place] == len(texts[-1]):  # goes on where the text before ends: takes its place
            texts[-1] = inputs[number]
            kept[-1].append(asked[number])
            continue
        texts.append(inputs[number])
        kept_shared.append(int(shared[place]))
        kept.append([asked[number]])
    free = np.array([min(span.first for span in found) for found in kept], np.int64)
    return Texts(texts, np.array(kept_shared, np.int64), free), kept
