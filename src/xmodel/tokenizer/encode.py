"""Unigram segmentation of UTF-8 text as a numba kernel: from Arrow's buffers straight into an array of ids.

The search is SentencePiece's (Kudo 2018, arXiv 1804.10959; `EncodeOptimized` in its unigram_model.cc): from left to
right, the best way to reach every character, by pieces or, where a character is no piece, as an unknown character that
scores `UNKNOWN_PENALTY` less than the lowest piece and is written as its bytes. A candidate replaces another only when
it scores more, so of equals the one that starts earliest stays. Scores are multiples of `SCORE_STEP` (convert.py) and
are summed as integers: sums are exact whatever the length, and nothing depends on where a text is cut.

Three things make it fast:

* A text falls apart wherever no piece reaches across. There the best way is known, ids are written, and the search
  begins anew, so its tables stay in the cache whatever the length of the text.
* Between two characters that stand beside each other in no piece ("e" and " " in a vocabulary of words) that is known
  beforehand. What lies between two such places, a word as a rule, is looked up in a table of words seen before.
* Pieces are found in a double array (Aoe 1989): one step per byte, all children of a node within 1 KiB.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

from xmodel.tokenizer.convert import BYTE, CONTROL, NORMAL, SCORE_STEP, UNKNOWN, Piece, surface

if TYPE_CHECKING:
    import pyarrow

UNKNOWN_PENALTY = 10.0  # SentencePiece's kUnkPenalty

# A node of the double array: base << 10 | whether a piece ends here << 9 | byte that leads here + 1 (0: free).
LABEL, HAS_PIECE, BASE_SHIFT = 511, 512, 10
MOST_NODES = 1 << (32 - BASE_SHIFT)

TRIES = 64  # to place a node's children among others
PAIR_BITS = 18  # of the table of neighbours: 32 KiB, of which a vocabulary of 32,000 pieces sets less than a tenth

WORD_BYTES = 15  # longest word that is remembered; with a 1 before it, it is a number of 128 bits
WORD_IDS = 7  # most ids of one
SLOT_BITS = 14  # words that are remembered: 512 KiB, which fits a core's cache beside the pieces in use
WINDOW = 1 << 14  # bytes that the search looks at before it gives up waiting for a place where no piece reaches across
NEVER = np.iinfo(np.int64).min // 2
_SPREAD_LOW, _SPREAD_HIGH = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


class Tables(NamedTuple):
    """A unigram vocabulary as the kernel reads it."""

    nodes_N: np.ndarray  # uint32: the double array; node 0 is the root
    values_N: np.ndarray  # int64: score in steps << 32 | id of the piece that ends at a node
    inside_FF: np.ndarray  # uint8: 1 at a << 8 | b when the ASCII characters a and b are neighbours in a piece
    inside_C: np.ndarray  # uint8: bits, set where `_pair` of two neighbours in a piece says; others may stand there too
    unknown: int  # score of a character without a piece, in steps
    first_byte_id: int  # the pieces of the 256 bytes follow one another


def unigram_tables(pieces: Sequence[Piece]) -> Tables | None:
    """The tables of a vocabulary, or None when the kernel cannot promise SentencePiece's ids for it.

    It can when all scores are multiples of `SCORE_STEP`, there are 256 byte pieces in a row, and every piece is a
    normal, byte, control or unknown one.
    """
    by_bytes = {surface(piece): number for number, piece in enumerate(pieces) if piece.type == NORMAL}
    scores_V = np.array([piece.score for piece in pieces]) / SCORE_STEP
    byte_ids = [number for number, piece in enumerate(pieces) if piece.type == BYTE]
    exact = (
        bool(by_bytes)
        and b"" not in by_bytes
        and len(by_bytes) == sum(piece.type == NORMAL for piece in pieces)
        and {piece.type for piece in pieces} <= {NORMAL, UNKNOWN, CONTROL, BYTE}
        and [surface(pieces[number]) for number in byte_ids] == [bytes([byte]) for byte in range(256)]
        and byte_ids == list(range(byte_ids[0], byte_ids[0] + 256))
        and bool(np.all(scores_V == np.rint(scores_V)))
        and bool(np.all(np.abs(scores_V) < 2**30))
    )
    if not exact:
        return None
    ordered = sorted(by_bytes)
    ids_P = np.array([by_bytes[piece] for piece in ordered], np.int64)
    scores_P = scores_V[ids_P].astype(np.int64)
    starts_P1 = np.cumsum([0, *map(len, ordered)])
    data_X = np.frombuffer(b"".join(ordered), np.uint8)
    ends_P = np.empty(len(ordered), np.int64)
    nodes_N = np.zeros(len(data_X) + 2048, np.uint32)
    while not (used := _double_array(data_X, starts_P1, nodes_N, np.arange(1, len(nodes_N) + 1), ends_P)):
        nodes_N = np.zeros(2 * len(nodes_N), np.uint32)
    if used > MOST_NODES:
        return None
    nodes_N = nodes_N[:used].copy()
    values_N = np.zeros(used, np.int64)
    values_N[ends_P] = scores_P << 32 | ids_P
    unknown = int(scores_P.min()) - round(UNKNOWN_PENALTY / SCORE_STEP)
    return Tables(nodes_N, values_N, *_inside(data_X, starts_P1), unknown, byte_ids[0])


def encode_utf8(
    tables: Tables, offsets_D1: np.ndarray, data_X: np.ndarray, ids_dtype: np.dtype, before: int = -1, after: int = -1
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of documents, one after the other in one array.

    Safe to call from several threads at once; the work itself does not hold Python's lock.

    Args:
        offsets_D1: int32 or int64 [D + 1]; document d is data_X[offsets_D1[d] : offsets_D1[d + 1]].
        data_X: uint8, UTF-8.
        ids_dtype: uint16, or uint32 for more than 65,536 pieces.
        before, after: ids put before and after every document; -1: none.

    Returns:
        ids_T: `ids_dtype` [T].
        ends_D: int64 [D], where each document ends in ids_T.
    """
    offsets_D1 = np.ascontiguousarray(offsets_D1, np.int64)
    documents = len(offsets_D1) - 1
    # A token is a byte at least. Pages that are not written to take no memory.
    most = int(offsets_D1[-1] - offsets_D1[0]) + documents * ((before >= 0) + (after >= 0))
    ids_T, ends_D = np.empty(most, ids_dtype), np.empty(documents, np.int64)
    data_X = data_X.view()
    data_X.flags.writeable = False  # one signature to compile, whether the bytes are ours or Arrow's
    words = _words(tables, ids_dtype)
    length = _encode(
        offsets_D1, data_X, tables.nodes_N, tables.values_N, tables.inside_FF, tables.inside_C, tables.unknown,
        tables.first_byte_id, before, after, *words, ids_T, ends_D,
    )  # fmt: skip
    return ids_T[:length], ends_D


