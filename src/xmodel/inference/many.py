"""Many prompts at once: each has a row of one cache, and a row that is done takes the next prompt.

Prompts go through the model in batches of their own (what they have in common at their beginning once, see
prefixes.py); their keys and values are then copied to a free row. In a decoding step every row takes one token, at its
own position: rows need not be equally long, and no step is spent on a row that is done.

Legend of the shape suffixes: R rows that are going on, B rows of a batch of prompts, T tokens, S cached tokens,
D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xmodel.errors import UserError
from xmodel.inference.batch import Batch, Row
from xmodel.inference.generate import EOS
from xmodel.inference.prefixes import Prefix, Texts, Tree, divide, lay_out, sort_texts
from xmodel.inference.sampler import Sampler, pick
from xmodel.inference.sampling import Sampling
from xmodel.model.cache import Layout, Shared, Span


class Costs(NamedTuple):
    """What is worth doing on a device."""

    rows: int  # at most
    cells: int  # key/value positions of all rows
    prompt_tokens: int  # of a batch of prompts, padding included
    worth: int  # a common beginning that saves so many tokens is computed apart
    cascade: bool  # whether rows read a common beginning where it lies, if the model can do that


COSTS = {"cpu": Costs(64, 131_072, 1_024, 256, True), "cuda": Costs(256, 1_048_576, 65_536, 4_096, False)}


class _Row(Row):
    """One of the prompts."""

    def __init__(self, number: int, prompt: Sequence[int], room: int, sampler: Sampler) -> None:
        super().__init__(prompt, room)
        self.number, self.sampler = number, sampler
        self.answer: list[int] = []


@torch.no_grad()
def generate_many(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    stop_ids: Collection[int] = (EOS,),
    stop_texts: Sequence[Sequence[str]] | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    budget: int | None = None,
    done: Callable[[int], object] = lambda count: None,
) -> list[list[int]]:
    """Continuations of many prompts, in the order of the prompts; each is what `generate` would give alone.

    Args:
        model: a `Transformer`, or an `HfModel`.
        max_new_tokens: for all, or of each prompt.
        stop_ids: tokens that end an answer and do not belong to it.
        stop_texts: of each prompt, texts that end its answer as soon as its decoded text holds one; the tokens that
            complete the text are kept, for the caller to cut.
        decode: ids to text; needed with `stop_texts`.
        temperature, top_k, top_p, seed: as for `generate`; every prompt has a random generator of its own, seeded with
            `seed` plus its place among the prompts.
        seeds: of each prompt the seed of its generator, instead.
        budget: key/value positions of all rows: memory. None: what suits the device.
        done: called with the number of prompts that have been answered since the last call.

    Raises:
        UserError: a setting out of range, an empty prompt, or one that does not leave room for its new tokens.
    """
    rooms = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    settings = Sampling(min(rooms, default=1), temperature, top_k, top_p)
    settings.check()
    limit = model.config.context_length
    for prompt, room in zip(prompts, rooms, strict=True):
        if not len(prompt) or len(prompt) + room > limit:
            raise UserError(
                f"a prompt of {len(prompt)} tokens and {room} new ones: a prompt has a token at least, and the model's "
                f"context holds {limit}"
            )
    if not prompts:
        return []
    costs = COSTS.get(model.device.type, COSTS["cuda"])
    finished = _Finished(frozenset(stop_ids), stop_texts, decode)
    rows = [
        _Row(number, prompt, room, Sampler(replace(settings, seed=seeds[number] if seeds else seed + number)))
        for number, (prompt, room) in enumerate(zip(prompts, rooms, strict=True))
    ]
    waiting = _Waiting(model, rows, costs)
    limit_rows = max(1, min(len(prompts), costs.rows, (budget or costs.cells) // waiting.capacity))
    batch: Batch[_Row] = Batch(model, limit_rows, waiting.capacity)
    while batch.held or waiting.left:
        if waiting.left and len(batch.held) < limit_rows:
            stepped, logits_RV = waiting.take(limit_rows - len(batch.held), batch)
        else:
            stepped, logits_RV = batch.going, batch.step()
        for row, choice in zip(stepped, pick(logits_RV, [row.sampler for row in stepped]), strict=True):
            if isinstance(choice, Exception):
                raise choice
            row.last = choice.token
        over = [row for row in stepped if finished(row)]
        for row in over:
            batch.remove(row)
        if over:
            done(len(over))
    return [row.answer for row in rows]


class _Finished:
    """Whether an answer ends with its newest token, which is added to it unless it is a stop id."""

    def __init__(
        self,
        stop_ids: frozenset[int],
        stop_texts: Sequence[Sequence[str]] | None,
        decode: Callable[[Sequence[int]], str] | None,
    ) -> None:
        if stop_texts is not None and decode is None:
            raise ValueError("stop_texts need decode")
        self.stop_ids, self.decode = stop_ids, decode
        self.texts = [[text for text in texts if text] for texts in stop_texts] if stop_texts else None
        longest = max((len(text.encode()) for texts in self.texts or () for text in texts), default=0)
        self.tail = 2 * longest + 8  # tokens that surely hold a stop text which the newest one completes

    def __call__(self, row: _Row) -> bool:
        if row.last in self.stop_ids:
            return True
        row.answer.append(row.last)
        return len(row.answer) >= row.room or self._says_stop(row)

    def _says_stop(self, row: _Row) -> bool:
        if self.texts is None or self.decode is None or not (stops := self.texts[row.number]):
            return False
        tail = self.decode(row.answer[-self.tail :])
        if not any(text in tail for text in stops):
            return False
        whole = self.decode(row.answer) if len(row.answer) > self.tail else tail
        return any(text in whole for text in stops)


class _Waiting:
    """The prompts that have no row yet: those with a common beginning together, the longest of them first.

    Attributes:
        left: how many.
        capacity: tokens that a row must hold.
    """

    def __init__(self, model: Any, rows: Sequence[_Row], costs: Costs) -> None:
        self.model, self.rows, self.costs = model, rows, costs
        self.cascade = costs.cascade and getattr(model, "cascades", False)
        texts = [np.asarray(row.prompt, np.int64) for row in rows]
        self.order, shared = sort_texts(texts)
        ids = [texts[number] for number in self.order]
        self.texts = Texts(ids, shared, np.array([len(text) - 1 for text in ids], np.int64))
        worth = costs.worth if getattr(model, "branches", True) else 2**62
        plan = divide(self.texts, -1, worth)
        self.groups = self._groups(plan, None)
        self.left = len(rows)
        self.group: tuple[int, Any, list[Tree]] = (0, None, [])
        self.capacity = max(
            (0 if self.cascade else tree.start) + tree.size + self._row(tree).room for tree in _trees(plan)
        )

    def take(self, count: int, batch: Batch[_Row]) -> tuple[list[_Row], Tensor]:
        """Run the next prompts, at most `count`, and give them rows of the batch; they and their next logits."""
        while not self.group[2]:
            self.group = next(self.groups)
        start, stem, trees = self.group
        count = min(count, len(trees), max(1, self.costs.prompt_tokens // trees[0].size))
        taken, self.group = trees[:count], (start, stem, trees[count:])
        self.left -= count
        rows = [self._row(tree) for tree in taken]
        for row, tree in zip(rows, taken, strict=True):
            row.length = start + tree.size
            if self.cascade and start:
                row.stem, row.behind = stem, start
        return rows, self.model.head((self._packed if self.cascade else self._padded)(taken, rows, batch))

    def _packed(self, taken: list[Tree], rows: list[_Row], batch: Batch[_Row]) -> Tensor:
        """Run prompts one behind the other; the hidden states of their last tokens, [B, D]."""
        start, stem, device = rows[0].behind, rows[0].stem, self.model.device
        laid = lay_out(self.texts, [taken], start)
        own = self.model.new_cache(1, laid.tokens_BT.shape[1])
        spans = [Span(tree.first, tree.last) for tree in laid.trees]
        shared = [Shared(stem, start)] if start else []
        layout = Layout(torch.from_numpy(laid.positions_BT).to(device), spans=spans, shared=shared)
        hidden_BTD = self.model.hidden(torch.from_numpy(laid.tokens_BT).to(device), own, layout)
        for row, (first, last) in zip(rows, pairwise([0, *(span.last for span in spans)]), strict=True):
            batch.join(row, own, 0, first, last)
        return hidden_BTD[0, torch.tensor([span.last - 1 for span in spans], device=device)]

    def _padded(self, taken: list[Tree], rows: list[_Row], batch: Batch[_Row]) -> Tensor:
        """Run prompts as rows that hold what they have in common themselves; as `_packed`."""
        (start, stem, _), device, count = self.group, self.model.device, len(taken)
        laid = lay_out(self.texts, [[tree] for tree in taken], start)
        own = self.model.new_cache(count, start + laid.tokens_BT.shape[1])
        if start:
            own.fill(stem, start)
        hidden_BTD = self.model.hidden(torch.from_numpy(laid.tokens_BT).to(device), own)
        for number, row in enumerate(rows):
            batch.join(row, own, number, 0, row.length)
        last_B = torch.tensor([tree.size - 1 for tree in taken], device=device)
        return hidden_BTD[torch.arange(count, device=device), last_B]

    def _row(self, tree: Tree) -> _Row:
        return self.rows[int(self.order[tree.first])]

    def _groups(self, prefix: Prefix, stem: Any) -> Iterator[tuple[int, Any, list[Tree]]]:
        """Prompts behind each prefix, with the cache that holds it."""
        if prefix.trees:
            yield prefix.end, stem, sorted(prefix.trees, key=lambda tree: -tree.size)
        for child in prefix.below:
            below = self.model.new_cache(1, child.end)
            if stem is not None:
                below.fill(stem, child.start)
            ids = self.texts.ids[child.text][child.start : child.end]
            self.model.hidden(torch.from_numpy(ids[None]).to(self.model.device), below)
            yield from self._groups(child, below)


def _trees(prefix: Prefix) -> list[Tree]:
    return [*prefix.trees, *(tree for child in prefix.below for tree in _trees(child))]
