"""Interpolated modified Kneser-Ney smoothing, estimated by sorting (Chen and Goodman 1998; Heafield, Pouzyrevsky, Clark
and Koehn 2013, "Scalable Modified Kneser-Ney Language Model Estimation").

    tokens ─▶ count ─▶ adjust ─▶ normalize ─▶ interpolate ─▶ order-1 … order-N
              suffix   suffix     context       suffix        order of the n-grams

Each step reads and writes files of records and sorts them in a stated amount of memory; besides that, only arrays over
the vocabulary are held. Words of an n-gram are packed to a 128-bit key, the last word (suffix order) or the first one
(context order) in the highest bits.

- The adjusted count of an n-gram below the highest order, and not beginning with `<s>`, is the number of different
  words before it; of all others it is how often they occur.
- An n-gram that occurs at most `prune` times (in the text, not adjusted) is left out; its mass goes to the back-off.
- The unigrams are interpolated with the uniform distribution over all words but `<s>`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np

from xmodel.corpus.kneser_ney.sort import external_sort, read_records
from xmodel.corpus.kneser_ney.units import BEGIN, END, UNKNOWN
from xmodel.errors import UserError

LARGEST_ORDER = 5
FALLBACK = (0.5, 1.0, 1.5)  # discounts where the text is too small or too regular to derive them
LEAST_LOG = np.float32(-99.0)  # stands for a probability of 0
KEY_BITS = 125


@dataclass
class NGrams:
    """A block of G n-grams of one order."""

    words_Gn: np.ndarray  # int32
    logs_G2: np.ndarray  # float32: log10 of the probability and of the back-off weight (0 in the highest order)


@dataclass
class Estimate:
    """An estimated model: its sizes, and where its records lie."""

    order: int
    vocabulary: int
    counts: list[int]  # n-grams of each order
    discounts: list[tuple[float, float, float]]  # of each order
    logs_V2: np.ndarray  # float32, unigrams
    folder: Path
    bits: int

    def ngrams(self, order: int, rows: int = 1 << 18) -> Iterator[NGrams]:
        """The n-grams of one order, in blocks: unigrams by id, the others by their last word, the one before, ..."""
        if order == 1:
            for begin in range(0, self.vocabulary, rows):
                ids = np.arange(begin, min(begin + rows, self.vocabulary), dtype=np.int32)
                yield NGrams(ids[:, None], self.logs_V2[begin : begin + rows])
            return
        for records_R3 in read_records(_file(self.folder, "order", order), 3, rows):
            yield NGrams(_words(records_R3, order, self.bits), _as_logs(records_R3.view(np.float32)[:, 4:]))


def estimate(
    tokens: Callable[[], Iterable[np.ndarray]],
    vocabulary: int,
    *,
    order: int,
    prune: Sequence[int] = (0,),
    memory: int,
    folder: Path,
) -> Estimate:
    """Estimate a model.

    Args:
        tokens: gives the text as blocks of ids, int32, every sentence closed by `END`.
        vocabulary: number of ids.
        order: words of the longest n-grams, 1 to 5.
        prune: n-grams of order 1, 2, ... that occur at most so often are left out; the last number holds for all
            higher orders; the first one is 0, and they never fall.
        memory: bytes for sorting.
        folder: an existing folder for the records; the caller removes it when done.

    Raises:
        UserError: no text, a reserved word in the text, more words than keys have room for, impossible settings.
    """
    bits = max(2, int(vocabulary - 1).bit_length())
    if not 1 <= order <= LARGEST_ORDER:
        raise UserError(f"an n-gram model of order {order}: the order is between 1 and {LARGEST_ORDER}")
    if order * bits > KEY_BITS:
        raise UserError(
            f"{vocabulary:,} different words are too many for order {order}; use a lower order, or less text"
        )
    prune_N = np.array([*prune, *[prune[-1]] * order][:order], np.int64)
    if prune_N[0] != 0 or np.any(np.diff(prune_N) < 0):
        raise UserError(f"pruning {list(prune)}: begins with 0 and never falls, as in 0, 0, 1")

    rows = max(1024, memory // (16 * 8 * 4))  # of a block between two steps
    grams = external_sort(
        _count(tokens, order, bits, rows), 3, bits=order * bits, memory=memory, folder=folder, add_up=True
    )
    seen_V, adjusted_N5 = _adjust_all(grams, vocabulary, order, bits, prune_N, rows, folder)
    if not seen_V.any():
        raise UserError("the reference text of a language model holds no words")
    discounts_N4 = np.array([_discounts(counts) for counts in adjusted_N5])

    sizes = [vocabulary] + [0] * (order - 1)
    for n in range(order, 1, -1):
        sizes[n - 1] = _normalize_all(n, order, bits, discounts_N4[n - 1], rows, memory, folder)
    linear_V2 = _unigrams(seen_V, discounts_N4[0], order, folder)
    below = linear_V2[:, :1]
    for n in range(2, order + 1):
        _interpolate_all(n, bits, below if n == 2 else None, rows, memory, folder)
    triples = [(float(row[1]), float(row[2]), float(row[3])) for row in discounts_N4]
    return Estimate(order, vocabulary, sizes, triples, _as_logs(linear_V2), folder, bits)


def _file(folder: Path, kind: str, order: int) -> Path:
    return folder / f"{kind}-{order}"


def _pieces(blocks: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    for block in blocks:
        for begin in range(0, len(block), rows):
            yield block[begin : begin + rows]


def _as_logs(linear: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.maximum(np.log10(linear), LEAST_LOG) + np.float32(0)  # + 0: no minus zero


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@numba.njit(cache=True, nogil=True)
def _right(high, low, shift):
    """The 128-bit number (high, low), shifted to the right."""
    if shift == 0:
        return high, low
    if shift >= 64:
        return np.uint64(0), high >> np.uint64(shift - 64) if shift < 128 else np.uint64(0)
    return high >> np.uint64(shift), (low >> np.uint64(shift)) | (high << np.uint64(64 - shift))


@numba.njit(cache=True, nogil=True)
def _left(high, low, shift):
    """The 128-bit number (high, low), shifted to the left."""
    if shift == 0:
        return high, low
    if shift >= 64:
        return low << np.uint64(shift - 64) if shift < 128 else np.uint64(0), np.uint64(0)
    return (high << np.uint64(shift)) | (low >> np.uint64(64 - shift)), low << np.uint64(shift)


@numba.njit(cache=True, nogil=True)
def _reversed(high, low, order, bits):
    """The key with its words in the opposite order."""
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    to_high = to_low = np.uint64(0)
    for _ in range(order):
        to_high, to_low = _left(to_high, to_low, bits)
        to_low |= low & mask
        high, low = _right(high, low, bits)
    return to_high, to_low


@numba.njit(cache=True, nogil=True)
def _reverse(records_RC, order, bits):
    turned_RC = records_RC.copy()
    for row in range(len(records_RC)):
        turned_RC[row, 0], turned_RC[row, 1] = _reversed(records_RC[row, 0], records_RC[row, 1], order, bits)
    return turned_RC


@numba.njit(cache=True, nogil=True)
def _words(records_RC, order, bits):
    """Words of keys in suffix order: int32 [R, order], first word first."""
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    words_Rn = np.empty((len(records_RC), order), np.int32)
    for row in range(len(records_RC)):
        high, low = records_RC[row, 0], records_RC[row, 1]
        for column in range(order):
            words_Rn[row, column] = np.int32(low & mask)
            high, low = _right(high, low, bits)
    return words_Rn


# ── count and adjust ─────────────────────────────────────────────────────────────────────────────────────────────────


def _count(tokens: Callable[[], Iterable[np.ndarray]], order: int, bits: int, rows: int) -> Iterator[np.ndarray]:
    """An n-gram of the highest order for every token: records of key (suffix order) and 1."""
    state = np.zeros(2, np.uint64)
    state[0], state[1] = _begin(order, bits)
    for ids_T in _pieces(tokens(), rows):
        if ids_T.min(initial=END) < END:
            raise UserError("the reference text of a language model holds a reserved word: <unk>, <s> or </s>")
        yield _count_block(np.ascontiguousarray(ids_T, np.int32), order, bits, state)


@numba.njit(cache=True, nogil=True)
def _begin(order, bits):
    high = low = np.uint64(0)
    for _ in range(order):
        high, low = _left(high, low, bits)
        low |= np.uint64(BEGIN)
    return high, low


@numba.njit(cache=True, nogil=True)
def _count_block(ids_T, order, bits, state):
    records_T3 = np.empty((len(ids_T), 3), np.uint64)
    high, low = state[0], state[1]
    for token in range(len(ids_T)):
        high, low = _right(high, low, bits)
        word_high, word_low = _left(np.uint64(0), np.uint64(ids_T[token]), (order - 1) * bits)
        high |= word_high
        low |= word_low
        records_T3[token, 0] = high
        records_T3[token, 1] = low
        records_T3[token, 2] = 1
        if ids_T[token] == END:
            high, low = _begin(order, bits)
    state[0], state[1] = high, low
    return records_T3


@numba.njit(cache=True, nogil=True)
def _emit(high, low, n, order, bits, occurs, before, prune_N, out_NR3, filled_N, adjusted_N5):
    """Write the n-gram at the end of a key, unless it is padded with more than one `<s>`."""
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    high, low = _right(high, low, (order - n) * bits)
    _, second = _right(high, low, bits)
    if n > 1 and second & mask == BEGIN:
        return
    count = occurs if n == order or low & mask == BEGIN else before
    pruned = occurs <= prune_N[n - 1]
    row = filled_N[n - 1]
    out_NR3[n - 1, row, 0] = high
    out_NR3[n - 1, row, 1] = low
    out_NR3[n - 1, row, 2] = np.uint64(count) << np.uint64(1) | np.uint64(pruned)
    filled_N[n - 1] = row + 1
    if count < 5:
        adjusted_N5[n - 1, count] += 1


@numba.njit(cache=True, nogil=True)
def _adjust(grams_R3, order, bits, prune_N, last, occurs_N, before_N, out_NR3, filled_N, adjusted_N5):
    """Adjusted counts of all orders from sorted n-grams of the highest order.

    last: uint64 [3], the key before the first one, and whether there is one. occurs_N, before_N: of the n-grams at its
    end, how often they occur so far, and how many words stand before them.
    """
    for row in range(len(grams_R3)):
        high, low, count = grams_R3[row, 0], grams_R3[row, 1], np.int64(grams_R3[row, 2])
        common = 0  # words at the end that the two keys share
        if last[2]:
            while common < order - 1:
                shift = (order - 1 - common) * bits
                ours, theirs = _right(high, low, shift), _right(last[0], last[1], shift)
                if ours[0] != theirs[0] or ours[1] != theirs[1]:
                    break
                common += 1
            for n in range(common + 1, order):
                _emit(
                    last[0], last[1], n, order, bits, occurs_N[n], before_N[n], prune_N, out_NR3, filled_N, adjusted_N5
                )
        for n in range(1, common + 1):
            occurs_N[n] += count
        before_N[common] += 1
        for n in range(common + 1, order):
            occurs_N[n] = count
            before_N[n] = 1
        _emit(high, low, order, order, bits, count, 0, prune_N, out_NR3, filled_N, adjusted_N5)
        last[0], last[1], last[2] = high, low, 1


def _adjust_all(
    grams: Iterable[np.ndarray], vocabulary: int, order: int, bits: int, prune_N: np.ndarray, rows: int, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Write the files adjusted-2 to adjusted-N: key in suffix order, adjusted count · 2 + whether it is pruned.

    Returns:
        seen_V: int64, adjusted counts of the unigrams.
        adjusted_N5: int64, for each order the number of n-grams of adjusted count 0 to 4.
    """
    seen_V = np.zeros(vocabulary, np.int64)
    adjusted_N5 = np.zeros((order, 5), np.int64)
    last = np.zeros(3, np.uint64)
    occurs_N, before_N = np.zeros(order + 1, np.int64), np.zeros(order + 1, np.int64)
    out_NR3 = np.empty((order, rows // order + 2, 3), np.uint64)

    def write(filled_N: np.ndarray) -> None:
        unigrams_R3 = out_NR3[0, : filled_N[0]]
        seen_V[unigrams_R3[:, 1].astype(np.int64)] = unigrams_R3[:, 2] >> np.uint64(1)
        for stream, records_R3, filled in zip(streams, out_NR3[1:], filled_N[1:], strict=True):
            records_R3[:filled].tofile(stream)

    with ExitStack() as files:
        streams = [files.enter_context(open(_file(folder, "adjusted", n), "wb")) for n in range(2, order + 1)]
        for grams_R3 in _pieces(grams, rows // order):
            filled_N = np.zeros(order, np.int64)
            _adjust(grams_R3, order, bits, prune_N, last, occurs_N, before_N, out_NR3, filled_N, adjusted_N5)
            write(filled_N)
        filled_N = np.zeros(order, np.int64)
        for n in range(1, order if last[2] else 1):
            _emit(last[0], last[1], n, order, bits, occurs_N[n], before_N[n], prune_N, out_NR3, filled_N, adjusted_N5)
        write(filled_N)
    return seen_V, adjusted_N5


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Chen and Goodman's equation 26: what to take off an adjusted count of 0, 1, 2, and 3 or more.

    Args:
        counts: how many n-grams have an adjusted count of 0, 1, 2, 3, 4.
    """
    if np.all(counts[1:4] > 0):
        share = counts[1] / (counts[1] + 2 * counts[2])
        found = np.array([number - (number + 1) * share * counts[number + 1] / counts[number] for number in (1, 2, 3)])
        if np.all(found >= 0) and np.all(found <= (1, 2, 3)):
            return np.array([0.0, *found])
    return np.array([0.0, *FALLBACK])


# ── normalize ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _whole_contexts(blocks: Iterable[np.ndarray], bits: int) -> Iterator[np.ndarray]:
    """The same sorted records in blocks that never end within a context; a context has at most a vocabulary of them."""
    rest: np.ndarray | None = None
    for block in blocks:
        records_RC = block if rest is None else np.concatenate([rest, block])
        cut = _last_context(records_RC, bits)
        rest = records_RC[cut:]
        if cut:
            yield records_RC[:cut]
    if rest is not None and len(rest):
        yield rest


@numba.njit(cache=True, nogil=True)
def _last_context(records_RC, bits):
    """Where the records of the last record's context begin."""
    row = len(records_RC) - 1
    wanted = _right(records_RC[row, 0], records_RC[row, 1], bits)
    while row > 0:
        found = _right(records_RC[row - 1, 0], records_RC[row - 1, 1], bits)
        if found[0] != wanted[0] or found[1] != wanted[1]:
            break
        row -= 1
    return row


def _joined(
    upper: Iterable[np.ndarray], lower: Iterator[np.ndarray], shift: int, missing: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Look up the upper records' keys, shifted to the right, among the lower ones; both are sorted by what is compared.

    Yields:
        A block of the upper records [R, C], and float32 [R]: the lower record's value, or `missing`.
    """
    nothing = np.zeros((0, 3), np.uint64)
    lower_R3, at = next(lower, nothing), 0
    for upper_RC in upper:
        values_R = np.full(len(upper_RC), missing, np.float32)
        done = 0
        while len(lower_R3):
            done, at = _join(upper_RC, done, lower_R3, at, shift, lower_R3.view(np.float32), values_R)
            if at < len(lower_R3):
                break
            lower_R3, at = next(lower, nothing), 0
        yield upper_RC, values_R


@numba.njit(cache=True, nogil=True)
def _join(upper_RC, done, lower_R3, at, shift, values_R6, values_R):
    while done < len(upper_RC):
        high, low = _right(upper_RC[done, 0], upper_RC[done, 1], shift)
        while at < len(lower_R3) and (lower_R3[at, 0] < high or (lower_R3[at, 0] == high and lower_R3[at, 1] < low)):
            at += 1
        if at == len(lower_R3):
            break
        if lower_R3[at, 0] == high and lower_R3[at, 1] == low:
            values_R[done] = values_R6[at, 4]
        done += 1
    return done, at


@numba.njit(cache=True, nogil=True)
def _normalize(records_R3, backoffs_R, order, bits, discounts_4):
    """Turn counts into shares of their contexts, and find what each context leaves to the lower order.

    Returns:
        grams_R4: of what is not pruned: key in suffix order; as float32 share, weight of the lower order, back-off.
        contexts_R3: key in context order; as float32 the weight of the lower order.
    """
    rows = len(records_R3)
    grams_R4 = np.zeros((rows, 4), np.uint64)
    values_R8 = grams_R4.view(np.float32)
    contexts_R3 = np.zeros((rows, 3), np.uint64)
    weights_R6 = contexts_R3.view(np.float32)
    grams = contexts = 0
    begin = 0
    while begin < rows:
        context = _right(records_R3[begin, 0], records_R3[begin, 1], bits)
        total = left_over = 0.0
        end = begin
        while end < rows:
            here = _right(records_R3[end, 0], records_R3[end, 1], bits)
            if here[0] != context[0] or here[1] != context[1]:
                break
            count = np.int64(records_R3[end, 2] >> np.uint64(1))
            total += count
            left_over += count if records_R3[end, 2] & np.uint64(1) else discounts_4[min(count, 3)]
            end += 1
        for row in range(begin, end):
            if records_R3[row, 2] & np.uint64(1):
                continue
            count = np.int64(records_R3[row, 2] >> np.uint64(1))
            grams_R4[grams, 0], grams_R4[grams, 1] = _reversed(records_R3[row, 0], records_R3[row, 1], order, bits)
            values_R8[grams, 4] = (count - discounts_4[min(count, 3)]) / total
            values_R8[grams, 5] = left_over / total
            values_R8[grams, 6] = backoffs_R[row]
            grams += 1
        contexts_R3[contexts, 0], contexts_R3[contexts, 1] = context
        weights_R6[contexts, 4] = left_over / total
        contexts += 1
        begin = end
    return grams_R4[:grams], contexts_R3[:contexts]


def _normalize_all(n: int, order: int, bits: int, discounts_4: np.ndarray, rows: int, memory: int, folder: Path) -> int:
    """From adjusted-n and, below the top order, weights-n: write shares-n and weights-(n-1). Returns its n-grams."""
    source = _file(folder, "adjusted", n)
    turned = (_reverse(block, n, bits) for block in read_records(source, 3, rows))
    records = external_sort(turned, 3, bits=n * bits, memory=memory, folder=folder)
    weights = _file(folder, "weights", n)
    backoffs = iter(()) if n == order else read_records(weights, 3, rows)
    grams = 0
    with (
        open(_file(folder, "shares", n), "wb") as shares_stream,
        open(_file(folder, "weights", n - 1), "wb") as weights_stream,
    ):
        for records_R3, backoffs_R in _joined(_whole_contexts(_pieces(records, rows), bits), backoffs, 0, 1.0):
            grams_R4, contexts_R3 = _normalize(records_R3, backoffs_R, n, bits, discounts_4)
            grams_R4.tofile(shares_stream)
            contexts_R3.tofile(weights_stream)
            grams += len(grams_R4)
    source.unlink()
    weights.unlink(missing_ok=True)
    return grams


# ── interpolate ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _unigrams(seen_V: np.ndarray, discounts_4: np.ndarray, order: int, folder: Path) -> np.ndarray:
    """Probabilities and back-offs of the words: float32 [V, 2]."""
    discounts_V = discounts_4[np.minimum(seen_V, 3)]
    total = seen_V.sum()
    linear_V2 = np.ones((len(seen_V), 2), np.float32)
    linear_V2[:, 0] = (seen_V - discounts_V) / total + discounts_V.sum() / total / (len(seen_V) - 1)
    linear_V2[BEGIN, 0] = 1.0  # so that scoring `<s>` as a word changes nothing
    if order > 1:
        for contexts_R3 in read_records(_file(folder, "weights", 1), 3, 1 << 16):
            linear_V2[contexts_R3[:, 1].astype(np.int64), 1] = contexts_R3.view(np.float32)[:, 4]
        _file(folder, "weights", 1).unlink()
    linear_V2[[UNKNOWN, END], 1] = 1.0
    return linear_V2


def _interpolate_all(n: int, bits: int, unigrams_V1: np.ndarray | None, rows: int, memory: int, folder: Path) -> None:
    """From shares-n and the order below: write order-n, key in suffix order, probability and back-off as float32."""
    shares = _file(folder, "shares", n)
    if unigrams_V1 is None:
        lower = read_records(_file(folder, "order", n - 1), 3, rows)
    else:
        lower_V3 = np.zeros((len(unigrams_V1), 3), np.uint64)
        lower_V3[:, 1] = np.arange(len(unigrams_V1))
        lower_V3.view(np.float32)[:, 4] = unigrams_V1[:, 0]
        lower = iter([lower_V3])
    records = external_sort(read_records(shares, 4, rows), 4, bits=n * bits, memory=memory, folder=folder)
    with open(_file(folder, "order", n), "wb") as stream:
        for grams_R4, below_R in _joined(_pieces(records, rows), lower, bits, np.nan):
            values_R8 = grams_R4.view(np.float32)
            out_R3 = np.ascontiguousarray(grams_R4[:, :3])
            out_R6 = out_R3.view(np.float32)
            out_R6[:, 4] = values_R8[:, 4] + values_R8[:, 5] * below_R
            out_R6[:, 5] = values_R8[:, 6]
            out_R3.tofile(stream)
    shares.unlink()
