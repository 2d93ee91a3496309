"""Texts that are being continued together: each has a row of one key/value cache, and its own place in its text.

A prompt goes through the model alone, in chunks that begin at multiples of `CHUNK`, so that its keys and values depend
on nothing but itself. In a decoding step every row takes one token, at its own position.

Matrix products give a row the same bits for any number of rows from `LEAST` on, and attention for any number of masked
keys as long as the number of keys is a multiple of `SPAN`: decoding steps keep to both.

Legend of the shape suffixes: R rows that are going on, T tokens, S cached tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from xmodel.model.cache import Layout

CHUNK = 256  # tokens of a prompt that go through the model at once
LEAST = 4
SPAN = 64


class Row:
    """A text that is being continued.

    Attributes:
        length: tokens of it that the cache holds.
        last: the newest token, which the cache does not hold yet.
    """

    def __init__(self, prompt: Sequence[int], room: int) -> None:
        self.prompt, self.room = prompt, room
        self.length, self.last = 0, -1
        self.own: Any = None  # the cache of a prompt that is not finished


AnyRow = TypeVar("AnyRow", bound=Row)


class Batch(Generic[AnyRow]):
    """Rows of one cache. Everything runs without gradients; one thread at a time."""

    def __init__(self, model: Any, rows: int, capacity: int) -> None:
        """Room for `rows` texts of at most `capacity` tokens each, answers included."""
        self.model, self.rows = model, rows
        self.capacity = -(-capacity // SPAN) * SPAN
        self.cache = model.new_cache(max(rows, LEAST), self.capacity)
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

    @torch.no_grad()
    def step(self) -> Tensor:
        """Run the newest token of every row; the logits [R, V] of what follows it."""
        device, count = self.model.device, len(self.going)
        spare = max(0, LEAST - count)  # rows that nobody has: their results are not looked at
        ends_R = torch.tensor([row.length for row in self.going] + [0] * spare, device=device)
        tokens_RT = torch.tensor([[row.last] for row in self.going] + [[0]] * spare, device=device)
        length = -(-(max(row.length for row in self.going) + 1) // SPAN) * SPAN
        seen_RS = torch.arange(length, device=device) <= ends_R[:, None]
        layout = Layout(ends_R[:, None], seen_RS[:, None, None], columns_BT=ends_R[:, None])
        hidden_RTD = self.model.hidden(tokens_RT, self.cache.first_rows(count + spare), layout)
        for row in self.going:
            row.length += 1
        return self.model.head(hidden_RTD[:, -1])[:count]

    def remove(self, row: AnyRow) -> None:
        """Free a row; the last row moves to its place, so that those going on stay the first rows of the cache."""
        if row not in self.going:
            row.own = None
            return
        place, last = self.going.index(row), len(self.going) - 1
        if place != last:
            here, there = (torch.tensor([number], device=self.cache.device) for number in (place, last))
            self.cache.copy_rows(here, self.cache, there, self.going[last].length)
            self.going[place] = self.going[last]
        self.going.pop()
