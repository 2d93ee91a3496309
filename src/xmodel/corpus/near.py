"""Near duplicates as the corpus stage asks for them: the decider around near_duplicates/, after the exact ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from xmodel.console import progress
from xmodel.corpus.earlier import Earlier
from xmodel.corpus.ledger import EARLIER, Dropped, Ledger
from xmodel.corpus.near_duplicates import find_near_duplicates
from xmodel.corpus.workers import Runner


def find_near(ledger: Ledger, *, run: Runner, earlier: Earlier | None = None) -> Iterator[Dropped]:
    """The decider: documents that are near duplicates of an earlier one, which is kept.

    Args:
        ledger: all documents, in the order of the corpus; what is dropped already takes no part.
        run: carries out the work.
        earlier: the index of a corpus whose documents are not to come again.
    """
    job, starts = ledger.job, ledger.starts_S1

    def mapper(function: Callable[[int], Any], numbers: Iterable[int]) -> Iterator[Any]:
        parts = list(numbers)
        with progress("corpus: near duplicates", len(parts), "parts") as shown:
            for _, result in run(function, parts):
                shown.advance()
                yield result

    kept = find_near_duplicates(
        [job.path(shard, "records.npy") for shard in ledger.shards],
        job.settings.near_duplicates,
        job.work / "near",
        index=earlier.path / "near" if earlier else None,
        excluded=[ledger.reason_N[first:last] != 0 for first, last in pairwise(starts)],
        mapper=mapper,
    )
    settled = len(earlier) if earlier else 0
    for first, kept_D in zip(starts, kept, strict=False):
        rows_K = np.flatnonzero(kept_D >= 0)
        others_K = kept_D[rows_K]
        equals_K = np.where(others_K < settled, EARLIER + others_K, others_K - settled)
        yield Dropped("near_duplicate", first + rows_K, equals_K)
