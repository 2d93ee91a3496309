"""Keys and values of texts of different length in one buffer of fixed size: each has the cells from its start on.

A cache of B rows of one capacity holds few texts when one of them may become long. Here a text takes what it needs, and
a decoding step finds rows of one capacity that lie side by side and handles them together.

Legend of the shape suffixes: L layers, K key/value heads, X cells, C head size, R rows of a decoding step, H query
heads, S cached and new tokens of a row, T new tokens of each (one).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from xmodel.model.attention import masked_attention
from xmodel.model.cache import KVCache, Layout, Shared
from xmodel.recipe.settings import Model

SPAN = 64  # a step looks at a multiple of so many cells of a row: masked ones then do not change a bit of the result


class Place(NamedTuple):
    """The cells of a text, and how many of them are in use."""

    start: int
    capacity: int
    length: int


class Cells:
    """Room for `cells` tokens, of however many texts."""

    def __init__(self, config: Model, cells: int, dtype: torch.dtype, device: torch.device | str) -> None:
        shape = (config.layers, config.kv_heads, cells, config.hidden // config.heads)
        self.keys_LKXC = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LKXC = torch.zeros(shape, dtype=dtype, device=device)

    def text(self, place: Place) -> KVCache:
        """One text as a cache of one row, in the same memory."""
        view = KVCache.__new__(KVCache)
        cells = slice(place.start, place.start + place.capacity)
        view.keys_LBKSC, view.values_LBKSC = self.keys_LKXC[:, None, :, cells], self.values_LKXC[:, None, :, cells]
        view.capacity, view.length = place.capacity, place.length
        return view

    def step(
        self, tokens: Sequence[int], positions: Sequence[int], places: Sequence[Place], shared: Sequence[Shared] = ()
    ) -> tuple[Rows, Layout]:
        """The cache and the layout of a decoding step.

        Args:
            tokens, positions: of the rows: a new one behind each of some texts, and then spare rows that nobody has.
            places: of the texts, in the order of their starts.
            shared: see `Layout`.
        """
        rows = Rows(self, positions, places, shared)
        return rows, rows.layout

    def move(self, place: Place, start: int) -> None:
        """Move a text to other cells of at least its capacity."""
        to, here = slice(start, start + place.length), slice(place.start, place.start + place.length)
        self.keys_LKXC[:, :, to] = self.keys_LKXC[:, :, here]
        self.values_LKXC[:, :, to] = self.values_LKXC[:, :, here]


class Run(NamedTuple):
    """Rows first..last of a step: of one capacity, their cells side by side.

    Attributes:
        seen_B1TS: bool, which of the first S cells of its row each new token sees.
    """

    first: int
    last: int
    start: int
    capacity: int
    seen_B1TS: Tensor


class Rows:
    """The cache of one decoding step, for `model.hidden`: row r's new token goes behind the text at places[r]."""

    def __init__(
        self, cells: Cells, positions: Sequence[int], places: Sequence[Place], shared: Sequence[Shared]
    ) -> None:
        self.keys_LKXC, self.values_LKXC, self.count, self.length = cells.keys_LKXC, cells.values_LKXC, len(places), 0
        self.head_size = self.keys_LKXC.shape[-1]
        self.starts_R, columns_R, seen_RS = rows_of(places, len(positions) - len(places), self.keys_LKXC.device)
        positions_R = torch.tensor(positions, device=self.keys_LKXC.device)
        self.cells_R = (self.starts_R + columns_R)[: self.count]
        self.layout = Layout(positions_R[:, None], seen_RS[:, None, None], columns_R[:, None], shared=shared)
        self.places, self.seen_RS = places, seen_RS

    @cached_property
    def runs(self) -> list[Run]:
        """The rows by neighbours that are handled together; our kernels (inference.fast) do without."""
        found = []
        for first, last in _runs(self.places):
            length = rounded(max(place.length for place in self.places[first:last]) + 1)
            start, capacity, _ = self.places[first]
            found.append(Run(first, last, start, capacity, self.seen_RS[first:last, None, None, :length]))
        return found

    def store(self, layer: int, k_RKTC: Tensor, v_RKTC: Tensor) -> None:
        """Put the new keys and values of one layer where they belong."""
        self.keys_LKXC[layer].index_copy_(1, self.cells_R, k_RKTC[: self.count, :, 0].transpose(0, 1))
        self.values_LKXC[layer].index_copy_(1, self.cells_R, v_RKTC[: self.count, :, 0].transpose(0, 1))

    def run(self, layer: int, run: Run) -> tuple[Tensor, Tensor]:
        """What a run's new tokens may see, as views [B, K, S, C]."""
        cells, length = slice(run.start, run.start + (run.last - run.first) * run.capacity), run.seen_B1TS.shape[-1]
        keys_KXC, values_KXC = self.keys_LKXC[layer, :, cells], self.values_LKXC[layer, :, cells]
        shape = (run.last - run.first, run.capacity)
        keys_BKSC, values_BKSC = (x.unflatten(1, shape).transpose(0, 1) for x in (keys_KXC, values_KXC))
        return keys_BKSC[:, :, :length], values_BKSC[:, :, :length]

    def append(self, layer: int, k_RKTC: Tensor, v_RKTC: Tensor, layout: Layout | None) -> tuple[Tensor, Tensor]:
        """As `KVCache.append`, for who needs all rows in one tensor; a copy, unless all rows are one run."""
        self.store(layer, k_RKTC, v_RKTC)
        if len(self.runs) == 1 and len(self.starts_R) == self.count:
            return self.run(layer, self.runs[0])
        most = max(run.seen_B1TS.shape[-1] for run in self.runs)
        index_RS = self.starts_R[:, None] + torch.arange(most, device=self.starts_R.device)
        index_RS.clamp_(max=self.keys_LKXC.shape[2] - 1)  # those are masked
        keys_RKSC, values_RKSC = (x[layer][:, index_RS].transpose(0, 1) for x in (self.keys_LKXC, self.values_LKXC))
        return keys_RKSC, values_RKSC

    def advance(self, new: int, layout: Layout | None = None) -> None:
        """As `KVCache.advance`: rows count for themselves."""


