"""Exact duplicates: documents whose folded texts are equal, within a source and across sources. The first one is kept.

"First" is the order of the corpus (ledger.py): an earlier corpus, validation sources, then training sources, each in
reading order.
Equality is that of the signature (deduplicate.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import numba
import numpy as np

from xmodel.corpus.deduplicate import signatures
from xmodel.corpus.earlier import Earlier
from xmodel.corpus.ledger import EARLIER, Dropped, Ledger


@numba.njit(cache=True, nogil=True)
def _first_equal(table_S2, firsts_S, hashes_D2, wanted_D, inserting_D, ordinal):
    """The ordinal of the first document inserted with the same hash, for each wanted one; -1 where there is none.

    Document d has the ordinal `ordinal` + d. A wanted document that is the first one is put in where inserting_D.
    """
    mask = np.uint64(len(firsts_S) - 1)
    equals_D = np.full(len(hashes_D2), -1, np.int64)
    for document in range(len(hashes_D2)):
        if not wanted_D[document]:
            continue
        low = hashes_D2[document, 0]
        high = hashes_D2[document, 1]
        slot = low & mask
        while firsts_S[slot] >= 0 and (table_S2[slot, 0] != low or table_S2[slot, 1] != high):
            slot = (slot + np.uint64(1)) & mask
        if firsts_S[slot] >= 0:
            equals_D[document] = firsts_S[slot]
        elif inserting_D[document]:
            firsts_S[slot] = ordinal + document
            table_S2[slot, 0] = low
            table_S2[slot, 1] = high
    return equals_D


SLOT_BYTES = 24  # of the table: a hash and an ordinal
LEAST_SLOTS = 1 << 12


def find_exact_duplicates(
    ledger: Ledger, *, everywhere: bool, memory: int, earlier: Earlier | None = None
) -> Iterator[Dropped]:
    """The decider: documents whose signature an earlier one has.

    "in_validation" is a training document that equals one of a validation source, "duplicate" any other one.

    Args:
        ledger: all documents, in the order of the corpus.
        everywhere: False: look only for training documents that equal one of a validation source.
        memory: bytes for the table of signatures. Where it cannot hold them all they are gone through several times,
            each time for another part of the hashes.
        earlier: the index of a corpus whose documents are not to come again.
    """
    documents = (len(ledger) if everywhere else ledger.validation) + (len(earlier) if earlier else 0)
    if documents == 0:
        return
    slots = max(LEAST_SLOTS, 1 << (2 * documents - 1).bit_length())  # between a quarter and half full
    while slots * SLOT_BYTES > memory and slots > LEAST_SLOTS:
        slots //= 2
    passes = -(-2 * documents // slots)
    for number in range(passes):
        table_S2, firsts_S = np.zeros((slots, 2), np.uint64), np.full(slots, -1, np.int64)

        def of_this_pass(hashes_D2: np.ndarray, number: int = number) -> np.ndarray:
            return (hashes_D2[:, 1] >> np.uint64(32)) % np.uint64(passes) == number

        for first, hashes_D2, kept_D in earlier.signatures() if earlier else ():
            wanted_D = kept_D & of_this_pass(hashes_D2)
            _first_equal(table_S2, firsts_S, hashes_D2, wanted_D, wanted_D, EARLIER + first)
        for batch in ledger.batches(["signature"]):
            hashes_D2 = signatures(batch.columns)
            ordinals_D = np.arange(batch.first, batch.first + len(hashes_D2))
            training_D = ordinals_D >= ledger.validation
            inserting_D = training_D <= everywhere
            wanted_D = batch.alive_D & of_this_pass(hashes_D2)
            equals_D = _first_equal(table_S2, firsts_S, hashes_D2, wanted_D, inserting_D, batch.first)
            in_validation_D = training_D & (equals_D >= 0) & (equals_D < ledger.validation)
            yield Dropped("in_validation", ordinals_D[in_validation_D], equals_D[in_validation_D])
            if everywhere:
                duplicate_D = (equals_D >= 0) & ~in_validation_D
                yield Dropped("duplicate", ordinals_D[duplicate_D], equals_D[duplicate_D])
