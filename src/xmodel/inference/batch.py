"""Texts that are being continued together: each has cells of one key/value cache, and its own place in its text.

A prompt goes through the model alone, in chunks that begin at multiples of `CHUNK`, so that its keys and values depend
on nothing but itself. In a decoding step every row takes one token, at its own position.

What a step gives a row does not depend on the other rows, to the bit, where two things hold, and steps keep to both:
matrix products give a row the same bits for any number of rows from `LEAST` on, and attention for any number of masked
keys that makes a multiple of `SPAN`. Both were found true for float32 on CPUs; docs/generate.md says more.

Legend of the shape suffixes: R rows that are going on, B rows of a batch of prompts, T tokens, D hidden width,
V vocabulary.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from xmodel.model.cells import SPAN, Place, rounded

CHUNK = 256  # tokens of a prompt that go through the model at once
LEAST = 4


class Row:
    """A text that is being continued.

    Attributes:
        length: tokens of it that the cache holds.
        last: the newest token, which the cache does not hold yet.
        start, capacity: its cells, once a batch has taken it.
    """

    def __init__(self, prompt: Sequence[int], room: int) -> None:
        self.prompt, self.room = prompt, room
        self.length, self.last = 0, -1
        self.start, self.capacity = -1, 0

    @property
    def place(self) -> Place:
        """Where its keys and values are."""
        return Place(self.start, self.capacity, self.length)


AnyRow = TypeVar("AnyRow", bound=Row)


class Batch(Generic[AnyRow]):
    """Rows of one cache. It holds `cells` tokens, prompts and answers of all rows; one thread at a time may use it.

    Attributes:
        held: rows that have cells, in the order of these.
        going: those of them whose prompt is done.
    """

    def __init__(self, model: Any, cells: int, capacity: int | None = None) -> None:
        """`capacity`: all rows get so many cells; None: each what it needs, in few sizes."""
        self.model, self.capacity = model, rounded(capacity) if capacity else None
        self.total = rounded(cells)
        self.cells = model.new_cells(self.total)
        self.held: list[AnyRow] = []

    @property
    def going(self) -> list[AnyRow]:
        return [row for row in self.held if row.last >= 0]

    def take(self, row: AnyRow) -> bool:
        """Give a row cells, the first that are free; False when there are none."""
        row.capacity = self.capacity or min(size_for(len(row.prompt) + row.room), self.total)
        start = 0
        for place, other in enumerate([*self.held, None]):
            if (other.start if other else self.total) - start >= row.capacity:
                row.start = start
                self.held.insert(place, row)
                return True
            start = other.start + other.capacity if other else 0
        return False

    @torch.no_grad()
    def prefill(self, row: AnyRow) -> Tensor | None:
        """Run the next chunk of a prompt; with the last one, the logits [V] of what follows it."""
        model = self.model
        ids = list(row.prompt[row.length : row.length + CHUNK])
        hidden_BTD = model.hidden(torch.tensor([ids], device=model.device), self.cells.text(row.place))
        row.length += len(ids)
        return model.head(hidden_BTD[0, -1:])[0] if row.length == len(row.prompt) else None

    def join(self, row: AnyRow, own: Any, number: int, length: int) -> None:
        """Give a row the first `length` tokens of a row of another cache."""
        row.length = length
        device = self.model.device
        zero, there = torch.zeros(1, dtype=torch.int64, device=device), torch.tensor([number], device=device)
        self.cells.text(row.place).copy_rows(zero, own, there, length)

    @torch.no_grad()
    def step(self, going: Sequence[AnyRow]) -> Tensor:
        """Run the newest token of some rows, in the order of `held`; the logits [R, V] of what follows them."""
        spare = max(0, LEAST - len(going))  # rows that nobody has: their results are not looked at
        tokens = [row.last for row in going] + [0] * spare
        rows, layout = self.cells.step(tokens, [row.place for row in going], spare)
        tokens_RT = torch.tensor(tokens, device=self.model.device)[:, None]
        hidden_RTD = self.model.hidden(tokens_RT, rows, layout)
        for row in going:
            row.length += 1
        return self.model.head(hidden_RTD[:, -1])[: len(going)]

    def remove(self, row: AnyRow) -> None:
        """Free a row's cells; the last row of its capacity moves there, so that rows stay side by side."""
        place = next((place for place, other in enumerate(self.held) if other is row), None)
        if place is None:
            return
        later = [number for number in range(place + 1, len(self.held)) if self.held[number].capacity == row.capacity]
        if later:
            mover = self.held.pop(later[-1])
            self.cells.move(mover.place, row.start)
            mover.start = row.start
            self.held[place] = mover
        else:
            del self.held[place]


SIZES = [SPAN, *sorted(SPAN * size << doubled for doubled in range(40) for size in (2, 3))]


def size_for(length: int) -> int:
    """The cells that a text of at most `length` tokens gets: one of few sizes, so that rows of one size meet."""
    return SIZES[bisect.bisect_left(SIZES, length)]
