"""From sketches to verified pairs: keys that near duplicates are likely to share, buckets of equal keys, verification.

**Keys.** `simhash`: up to a Hamming distance of 3 the 64 bits are cut into 6 blocks and every choice of 3 is a mask
(Manku et al. 2007, section 3): 20 tables, and no pair within the distance is missed. For wider distances that would
need masks of very few bits, under which half a corpus looks alike: SimHashes of long texts in one language are close
together. So each of 128 keys shows 8 bits of the SimHash and 3 values of the MinHash sketch, drawn by lot (Indyk and
Motwani 1998). A pair that has 65 % of its values in common, the least that is verified, shares a key with a
probability of 0.998 at distance 12, 0.96 at 16, 0.90 at 18; unrelated texts hardly ever do. `minhash`: each key is a
band of the sketch (Leskovec et al., Mining of Massive Datasets, section 3.4). Keys have 32 bits: documents that share
one by accident are not alike.

**A glance** at two bits of every value of the sketches (Li and König 2010) tells that a pair shares too few of them,
and refuses nearly all candidates at the price of a few instructions; it never refuses a pair that would be verified.

**Verification** looks at the sketches, not at the text. It counts the equal values that agree about where they stand:
documents of one template share many 5-grams, but in other places; a copy has them all shifted by about the same number
of characters. The similarity of a pair is the largest share of values that agree on one shift (two adjacent bins of
1/40 of the longer document). Where much differs it must differ evenly, as by typing or by recognition errors: below a
similarity of 0.75 the agreement in eight stretches of each document may scatter no more than 5.5 times as much as lots
would (a chi-square over its degrees of freedom, averaged over both documents). Random edits make it about 2, as an edit
takes five neighbouring 5-grams along; documents filled into one template, alike here and different there, about 14.
"""

from __future__ import annotations

from itertools import combinations, pairwise

import numba
import numpy as np

from xmodel.corpus.near_duplicates.sketch import mix
from xmodel.recipe.settings import NearDuplicates

GUARANTEED = 3  # largest Hamming distance for which the tables miss nothing
TABLES, WIDE_BITS, WIDE_VALUES = 128, 8, 3  # for wider distances
SHIFT_BINS = 40  # bins of shifts in the length of the longer document
REFUSED = 1 << 20  # refused pairs that a partition remembers
MOSTLY = 0.75  # similarity from which on a pair may differ unevenly
SEGMENTS, EVENLY = 8, 5.5  # stretches of a document, largest dispersion of the agreement among them
THRESHOLDS = {"simhash": 0.65, "minhash": 0.30}


def threshold(settings: NearDuplicates) -> float:
    """The similarity from which on a pair is verified."""
    return settings.threshold or THRESHOLDS[settings.mode]


