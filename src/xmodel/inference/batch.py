"""Texts that are being continued together: each has a row of one key/value cache, and its own place in its text.

A prompt goes through the model alone, in chunks that begin at multiples of `CHUNK`, so that its keys and values depend
on nothing but itself. In a decoding step every row takes one token, at its own position.

Matrix products give a row the same bits for any number of rows from `LEAST` on, and attention for any number of masked
keys as long as the number of keys is a multiple of `SPAN`: decoding steps keep to both.

Legend of the shape suffixes: R rows that are going on, T tokens, S cached tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from xmodel.model.cache import Layout, Shared

CHUNK = 256  # tokens of a prompt that go through the model at once
LEAST = 4
SPAN = 64


class Row:
    """A text that is being continued.

    Attributes:
        length: tokens of it that are cached.
        stem, behind: the first `behind` of them stand in the only row of the cache `stem`, not in the text's own row.
        last: the newest token, which the cache does not hold yet.
    """

    def __init__(self, prompt: Sequence[int], room: int) -> None:
        self.prompt, self.room = prompt, room
        self.length, self.last = 0, -1
        self.stem: Any = None
        self.behind = 0
        self.own: Any = None  # the cache of a prompt that is not finished


AnyRow = TypeVar("AnyRow", bound=Row)


class Batch(Generic[AnyRow]):
    """Rows of one cache. Everything runs without gradients; one thread at a time.

    Texts with a common beginning may leave it in a cache of its own (`Row.stem`); every step then reads it once for all
    of them.
    """

    def __init__(self, model: Any, rows: int, capacity: int) -> None:
        """Room for `rows` texts of at most `capacity` tokens each, answers included."""
        self.model, self.rows = model, rows
        self.capacity = -(-capacity // SPAN) * SPAN
        # Steps that `fast.prepare` made ours give a row the same bits in any company, alone too.
        self.least = LEAST if getattr(model, "decoder", None) is None else 1
        self.cache = model.new_cache(max(rows, self.least), self.capacity)
        self.going: list[AnyRow] = []  # row i of the cache belongs to going[i]

    @torch.no_grad()
    def prefill(self, row: AnyRow) -> Tensor | None:
        """Run the next chunk of a prompt; with the last one, give the row its place and return the logits, [V]."""
        model, start = self.model, row.length
        ids = list(row.prompt[start : start + CHUNK])
        if row.own is None:
            row.own = model.new_cache(1, len(row.prompt))
        hidden_BTD = model.hidden(torch.tensor([ids], device=model.device), row.own)
        row.length += len(ids)
        if row.length < len(row.prompt):
            return None
        self.join([row], row.own)
        row.own = None
        return model.head(hidden_BTD[0, -1:])[0]

    def join(self, rows: Sequence[AnyRow], own: Any) -> None:
        """Take texts in whose keys and values are the rows of another cache."""
        others_N = torch.arange(len(rows), device=self.cache.device)
        self.cache.copy_rows(len(self.going) + others_N, own, others_N, own.length)
        self.going += rows

    def join_packed(self, rows: Sequence[AnyRow], own: Any, cuts: Sequence[int]) -> None:
        """Take texts in that stand one behind the other in the only row of another cache, cut where `cuts` says."""
        for row, (first, last) in zip(rows, pairwise(cuts), strict=True):
            self.cache.copy_columns(len(self.going), own, first, last)
            self.going.append(row)

    @torch.no_grad()
    def step(self) -> Tensor:
        """Run the newest token of every row; the logits [R, V] of what follows it."""
        device, count = self.model.device, len(self.going)
        spare = max(0, self.least - count)  # rows that nobody has: their results are not looked at
        ends = [row.length - row.behind for row in self.going]
        ends_R = torch.tensor(ends + [0] * spare, device=device)
        positions_R = torch.tensor([row.length for row in self.going] + [0] * spare, device=device)
        tokens_RT = torch.tensor([[row.last] for row in self.going] + [[0]] * spare, device=device)
        length = -(-(max(ends) + 1) // SPAN) * SPAN
        seen_RS = torch.arange(length, device=device) <= ends_R[:, None]
        layout = Layout(positions_R[:, None], seen_RS[:, None, None], ends_R[:, None], shared=self._shared())
        hidden_RTD = self.model.hidden(tokens_RT, self.cache.first_rows(count + spare), layout)
        for row in self.going:
            row.length += 1
        return self.model.head(hidden_RTD[:, -1])[:count]

    def _shared(self) -> list[Shared]:
        """The common beginnings of the rows, and which rows have each."""
        places: dict[int, list[int]] = {}
        for place, row in enumerate(self.going):
            if row.stem is not None:
                places.setdefault(id(row.stem), []).append(place)
        found = []
        for rows in places.values():
            first = self.going[rows[0]]
            found.append(Shared(first.stem, first.behind, torch.tensor(rows, device=self.cache.device)))
        return found

    def remove(self, row: AnyRow) -> None:
        """Free a row; the last row moves to its place, so that those going on stay the first rows of the cache."""
        if row not in self.going:
            row.own = None
            return
        place, last = self.going.index(row), len(self.going) - 1
        if place != last:
            here, there = (torch.tensor([number], device=self.cache.device) for number in (place, last))
            moved = self.going[last]
            self.cache.copy_rows(here, self.cache, there, moved.length - moved.behind)
            self.going[place] = moved
        self.going.pop()