def rows_attention(q_RHTC: Tensor, k_RKTC: Tensor, v_RKTC: Tensor, layer: int, rows: Rows) -> Tensor:
    """Attention of a decoding step, run by run, [R, H, T, C]."""
    rows.store(layer, k_RKTC, v_RKTC)
    parts = [masked_attention(q_RHTC[run.first : run.last], *rows.run(layer, run), run.seen_B1TS) for run in rows.runs]
    if rows.count < len(q_RHTC):
        parts.append(q_RHTC[rows.count :])  # nobody looks at these
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def rows_of(places: Sequence[Place], spare: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of a step's rows, spare ones too: first cell [R], column of the new token behind it [R], what it sees [R, S]."""
    starts_R = torch.tensor([place.start for place in places] + [0] * spare, device=device)
    columns_R = torch.tensor([place.length for place in places] + [0] * spare, device=device)
    most = rounded(max(place.length for place in places) + 1)
    return starts_R, columns_R, torch.arange(most, device=device) <= columns_R[:, None]


def rounded(length: int) -> int:
    """The next multiple of SPAN."""
    return -(-length // SPAN) * SPAN


def _runs(places: Sequence[Place]) -> list[tuple[int, int]]:
    """First and last of neighbours with one capacity, the last excluded."""
    found: list[tuple[int, int]] = []
    for number, place in enumerate(places):
        before = places[number - 1]
        joins = number > 0 and (place.start, place.capacity) == (before.start + before.capacity, before.capacity)
        first = found.pop()[0] if joins else number
        found.append((first, number + 1))
    return found
