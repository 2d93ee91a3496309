"""Keys and values of tokens that a model has seen, and where new tokens stand among them.

Legend of the shape suffixes: L layers, B sequences, K key/value heads, T new tokens of each, S cached and new tokens,
C head size, N chosen rows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from xmodel.recipe.settings import Model


class Span(NamedTuple):
    """New tokens of a packed row that may see each other.

    Attributes:
        first, last: where in the row, the last one excluded.
        bias_TT: 0 where a token (axis 0) sees another (axis 1), -inf where it does not, in the dtype of the model;
            None: each sees those before it.
    """

    first: int
    last: int
    bias_TT: Tensor | None = None


class Shared(NamedTuple):
    """A common beginning: `length` tokens in the first row of a cache, seen by the new tokens of some rows."""

    cache: KVCache
    length: int
    rows_N: Tensor | None = None  # int64; None: all


class Layout(NamedTuple):
    """Where new tokens stand when rows are not alike: of other lengths, or with several texts or branches in a row.

    Attributes:
        positions_BT: int64, in the token's own text: what the rotary angles follow.
        seen_B1TS: bool, which of the S cached and new tokens each new one sees; itself among them. None: see `spans`.
        columns_BT: int64, where in the cache each one's key and value go; None: all behind `cache.length`.
        spans: of a packed row: there is one row, and texts stand in it one behind the other.
        shared: beginnings that stand in caches of their own; a row sees one at most, whole, before its own tokens.
    """

    positions_BT: Tensor
    seen_B1TS: Tensor | None = None
    columns_BT: Tensor | None = None
    spans: Sequence[Span] = ()
    shared: Sequence[Shared] = ()


class KVCache:
    """Keys and values of the tokens seen so far, in buffers of fixed size: `model(tokens, cache)` appends to it.

    `length` tokens are in use. Lowering it forgets the tokens after it, so that a prefix can be computed once and
    continued many times. With a layout that names columns every row fills at its own pace, and `length` stays 0.
    """

    def __init__(
        self, config: Model, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (config.layers, batch, config.kv_heads, capacity, config.hidden // config.heads)
        self.keys_LBKSC = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LBKSC = torch.zeros(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0

    @property
    def device(self) -> torch.device:
        """Where it is kept."""
        return self.keys_LBKSC.device

    def append(self, layer: int, k_BKTC: Tensor, v_BKTC: Tensor, layout: Layout | None = None) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of one layer; return all that may be seen as views, [B, K, S, C]."""
        seen_B1TS = layout.seen_B1TS if layout is not None else None
        end = seen_B1TS.shape[-1] if seen_B1TS is not None else self.length + k_BKTC.shape[2]
        keys_BKSC, values_BKSC = self.keys_LBKSC[layer, :, :, :end], self.values_LBKSC[layer, :, :, :end]
        if layout is not None and layout.columns_BT is not None:
            index_BKTC = layout.columns_BT[:, None, :, None].expand_as(k_BKTC)
            keys_BKSC.scatter_(2, index_BKTC, k_BKTC)
            values_BKSC.scatter_(2, index_BKTC, v_BKTC)
        else:
            keys_BKSC[:, :, self.length :] = k_BKTC
            values_BKSC[:, :, self.length :] = v_BKTC
        return keys_BKSC, values_BKSC

    def advance(self, new: int, layout: Layout | None = None) -> None:
        """Count `new` tokens, which all layers have appended."""
        if layout is None or layout.columns_BT is None:
            self.length += new

    def first_rows(self, rows: int) -> KVCache:
        """The first rows as a cache of their own, in the same memory."""
        view = copy.copy(self)
        view.keys_LBKSC, view.values_LBKSC = self.keys_LBKSC[:, :rows], self.values_LBKSC[:, :rows]
        return view

    def fill(self, other: KVCache, length: int) -> None:
        """Give every row the first `length` tokens of the only row of another cache."""
        self.keys_LBKSC[:, :, :, :length] = other.keys_LBKSC[:, :, :, :length]
        self.values_LBKSC[:, :, :, :length] = other.values_LBKSC[:, :, :, :length]
        self.length = length

    def copy_columns(self, row: int, other: KVCache, number: int, first: int, last: int) -> None:
        """Put the keys and values first..last of a row of another cache at the beginning of a row."""
        self.keys_LBKSC[:, row, :, : last - first] = other.keys_LBKSC[:, number, :, first:last]
        self.values_LBKSC[:, row, :, : last - first] = other.values_LBKSC[:, number, :, first:last]
