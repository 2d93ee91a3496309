"""Best-fit packing: windows of whole documents (Ding et al. 2024, arXiv 2404.10830, "Fewer truncations").

Cut from one long array, most windows begin and end in the middle of a document. Here a document that fits into a window
is never cut; a longer one is cut into full windows and a rest, and each part begins with the last token of the part
before, so that no target is lost. Parts are packed best-fit-decreasing: from the longest to the shortest, each into the
fullest window that still has room. What stays empty is padding, which gives no loss.

The plan follows from the document ends and the window's length alone. It is made once, chunk by chunk in bounded
memory, and stands beside the shards as two maps: of all parts, window by window, and of each window's first part.

Legend: D documents, P parts, W windows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numba
import numpy as np

from xmodel.console import log, progress
from xmodel.errors import MachineError, UserError
from xmodel.files import atomic_write, read_json, write_json
from xmodel.tokens.shards import END, PADDING, TokenSource, open_sources

CHUNK = 1 << 20  # documents packed at once: some 60 MB; a few windows at the end of each stay half empty
SIZE_BITS = 20  # a part is start << 20 | size in 64 bits: windows below a million tokens, sources below 17 trillion
PART = np.dtype("<u8")
VERSION = 1  # of the plan; raised when the same documents come to give another one
FIGURES = ("documents", "tokens", "windows", "padding", "cut", "cut_by_concatenation")


class PackedSource:
    """A source's windows as planned; what TokenSource is to concatenated ones."""

    def __init__(self, source: TokenSource, firsts_W: np.ndarray, parts_P: np.ndarray) -> None:
        self._source, self._firsts_W, self._parts_P = source, firsts_W, parts_P

    def n_windows(self, sequence_length: int) -> int:
        """How many windows there are; their length is that of the plan."""
        return len(self._firsts_W) - 1

    def window(self, i: int, sequence_length: int) -> np.ndarray:
        """int64 [sequence_length + 1]: the parts of window `i`, then padding (-100)."""
        row = np.full(sequence_length + 1, PADDING, np.int64)
        at = 0
        for part in self._parts_P[self._firsts_W[i] : self._firsts_W[i + 1]].tolist():
            start, size = part >> SIZE_BITS, part & ((1 << SIZE_BITS) - 1)
            row[at : at + size] = self._source.read(start, start + size)
            at += size
        return row


def open_packed(folder: Path, sequence_length: int, names: Collection[str]) -> dict[str, PackedSource]:
    """Map the windows of training sources, and plan those that are not planned yet.

    The plan is kept in `folder`/packed-LENGTH. Processes may do this at the same time: they write the same.

    Raises:
        UserError: `sequence_length` is too large for the plan's format.
        MachineError: a file is missing or damaged.
    """
    if sequence_length + 1 >= 1 << SIZE_BITS:
        raise UserError(
            f"model.context_length: {sequence_length:,} is too long for pretrain.packing: best_fit; at most "
            f"{(1 << SIZE_BITS) - 2:,}"
        )
    manifest, sources = read_json(folder / "manifest.json")["train"], open_sources(folder)
    packed: dict[str, PackedSource] = {}
    totals: dict[str, int] = dict.fromkeys(FIGURES, 0)
    for name in sorted(names):
        stem = folder / f"packed-{sequence_length}" / name
        figures = _standing(stem, manifest[name]) or _plan(folder, stem, manifest[name], sequence_length)
        firsts_W, parts_P = (_map(stem.with_name(f"{name}.{kind}")) for kind in ("windows", "parts"))
        if len(firsts_W) != figures["windows"] + 1 or len(parts_P) != firsts_W[-1]:
            raise MachineError(f"{stem.parent}: the plan of {name} is damaged; remove it and it is made again")
        packed[name] = PackedSource(sources[name], firsts_W, parts_P)
        totals = {key: totals[key] + figures[key] for key in FIGURES}
    log(f"packing: {described(totals, sequence_length)}")
    return packed


