"""Which beginnings many texts have in common, and in what order to compute them so that each is computed once.

Sorted, texts with a common beginning are neighbours: the sorted texts with the lengths that neighbours share are a
prefix tree (a compressed trie), and a subtree is a range of them. A subtree of few tokens becomes a `Tree`: its
branches stand side by side in one row of a batch, and a mask keeps them apart. Above that a beginning becomes a
`Prefix`: its keys and values are computed in one row and held in the cache while everything below is carried out.

Numpy only. Legend: B rows of a batch, T new tokens of a row, S cached and new tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

MIN_PREFIX = 16  # tokens: what is shorter is not worth a pass of its own


@dataclass
class Texts:
    """Texts in lexicographic order of their ids.

    Attributes:
        ids: token ids of each.
        shared: shared[i] tokens of text i are also the first of text i - 1; shared[0] is 0.
        free: free[i] tokens of text i may be cached; the states of those behind are wanted. Less than its length.
    """

    ids: list[np.ndarray]
    shared: np.ndarray
    free: np.ndarray


class Tree(NamedTuple):
    """Texts first..last without their first `start` tokens, as one part of a row."""

    first: int
    last: int
    start: int
    size: int  # tokens


@dataclass
class Prefix:
    """The first `end` tokens of `text`, of which `start` belong to the prefix above, and what is behind them."""

    text: int
    start: int
    end: int
    trees: list[Tree] = field(default_factory=list)
    below: list[Prefix] = field(default_factory=list)


def sort_texts(texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The lexicographic order of some int64 texts, and what each has in common with the one before it in that order."""
    keys = [text.astype(">u4").tobytes() for text in texts]  # big-endian bytes compare as the numbers do
    order = np.array(sorted(range(len(texts)), key=keys.__getitem__), np.int64)
    shared = np.zeros(len(texts), np.int64)
    for place, (before, here) in enumerate(pairwise(order), 1):
        length = min(len(texts[before]), len(texts[here]))
        differ = texts[before][:length] != texts[here][:length]
        shared[place] = int(differ.argmax()) if differ.any() else length
    return order, shared


def divide(texts: Texts, tree_tokens: int, worth: int) -> Prefix:
    """The plan for all texts: trees, below prefixes where these pay.

    Args:
        tree_tokens: branches that have so many tokens together, the trunk not counted, still make one tree; -1: every
            text is a tree of its own.
        worth: a prefix is cached when that saves so many tokens.
    """
    root = Prefix(text=0, start=0, end=0)
    waiting = [(0, len(texts.ids), 0, root)] if texts.ids else []
    lengths = np.array([len(ids) for ids in texts.ids], np.int64)
    sums = np.concatenate([[0], np.cumsum(lengths - texts.shared)])
    while waiting:
        first, last, start, above = waiting.pop()
        size = int(sums[last] - sums[first] + texts.shared[first]) - start
        if last - first == 1:
            above.trees.append(Tree(first, last, start, size))
            continue
        shared = texts.shared[first + 1 : last]
        depth = int(shared.min())
        if size - (depth - start) <= tree_tokens:
            above.trees.append(Tree(first, last, start, size))
            continue
        cuts = [first, *(np.flatnonzero(shared == depth) + first + 1).tolist(), last]
        end = min(depth, int(texts.free[first:last].min()))
        if end - start >= MIN_PREFIX and (end - start) * (len(cuts) - 2) >= worth:
            node = Prefix(first, start, end)
            above.below.append(node)
            above, start = node, end
        waiting += [(a, b, start, above) for a, b in pairwise(cuts)]
    return root