def masks(distance: int) -> np.ndarray:
    """The bits of the SimHash that each table shows: uint64 [T]."""
    if distance <= GUARANTEED:
        edges = [64 * block // 6 for block in range(7)]
        blocks = [(1 << end) - (1 << begin) for begin, end in pairwise(edges)]
        return np.array([sum(choice) for choice in combinations(blocks, 3)], np.uint64)
    return np.bitwise_or.reduce(np.uint64(1) << _lots(1, TABLES, 64)[:, :WIDE_BITS].astype(np.uint64), axis=1)


def slots(distance: int, permutations: int) -> np.ndarray:
    """The values of the MinHash sketch that each table shows beside: int64 [T, V]."""
    if distance <= GUARANTEED:
        return np.zeros((len(masks(distance)), 0), np.int64)
    return _lots(2, TABLES, permutations)[:, :WIDE_VALUES]


def _lots(seed: int, rows: int, things: int) -> np.ndarray:
    """In each row all things in an order drawn by lot: int64 [rows, things]."""
    first = np.uint64(seed << 32)
    return np.argsort(mix_all(np.arange(1, rows * things + 1, dtype=np.uint64) + first).reshape(rows, things), axis=1)


def number_of_keys(settings: NearDuplicates) -> int:
    """Keys of a document."""
    return len(masks(settings.distance)) if settings.mode == "simhash" else settings.bands


@numba.njit(cache=True, nogil=True)
def _band_keys(values_DK, rows, keys_DT):
    for document in range(len(values_DK)):
        for band in range(keys_DT.shape[1]):
            key = np.uint64(band)
            for row in range(rows):
                key = mix(key * np.uint64(0x10001) + np.uint64(values_DK[document, band * rows + row]) + np.uint64(1))
            keys_DT[document, band] = key


def bucket_keys(sketches_D: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    """Documents that share a key are candidates: uint32 [D, T], a column for each table or band."""
    if settings.mode == "simhash":
        masks_T = masks(settings.distance)
        tables_T = np.arange(1, len(masks_T) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        keys_DT = mix_all((sketches_D["simhash"][:, None] & masks_T) ^ mix_all(tables_T))
        for slots_T in slots(settings.distance, settings.permutations).T:
            keys_DT = mix_all(keys_DT ^ sketches_D["values"][:, slots_T])
        return keys_DT.astype(np.uint32)
    keys_DT = np.empty((len(sketches_D), settings.bands), np.uint64)
    _band_keys(np.ascontiguousarray(sketches_D["values"]), settings.permutations // settings.bands, keys_DT)
    return keys_DT.astype(np.uint32)


def mix_all(values: np.ndarray) -> np.ndarray:
    """`mix` of every element."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def hamming(one, other):
    """Bits in which two 64-bit words differ."""
    bits = one ^ other
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((bits * np.uint64(0x0101010101010101)) >> np.uint64(56))


def glance_dtype(permutations: int) -> np.dtype:
    """What is kept of a document for a glance: `bits` are two of each value, in words of 64 values."""
    words = -(-permutations // 64)
    return np.dtype([("simhash", "<u8"), ("bits", "<u8", 2 * words), ("characters", "<u4")], align=True)


@numba.njit(cache=True, nogil=True)
def _gather_bits(values_DK, bits_DW):
    documents, slots = values_DK.shape
    for document in range(documents):
        bits_DW[document] = 0
        for slot in range(slots):
            value = np.uint64(values_DK[document, slot])
            for bit in range(2):
                shown = (value >> np.uint64(bit)) & np.uint64(1)
                bits_DW[document, slot // 64 * 2 + bit] |= shown << np.uint64(slot % 64)


def glances(sketches_D: np.ndarray) -> np.ndarray:
    """What is kept of D sketches: [D] of `glance_dtype`."""
    permutations = sketches_D["values"].shape[1]
    glances_D = np.zeros(len(sketches_D), glance_dtype(permutations))
    glances_D["simhash"], glances_D["characters"] = sketches_D["simhash"], sketches_D["characters"]
    if len(sketches_D):
        _gather_bits(sketches_D["values"], glances_D["bits"])
    return glances_D


@numba.njit(cache=True, nogil=True)
def _may_share(bits_NW, one, other, least):
    """Whether at least so many of two documents' values may be equal; places without a value count as equal."""
    equal = 0
    for word in range(0, bits_NW.shape[1], 2):
        differ = bits_NW[one, word] ^ bits_NW[other, word]
        differ |= bits_NW[one, word + 1] ^ bits_NW[other, word + 1]
        equal += 64 - hamming(differ, np.uint64(0))
    return equal >= least


@numba.njit(cache=True, nogil=True)
def similarity(characters_N, values_NK, positions_NK, one, other, least):
    """The similarity of two documents' sketches as the module's text defines it; 0 where `least` cannot be reached."""
    if characters_N[one] < characters_N[other]:
        one, other = other, one
    length, shorter = np.float64(characters_N[one]), np.float64(characters_N[other])
    slots = values_NK.shape[1]
    if shorter < least * length:
        return 0.0
    equal = 0
    for slot in range(slots):
        equal += values_NK[one, slot] == values_NK[other, slot]
    if equal < least * slots:
        return 0.0
    shifts = np.zeros(2 * SHIFT_BINS + 2, np.int64)
    bins_K = np.full(slots, -1, np.int64)
    for slot in range(slots):
        if values_NK[one, slot] == values_NK[other, slot]:
            shift = (positions_NK[one, slot] - positions_NK[other, slot] * shorter / length) / 256
            bins_K[slot] = np.int64((shift + 1) * SHIFT_BINS)
            shifts[bins_K[slot]] += 1
    best = 0
    for index in range(len(shifts) - 1):
        if shifts[index] + shifts[index + 1] > shifts[best] + shifts[best + 1]:
            best = index
    found = (shifts[best] + shifts[best + 1]) / slots
    if found < least:
        return 0.0
    if found >= MOSTLY:
        return found
    dispersion = 0.0
    for document in (one, other):
        values_S = np.zeros(SEGMENTS, np.float64)
        agree_S = np.zeros(SEGMENTS, np.float64)
        for slot in range(slots):
            segment = np.int64(positions_NK[document, slot]) * SEGMENTS // 256
            values_S[segment] += 1
            agree_S[segment] += best <= bins_K[slot] <= best + 1
        for segment in range(SEGMENTS):
            expected = values_S[segment] * found
            if expected > 0:
                dispersion += (agree_S[segment] - expected) ** 2 / (expected * (1 - found)) / (2 * SEGMENTS)
    return found if dispersion <= EVENLY else 0.0


@numba.njit(cache=True, nogil=True)
def root(parents_N, node):
    """The representative of a node's cluster, with path halving (Tarjan and van Leeuwen 1984)."""
    while parents_N[node] != node:
        parents_N[node] = parents_N[parents_N[node]]
        node = parents_N[node]
    return node


@numba.njit(cache=True, nogil=True)
def link(parents_N, one, other):
    """Join two clusters; the smaller number, that is the earlier document, represents them."""
    one, other = root(parents_N, one), root(parents_N, other)
    parents_N[max(one, other)] = min(one, other)


@numba.njit(cache=True, nogil=True)
def verified_pairs(
    records_R, simhashes_N, bits_NW, glanced_N, characters_N, values_NK, positions_NK, settled, distance, least
):
    """Pairs of one partition's buckets that are verified: no more of them than connect what is connected.

    Args:
        records_R: uint64 [R], ascending: a key in the upper half, the number of a document that has it in the lower.
        simhashes_N, bits_NW, glanced_N: of `glances`, of all documents; `glanced_N` are their numbers of characters.
        characters_N, values_NK, positions_NK: their sketches; only those of pairs that stand a glance are touched.
        settled: documents below this number are not compared with each other.
        distance: Hamming distance of candidates; 64 for no limit.
        least: similarity of verified pairs.

    Returns:
        int64 [E, 2], document numbers.
    """
    document = np.uint64(0xFFFFFFFF)
    slots = values_NK.shape[1]
    enough = np.int64(np.ceil(least * slots)) + 32 * bits_NW.shape[1] - slots
    parents_N = np.arange(len(simhashes_N))
    pairs_E2 = np.empty((1024, 2), np.int64)
    refused_S = np.zeros(REFUSED, np.uint64)
    found = 0
    begin = 0
    while begin < len(records_R):
        key = records_R[begin] >> np.uint64(32)
        end = begin + 1
        while end < len(records_R) and records_R[end] >> np.uint64(32) == key:
            end += 1
        for later in range(begin + 1, end):
            one = np.int64(records_R[later] & document)
            if one < settled:
                continue
            for earlier in range(begin, later):
                other = np.int64(records_R[earlier] & document)
                if hamming(simhashes_N[one], simhashes_N[other]) > distance:
                    continue
                if min(glanced_N[one], glanced_N[other]) < least * max(glanced_N[one], glanced_N[other]):
                    continue
                if not _may_share(bits_NW, one, other, enough):
                    continue
                if root(parents_N, one) == root(parents_N, other):
                    continue
                pair = (np.uint64(one) << np.uint64(32)) | np.uint64(other)  # it may share many tables: refuse it once
                slot = mix(pair) & np.uint64(REFUSED - 1)
                if refused_S[slot] == pair:
                    continue
                refused_S[slot] = pair
                if similarity(characters_N, values_NK, positions_NK, other, one, least) > 0:
                    link(parents_N, one, other)
                    if found == len(pairs_E2):
                        pairs_E2 = np.concatenate((pairs_E2, np.empty_like(pairs_E2)))
                    pairs_E2[found, 0] = other
                    pairs_E2[found, 1] = one
                    found += 1
        begin = end
    return pairs_E2[:found]


@numba.njit(cache=True, nogil=True)
def join(parents_N, pairs_E2):
    """Link all pairs."""
    for index in range(len(pairs_E2)):
        link(parents_N, pairs_E2[index, 0], pairs_E2[index, 1])


@numba.njit(cache=True, nogil=True)
def roots(parents_N):
    """The representative of every node: the smallest number of its cluster."""
    for node in range(len(parents_N)):
        parents_N[node] = root(parents_N, node)
    return parents_N