def described(figures: Mapping[str, int], sequence_length: int) -> str:
    """The figures of a plan as a sentence."""
    documents, room = max(figures["documents"], 1), max(figures["windows"] * (sequence_length + 1), 1)
    return (
        f"{figures['documents']:,} documents in {figures['windows']:,} windows; {figures['cut'] / documents:.2%} of "
        f"them are cut (concatenation: {figures['cut_by_concatenation'] / documents:.2%}), "
        f"{figures['padding'] / room:.3%} is padding"
    )


def _standing(stem: Path, entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """The figures of the plan of these very shards, or None."""
    note = stem.with_name(f"{stem.name}.json")
    found = read_json(note) if note.exists() else {}
    return found if found.get("made_from") == _made_from(entry) else None


def _made_from(entry: Mapping[str, Any]) -> list[Any]:
    return [VERSION, *(shard["ends_checksum"] for shard in entry["shards"])]


def _map(path: Path) -> np.ndarray:
    if not path.is_file():
        raise MachineError(f"{path}: missing; remove {path.parent} and it is made again")
    return np.memmap(path, PART, mode="r").view(np.ndarray)


def _plan(folder: Path, stem: Path, entry: Mapping[str, Any], sequence_length: int) -> dict[str, Any]:
    """Pack a source's documents, chunk by chunk, and write the plan; the note by which it stands comes last."""
    figures: dict[str, int] = dict.fromkeys(FIGURES, 0)
    with ExitStack() as stack:
        parts, windows = (
            stack.enter_context(atomic_write(stem.with_name(f"{stem.name}.{kind}"), shared=True))
            for kind in ("parts", "windows")
        )
        shown = stack.enter_context(progress(f"packing {stem.name}", entry["documents"], "documents"))
        planned = 0
        windows.write(np.zeros(1, PART).data)
        for ends_D, begin in _chunks(folder, entry):
            parts_P, firsts_W = pack(ends_D, begin, sequence_length)
            parts.write(parts_P.data)
            windows.write((firsts_W[1:] + np.uint64(planned)).data)
            planned += len(parts_P)
            sizes_P = parts_P & np.uint64((1 << SIZE_BITS) - 1)
            count, used = len(firsts_W) - 1, int(sizes_P.sum())
            cut = truncated(ends_D, begin, sequence_length)
            amounts = (len(ends_D), int(ends_D[-1]) - begin, count, count * (sequence_length + 1) - used, *cut)
            figures = {key: figures[key] + amount for key, amount in zip(FIGURES, amounts, strict=True)}
            shown.advance(len(ends_D))
    note = figures | {"made_from": _made_from(entry)}
    write_json(stem.with_name(f"{stem.name}.json"), note, shared=True)
    return note


def _chunks(folder: Path, entry: Mapping[str, Any]) -> Iterator[tuple[np.ndarray, int]]:
    """At most `CHUNK` documents of one shard at a time: where they end in the source, and where the first begins."""
    before = 0
    for shard in entry["shards"]:
        path = (folder / shard["file"]).with_suffix(".ends")
        if not path.is_file() or path.stat().st_size != shard["documents"] * END.itemsize:
            raise MachineError(f"{path}: missing or damaged; run the tokens stage again")
        ends_D, begin = np.memmap(path, END, mode="r"), before
        for first in range(0, len(ends_D), CHUNK):
            chunk_D = np.asarray(ends_D[first : first + CHUNK], np.int64) + before
            yield chunk_D, begin
            begin = int(chunk_D[-1])
        before += shard["tokens"]


def truncated(ends_D: np.ndarray, begin: int, sequence_length: int) -> tuple[int, int]:
    """How many documents are cut by best fit (those longer than a window), and by windows of one long array."""
    starts_D = np.concatenate([[begin], ends_D[:-1]])
    window_ends_D = starts_D // sequence_length * sequence_length + sequence_length + 1
    return int((ends_D - starts_D > sequence_length + 1).sum()), int((ends_D > window_ends_D).sum())


def pack(ends_D: np.ndarray, begin: int, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Plan the windows of some documents.

    Args:
        ends_D: int64, where each document ends in its source.
        begin: where the first of them begins.
        sequence_length: inputs of a window; it holds one token more.

    Returns:
        parts_P: uint64, start << 20 | size, window by window, in a window by start.
        firsts_W: uint64 [W + 1], where each window's parts begin among them.
    """
    starts_P, sizes_P = _parts(ends_D, begin, sequence_length)
    window_P, windows = best_fit(sizes_P, sequence_length + 1)
    order_P, firsts_W = _sorted(window_P, windows)
    parts_P = starts_P[order_P] << SIZE_BITS | sizes_P[order_P]
    return parts_P.astype(PART), firsts_W.astype(PART)


@numba.njit(cache=True, nogil=True)
def _parts(ends_D: np.ndarray, begin: int, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and size of each document, or of its parts of at most a window, which overlap by one token."""
    start, total = begin, 0
    for end in ends_D:
        total += max(1, (end - start - 2) // sequence_length + 1)
        start = end
    starts_P, sizes_P = np.empty(total, np.int64), np.empty(total, np.int64)
    start, part = begin, 0
    for end in ends_D:
        while True:
            starts_P[part], sizes_P[part] = start, min(end - start, sequence_length + 1)
            part += 1
            if end - start <= sequence_length + 1:
                break
            start += sequence_length
        start = end
    return starts_P, sizes_P


@numba.njit(cache=True, nogil=True)
def _sorted(keys_P: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Counting sort of keys 0..most - 1: the stable order, and where each key begins in it ([most + 1])."""
    firsts = np.zeros(most + 1, np.int64)
    for key in keys_P:
        firsts[key + 1] += 1
    firsts = np.cumsum(firsts)
    order_P, next_K = np.empty(len(keys_P), np.int64), firsts.copy()
    for part, key in enumerate(keys_P):
        order_P[next_K[key]] = part
        next_K[key] += 1
    return order_P, firsts


@numba.njit(cache=True, nogil=True)
def best_fit(sizes_P: np.ndarray, room: int) -> tuple[np.ndarray, int]:
    """Best-fit-decreasing bin packing in O(P log room).

    Windows with the same room left stand on a stack; `tree` is a binary tree over the rooms whose nodes say whether any
    window stands below, so that the smallest room that is large enough is found in one walk up and down.

    Args:
        sizes_P: int64, 1 to `room`.

    Returns:
        (int64 [P], the window of each part, numbered in the order in which they are opened; how many there are)
    """
    leaves = 1
    while leaves < room + 1:
        leaves *= 2
    tree = np.zeros(2 * leaves, np.bool_)
    top = np.full(room + 1, -1, np.int64)  # by room left: the last window on the stack
    below, window_P = np.empty(len(sizes_P), np.int64), np.empty(len(sizes_P), np.int64)
    order_P, _ = _sorted(room - sizes_P, room)  # from the longest to the shortest
    windows = 0
    for part in order_P:
        size = sizes_P[part]
        node = leaves + size
        while node and not tree[node]:  # up, to the first node whose right sibling holds a window
            while node & 1:
                node >>= 1
            node = node + 1 if node else 0
        if node:
            while node < leaves:
                node = 2 * node if tree[2 * node] else 2 * node + 1
            left = node - leaves
            window = top[left]
            top[left] = below[window]
            if top[left] < 0:
                tree[node] = False
                node >>= 1
                while node and not (tree[2 * node] or tree[2 * node + 1]):
                    tree[node] = False
                    node >>= 1
        else:
            left, window = room, windows
            windows += 1
        window_P[part] = window
        left -= size
        if left:
            below[window] = top[left]
            top[left] = window
            node = leaves + left
            while node and not tree[node]:
                tree[node] = True
                node >>= 1
    return window_P, windows