def pack(trees: Sequence[Tree], budget: int, width: int = 0, rows: int | None = None) -> Iterator[list[list[Tree]]]:
    """Batches of rows of trees, the largest first: what a row has left after a large tree is filled with small ones.

    Args:
        budget: tokens of a batch, padding included; one row may have more.
        width: rows are at least so wide, in tokens.
        rows: at most so many in a batch.
    """
    batch: list[list[Tree]] = []
    room: list[int] = []
    for tree in sorted(trees, key=lambda tree: -tree.size):
        fits = next((row for row, left in enumerate(room) if left >= tree.size), None)
        if fits is not None:
            batch[fits].append(tree)
            room[fits] -= tree.size
            continue
        wide = max(width, batch[0][0].size if batch else tree.size)
        if batch and ((len(batch) + 1) * wide > budget or len(batch) == rows):
            yield batch
            batch, room = [], []
            wide = max(width, tree.size)
        batch.append([tree])
        room.append(wide - tree.size)
    if batch:
        yield batch


class Placed(NamedTuple):
    """A tree in its row.

    Attributes:
        row, first, last: columns first..last of the row, the last one excluded.
        seen_TT: bool, which token (axis 0) sees which (axis 1); None: each sees those before it, in a single text.
    """

    row: int
    first: int
    last: int
    seen_TT: np.ndarray | None


class Rows(NamedTuple):
    """A batch as arrays.

    Attributes:
        tokens_BT, positions_BT: int64. Padding is at the right.
        trees: row by row, from left to right.
        places: for each text its row and, for each of its tokens behind `start`, the column in the row.
    """

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    trees: list[Placed]
    places: dict[int, tuple[int, np.ndarray]]


def lay_out(texts: Texts, batch: Sequence[Sequence[Tree]], start: int) -> Rows:
    """The arrays of one batch whose texts have their first `start` tokens in the cache."""
    width = max(sum(tree.size for tree in row) for row in batch)
    tokens_BT = np.zeros((len(batch), width), np.int64)
    positions_BT = np.zeros((len(batch), width), np.int64)
    found: list[Placed] = []
    places: dict[int, tuple[int, np.ndarray]] = {}
    for row, trees in enumerate(batch):
        used = 0
        for tree in trees:
            left = used
            path = np.zeros(0, np.int64)  # columns of the tokens from `start` to where we are
            single = tree.last - tree.first == 1
            seen_TT = None if single else np.zeros((tree.size, tree.size), np.bool_)
            lower_TT = None if single else np.tri(tree.size, dtype=np.bool_)
            for text in range(tree.first, tree.last):
                ids = texts.ids[text]
                depth = max(start, int(texts.shared[text])) if text > tree.first else start
                new = len(ids) - depth
                columns = slice(used, used + new)
                tokens_BT[row, columns] = ids[depth:]
                positions_BT[row, columns] = np.arange(depth, len(ids))
                path = path[: depth - start]
                if seen_TT is not None and lower_TT is not None:
                    own = slice(used - left, used - left + new)
                    seen_TT[own, path - left] = True
                    seen_TT[own, own] = lower_TT[:new, :new]
                path = np.concatenate([path, np.arange(used, used + new)])
                places[text] = row, path
                used += new
            found.append(Placed(row, left, used, seen_TT))
    return Rows(tokens_BT, positions_BT, found, places)


def masks(rows: Rows, start: int) -> np.ndarray | None:
    """What each token of a batch sees of the cached and the new ones, bool [B, T, S], for rows that hold the first
    `start` tokens themselves; None when every row is one text, where causal attention does.
    """
    batch, width = rows.tokens_BT.shape
    if len(rows.trees) == batch and all(tree.seen_TT is None for tree in rows.trees):
        return None
    seen_BTS = np.zeros((batch, width, start + width), np.bool_)
    seen_BTS[:, :, :start] = True
    seen_BTS[:, np.arange(width), start + np.arange(width)] = True  # padding sees itself: a softmax of something
    for row, first, last, seen_TT in rows.trees:
        own = np.tri(last - first, dtype=np.bool_) if seen_TT is None else seen_TT
        seen_BTS[row, first:last, start + first : start + last] = own
    return seen_BTS
