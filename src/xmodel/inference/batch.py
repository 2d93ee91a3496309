"""Texts that are being continued together: each has cells of one key/value cache, and its own place in its text.

In a decoding step every row takes one token, at its own position. What a text gets depends on nothing but itself. With
the kernels of `fast.prepare` that is so by construction, so prompts go through the model together, in whatever parts.
So they do in CUDA graphs (graphs.py), where rounding may differ with the company. Elsewhere a prompt goes alone, in
chunks that begin at multiples of `CHUNK`. What a step gives a row then does not depend on the other rows, to the bit,
where two things hold, and steps keep to both: matrix products give a row the same bits for any number of rows from
`LEAST` on, and attention for any number of masked keys that makes a multiple of `SPAN`. Both were found true for
float32 on CPUs; docs/generate.md says more.

Legend of the shape suffixes: R rows that are going on, B rows of a batch of prompts, T tokens, D hidden width,
V vocabulary.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from xmodel.inference.graphs import Graphs, weights_of
from xmodel.model.cache import Shared
from xmodel.model.cells import SPAN, Place, rounded

CHUNK = 256  # tokens of prompts that go through the model at once
LEAST = 4


class Row:
    """A text that is being continued.

    Attributes:
        length: tokens of it that are cached.
        stem, behind: the first `behind` of them stand in the only row of the cache `stem`, not in the text's own cells.
        last: the newest token, which the cache does not hold yet.
        start, capacity: its cells, once a batch has taken it.
    """

    def __init__(self, prompt: Sequence[int], room: int) -> None:
        self.prompt, self.room = prompt, room
        self.length, self.last = 0, -1
        self.stem: Any = None
        self.behind = 0
        self.start, self.capacity = -1, 0

    @property
    def place(self) -> Place:
        """Where its keys and values are."""
        return Place(self.start, self.capacity, self.length - self.behind)


AnyRow = TypeVar("AnyRow", bound=Row)


class Batch(Generic[AnyRow]):
    """Rows of one cache, for one thread at a time.

    Texts with a common beginning may leave it in a cache of its own (`Row.stem`); every step then reads it once for all
    of them.

    Attributes:
        held: rows that have cells, in the order of these.
        going: those of them whose prompt is done.
    """

    def __init__(self, model: Any, rows: int, capacity: int, cells: int | None = None) -> None:
        """Room for texts of at most `capacity` tokens each, answers included.

        Args:
            rows: so many at once; with `cells` as many as these hold.
            cells: tokens of all rows; each text gets what it needs, in one of few sizes. None: each gets `capacity`.
        """
        self.model, self.sized = model, cells is not None
        self.capacity = rounded(capacity)
        self.total = rows * self.capacity if cells is None else max(rounded(cells), self.capacity)
        weights = weights_of(model)
        self.cells = model.new_cells(self.total + (SPAN if weights else 0))  # the last one is for spare rows of graphs
        most = max(rows, CHUNK) if weights and weights.packs else rows
        self.graphs = Graphs(weights, self.cells, most, self.capacity) if weights else None
        self.ours = getattr(model, "decoder", None) is not None  # a row's bits are the same in any company, alone too
        self.least = 1 if self.ours else LEAST
        self.held: list[AnyRow] = []

    @property
    def packs(self) -> bool:
        """Whether tokens of several prompts go through the model together, each as a row of a step."""
        return self.ours or (self.graphs is not None and self.graphs.weights.packs)

    @property
    def going(self) -> list[AnyRow]:
        return [row for row in self.held if row.length >= len(row.prompt)]

    def take(self, row: AnyRow) -> bool:
        """Give a row cells, the first that are free; False when there are none."""
        row.capacity = min(size_for(len(row.prompt) + row.room), self.capacity) if self.sized else self.capacity
        start = 0
        for place, other in enumerate([*self.held, None]):
            if (other.start if other else self.total) - start >= row.capacity:
                row.start = start
                self.held.insert(place, row)
                return True
            start = other.start + other.capacity if other else 0
        return False

    @torch.no_grad()
    def prefill(self, rows: Sequence[AnyRow]) -> list[tuple[AnyRow, Tensor]]:
        """Run the next tokens of some prompts, at most `CHUNK` together, the first prompts first.

        Without our kernels, and without graphs, only the first prompt has a turn.

        Returns:
            The rows whose prompt is done now, each with the logits [V] of what follows it.
        """
        model, packs, parts, ids, lasts = self.model, self.packs, [], [], []
        for row in rows if packs else rows[:1]:
            if row.start < 0 and not self.take(row):
                raise ValueError("no cells are free")
            parts.append((row, row.length, min(len(row.prompt), row.length + CHUNK - len(ids))))
            ids += row.prompt[parts[-1][1] : parts[-1][2]]
            if parts[-1][2] == len(row.prompt):
                lasts.append(len(ids) - 1)
            if len(ids) == CHUNK:
                break
        if packs:
            places = [
                Place(row.start, row.capacity, column) for row, first, last in parts for column in range(first, last)
            ]
            logits_TV = self._replay(ids, places)
            if logits_TV is None:
                cache, layout = self.cells.step(ids, [place.length for place in places], places)
                tokens_T, wanted_W = (torch.tensor(n, dtype=torch.int64, device=model.device) for n in (ids, lasts))
                logits = model.head(model.hidden(tokens_T[:, None], cache, layout, wanted_W=wanted_W))
            else:
                logits = logits_TV[lasts]
        else:
            hidden_TD = model.hidden(torch.tensor([ids], device=model.device), self.cells.text(rows[0].place))[0]
            logits = model.head(hidden_TD[lasts]) if lasts else ()
        for row, _, last in parts:
            row.length = last
        return list(zip([row for row, _, last in parts if last == len(row.prompt)], logits, strict=True))

    def join(self, row: AnyRow, own: Any, number: int, first: int, last: int) -> None:
        """Take a text in that stands in first..last of a row of another cache."""
        if row.start < 0 and not self.take(row):
            raise ValueError("no cells are free")
        self.cells.text(row.place).copy_columns(0, own, number, first, last)

    @torch.no_grad()
    def step(self) -> Tensor:
        """Run the newest token of every row that is going; the logits [R, V] of what follows them."""
        going = self.going
        shared = any(row.stem is not None for row in going)
        logits_RV = None if shared else self._replay([row.last for row in going], [row.place for row in going])
        if logits_RV is None:
            logits_RV = self._run(going)
        for row in going:
            row.length += 1
        return logits_RV

    def _replay(self, tokens: Sequence[int], places: Sequence[Place]) -> Tensor | None:
        """The logits behind a token of each row, from a CUDA graph; None where there is none."""
        if self.graphs is None:
            return None
        return self.graphs.step(tokens, [place.start for place in places], [place.length for place in places])

    def _run(self, going: Sequence[AnyRow]) -> Tensor:
        """A step, kernel by kernel."""
        spare = max(0, self.least - len(going))  # rows that nobody has: their results are not looked at
        tokens = [row.last for row in going] + [0] * spare
        positions = [row.length for row in going] + [0] * spare
        rows, layout = self.cells.step(tokens, positions, [row.place for row in going], self._shared(going))
        tokens_RT = torch.tensor(tokens, device=self.model.device)[:, None]
        hidden_RTD = self.model.hidden(tokens_RT, rows, layout)
        return self.model.head(hidden_RTD[:, -1])[: len(going)]

    def _shared(self, going: Sequence[AnyRow]) -> list[Shared]:
        """The common beginnings of the rows, and which rows have each."""
        places: dict[int, list[int]] = {}
        for place, row in enumerate(going):
            if row.stem is not None:
                places.setdefault(id(row.stem), []).append(place)
        device = self.model.device
        return [
            Shared(going[rows[0]].stem, going[rows[0]].behind, torch.tensor(rows, device=device))
            for rows in places.values()
        ]

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