def string_buffers(column: pyarrow.Array) -> tuple[np.ndarray, np.ndarray]:
    """The offsets (int32 or int64 [D + 1]) and bytes of an Arrow string array, without a copy; null is empty."""
    import pyarrow

    if column.null_count:
        column = column.fill_null("")
    wide = pyarrow.types.is_large_string(column.type) or pyarrow.types.is_large_binary(column.type)
    _, offsets, data = column.buffers()
    if not len(column):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    starts = np.frombuffer(offsets, np.int64 if wide else np.int32)
    return starts[column.offset : column.offset + len(column) + 1], np.frombuffer(data or b"", np.uint8)


# ── What a thread remembers ─────────────────────────────────────────────────────────────────────────────────────────

_remembered = threading.local()


def _words(tables: Tables, ids_dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """This thread's table of words for a vocabulary: keys uint64 [S, 2], and `ids_dtype` [S, 1 + WORD_IDS].

    A thread keeps one: who goes back and forth between vocabularies begins anew each time.
    """
    if getattr(_remembered, "nodes", None) is not tables.nodes_N or _remembered.words[1].dtype != ids_dtype:
        keys_S2 = np.zeros((1 << SLOT_BITS, 2), np.uint64)
        _remembered.words = keys_S2, np.zeros((len(keys_S2), 1 + WORD_IDS), ids_dtype)
        _remembered.nodes = tables.nodes_N
    return _remembered.words


# ── Kernels ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@numba.njit(cache=True, nogil=True)
def _encode(
    offsets_D1, data_X, nodes_N, values_N, inside_FF, inside_C, unknown, first_byte_id, before, after, keys_S2,
    words_SI, ids_T, ends_D,
):  # fmt: skip
    """Fill ids_T and ends_D; the number of ids."""
    scores_W = np.empty(WINDOW + 1, np.int64)
    pieces_W = np.empty(WINDOW + 1, np.int64)  # start << 32 | id of the best piece that ends here
    n = 0
    for document in range(len(offsets_D1) - 1):
        position, end = offsets_D1[document], offsets_D1[document + 1]
        if before >= 0:
            ids_T[n] = before
            n += 1
        while position < end:
            # The next word: up to a place that no piece reaches across.
            low, high = np.uint64(1), np.uint64(0)
            length, last, width = 0, np.uint64(0), 0
            while position + length < end:
                lead = np.uint64(data_X[position + length])
                if last < 0x80 and lead < 0x80:
                    width, character = 1, lead
                    inside = inside_FF[last << np.uint64(8) | lead]
                else:
                    width, character = _character(data_X, position + length, end)
                    pair = _pair(last, character)
                    inside = inside_C[pair >> np.uint64(3)] >> (pair & np.uint64(7)) & 1
                if length > 0 and inside == 0:
                    break
                if length + width > WORD_BYTES:
                    length = 0
                    break
                for i in range(position + length, position + length + width):
                    high = high << np.uint64(8) | low >> np.uint64(56)
                    low = low << np.uint64(8) | np.uint64(data_X[i])
                length += width
                last = character
            if length > 0:
                slot = np.uint64(low * _SPREAD_LOW ^ high * _SPREAD_HIGH) >> np.uint64(64 - SLOT_BITS)
                known = np.int64(words_SI[slot, 0])
                if keys_S2[slot, 0] == low and keys_S2[slot, 1] == high and known >> 3 == length:
                    count = known & 7
                    for i in range(count):
                        ids_T[n + i] = words_SI[slot, 1 + i]
                    n += count
                    position += length
                    continue
                stop = position + length
                first = n
                while position < stop:
                    position, n = _segment(
                        data_X, position, stop, nodes_N, values_N, unknown, first_byte_id, scores_W, pieces_W, ids_T, n
                    )
                if n - first <= WORD_IDS:
                    keys_S2[slot, 0], keys_S2[slot, 1] = low, high
                    words_SI[slot, 0] = length << 3 | (n - first)
                    for i in range(n - first):
                        words_SI[slot, 1 + i] = ids_T[first + i]
                continue
            reached, n = _segment(
                data_X, position, end, nodes_N, values_N, unknown, first_byte_id, scores_W, pieces_W, ids_T, n
            )
            if reached == position:
                scores_W = np.empty(2 * len(scores_W) - 1, np.int64)
                pieces_W = np.empty(len(scores_W), np.int64)
            position = reached
        if after >= 0:
            ids_T[n] = after
            n += 1
        ends_D[document] = n
    return n


@numba.njit(cache=True, nogil=True)
def _segment(data_X, start, end, nodes_N, values_N, unknown, first_byte_id, scores_W, pieces_W, ids_T, n):
    """Write the best ids of data_X[start:stop] to ids_T[n:], stop being the first place that no piece reaches across.

    When there is none within the window, stop is the last place that all best ways to its end have in common, and so
    the best way through the whole text has it too.

    Returns:
        stop, and the end of the ids; stop is `start` when the window (scores_W, pieces_W) is too small to tell.
    """
    window = len(scores_W) - 1
    scores_W[0] = 0
    position = reach = start
    root = nodes_N[0] >> np.uint32(BASE_SHIFT)
    while True:
        lead = data_X[position]
        width = 1 if lead < 0xC0 else (2 if lead < 0xE0 else (3 if lead < 0xF0 else 4))
        width = min(width, end - position)
        score = scores_W[position - start]
        origin = (position - start) << 32
        alone = False
        base = root
        key = position
        limit = min(end, start + window)
        while key < limit:
            byte = np.uint32(data_X[key])
            slot = np.uint64(base ^ byte)
            node = nodes_N[slot]
            if node & np.uint32(LABEL) != byte + np.uint32(1):
                break
            key += 1
            if node & np.uint32(HAS_PIECE):
                value = values_N[slot]
                candidate = score + (value >> 32)
                at = key - start
                if key > reach:
                    for i in range(reach - start + 1, at):
                        scores_W[i] = NEVER
                    reach = key
                    scores_W[at] = candidate
                    pieces_W[at] = origin | (value & 0xFFFFFFFF)
                elif candidate > scores_W[at]:
                    scores_W[at] = candidate
                    pieces_W[at] = origin | (value & 0xFFFFFFFF)
                if key == position + width:
                    alone = True
            base = node >> np.uint32(BASE_SHIFT)
        following = position + width
        if following > start + window or (key == limit and limit < end):
            break  # the window is full
        if not alone:
            candidate = score + unknown
            at = following - start
            if following > reach:
                for i in range(reach - start + 1, at):
                    scores_W[i] = NEVER
                reach = following
                scores_W[at] = candidate
                pieces_W[at] = origin | 0xFFFFFFFF
            elif candidate > scores_W[at]:
                scores_W[at] = candidate
                pieces_W[at] = origin | 0xFFFFFFFF
        position = following
        if position == reach:
            return position, _write(data_X, start, position - start, first_byte_id, pieces_W, ids_T, n)
    # Go back from every place that is reached, the farthest first, until one is left.
    common = position - start
    for i in range(common + 1, reach - start + 1):
        if scores_W[i] > NEVER:
            a, b = common, i
            while a != b:
                if a > b:
                    a = pieces_W[a] >> 32
                else:
                    b = pieces_W[b] >> 32
            common = a
    if 2 * common < window:
        return start, n  # look further rather than over and over at the same
    return start + common, _write(data_X, start, common, first_byte_id, pieces_W, ids_T, n)


@numba.njit(cache=True, nogil=True)
def _write(data_X, start, at, first_byte_id, pieces_W, ids_T, n):
    """Write the ids of the best way to place `at` of the window to ids_T[n:]; their end."""
    first = n
    while at > 0:
        origin, piece = pieces_W[at] >> 32, pieces_W[at] & 0xFFFFFFFF
        if piece != 0xFFFFFFFF:
            ids_T[n] = piece
            n += 1
        else:
            for i in range(at - 1, origin - 1, -1):
                ids_T[n] = first_byte_id + data_X[start + i]
                n += 1
        at = origin
    low, high = first, n - 1
    while low < high:
        ids_T[low], ids_T[high] = ids_T[high], ids_T[low]
        low += 1
        high -= 1
    return n


@numba.njit(cache=True, nogil=True, inline="always")
def _character(data_X, position, end):
    """Width of the character that begins at `position`, and its bytes as one number."""
    lead = data_X[position]
    width = 1 if lead < 0xC0 else (2 if lead < 0xE0 else (3 if lead < 0xF0 else 4))
    width = min(width, end - position)
    character = np.uint64(0)
    for i in range(position, position + width):
        character = character << np.uint64(8) | np.uint64(data_X[i])
    return width, character


@numba.njit(cache=True, nogil=True, inline="always")
def _pair(first, second):
    """Where two neighbours, one of them not ASCII, stand in inside_C."""
    return np.uint64(first * _SPREAD_LOW + second * _SPREAD_HIGH) >> np.uint64(64 - PAIR_BITS)


@numba.njit(cache=True, nogil=True)
def _inside(data_X, starts_P1):
    """inside_FF and inside_C: which characters stand beside each other in a piece."""
    inside_FF = np.zeros(1 << 16, np.uint8)
    inside_C = np.zeros(1 << (PAIR_BITS - 3), np.uint8)
    for p in range(len(starts_P1) - 1):
        position, end = starts_P1[p], starts_P1[p + 1]
        last = np.uint64(0)
        for i in range(position, end):
            if data_X[i] & 0xC0 == 0x80:
                continue
            _, character = _character(data_X, i, end)
            if i > position and last < 0x80 and character < 0x80:
                inside_FF[last << np.uint64(8) | character] = 1
            elif i > position:
                pair = _pair(last, character)
                inside_C[pair >> np.uint64(3)] |= np.uint8(1) << np.uint8(pair & np.uint64(7))
            last = character
    return inside_FF, inside_C


@numba.njit(cache=True, nogil=True)
def _double_array(data_X, starts_P1, nodes_N, next_N, ends_P):
    """Build the trie of sorted, distinct pieces.

    The child of a node by byte c stands at base ^ c. No two nodes have the same base, so a child's label alone says
    that it belongs to who asks. Nodes are placed breadth first, each family at the first base where all of it fits; a
    family that is turned down `TRIES` times is the last to look at the places that it was turned down at.

    Args:
        nodes_N: uint32, zeros; filled.
        next_N: int64; next_N[i] = i + 1. The list of free nodes, with gaps that are jumped over lazily.
        ends_P: int64 [P]; filled with the node at which each piece ends.

    Returns:
        How many nodes are used, to a multiple of 256; 0 when nodes_N is too small.
    """
    pieces = len(ends_P)
    taken_N = np.zeros(len(nodes_N), np.bool_)  # as a base
    most = len(data_X) + 1
    slot_Q, first_Q, last_Q, depth_Q = np.zeros((4, most), np.int64)  # the nodes that wait for their children
    last_Q[0] = pieces
    nodes_N[0] = LABEL  # not free, and no child of anyone
    labels = np.empty(256, np.int64)
    head, tail, used = 0, 1, 256
    while head < tail:
        slot, low, high, depth = slot_Q[head], first_Q[head], last_Q[head], depth_Q[head]
        head += 1
        if starts_P1[low + 1] - starts_P1[low] == depth:
            nodes_N[slot] |= np.uint32(HAS_PIECE)
            ends_P[low] = slot
            low += 1
        family = tail
        for p in range(low, high):
            label = np.int64(data_X[starts_P1[p] + depth])
            if tail == family or labels[tail - family - 1] != label:
                labels[tail - family] = label
                first_Q[tail], depth_Q[tail] = p, depth + 1
                tail += 1
            last_Q[tail - 1] = p + 1
        if tail == family:  # a leaf; its base stays 0, at which no child ever stands
            continue
        free, tries, base = 0, 0, 0
        while base == 0:
            before, free = free, next_N[free]
            while free < len(nodes_N) and nodes_N[free] != 0:
                free = next_N[free]
            next_N[before] = free
            if free + 256 > len(nodes_N):
                return 0
            base = free ^ labels[0]
            fits = not taken_N[base]
            for i in range(1, tail - family):
                fits = fits and nodes_N[base ^ labels[i]] == 0
            if not fits:
                base = 0
            tries += 1
        if tries > TRIES:
            next_N[0] = free
        taken_N[base] = True
        used = max(used, (base | 255) + 1)
        nodes_N[slot] = nodes_N[slot] & np.uint32(LABEL | HAS_PIECE) | np.uint32(base << BASE_SHIFT)
        for i in range(tail - family):
            slot_Q[family + i] = base ^ labels[i]
            nodes_N[base ^ labels[i]] = labels[i] + 1
    return used
