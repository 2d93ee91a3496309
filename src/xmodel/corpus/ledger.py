"""The second phase: what can only be decided when all documents are known. One entry a document, in a stable order.

A document's ordinal is its place in the order of the corpus: validation sources first, then the sources of the recipe,
each shard after shard, row after row. A decider is a generator that goes through the documents' signatures and says
which are to be dropped and why; one decider after the other is asked, and each sees what the earlier ones have left.
The ledger is two arrays on disk, nine bytes a document, mapped into memory: its pages are the file system's to keep or
to drop, so the memory of the process does not grow with the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from xmodel.corpus.mapping import Job, shard_batches, shard_figures
from xmodel.corpus.shards import Shard, in_order

REASONS = ("", "in_validation", "duplicate", "near_duplicate")  # of the deciders; 0: nothing is decided
CHUNK = 1 << 20  # documents written at once
EARLIER = 1 << 62  # the ordinal of the first document of an earlier corpus (earlier.py)


@dataclass(frozen=True)
class Signed:
    """Some documents as a decider sees them."""

    first: int  # ordinal of the first one
    alive_D: np.ndarray  # bool: not dropped yet
    columns: pa.RecordBatch  # of mapping.SIGNATURES, those that were asked for


@dataclass(frozen=True)
class Dropped:
    """What a decider says of K documents that are alive."""

    reason: str  # one of REASONS
    ordinals_K: np.ndarray  # int64
    equals_K: np.ndarray  # int64: ordinal of the document that is kept in its place, or EARLIER + its number


Decider = Callable[["Ledger"], Iterator[Dropped]]


class Ledger:
    """What becomes of N documents. Made anew by `decide`; opened to be read by the workers of the last phase."""

    def __init__(self, job: Job, shards: Sequence[Shard], *, new: bool = False) -> None:
        """Open the ledger of these shards, all of them done; `new`: nothing is decided yet.

        Raises:
            OSError: the disk is full.
        """
        self.job, self.shards = job, shards
        counts = [shard_figures(job, shard)["read"][0] for shard in shards]
        self.starts_S1 = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        kinds = [kind for kind, _, _ in in_order(job.settings)]
        own = [count for count, shard in zip(counts, shards, strict=True) if kinds[shard.source] == "validation"]
        self.validation = sum(own)  # documents of validation sources: the ordinals below
        if new:
            self._clear()
        mode = "r+" if new else "r"
        self.reason_N = np.memmap(job.work / "reasons", np.uint8, mode) if len(self) else np.zeros(0, np.uint8)
        self.equals_N = np.memmap(job.work / "equals", np.int64, mode) if len(self) else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return int(self.starts_S1[-1])

    def _clear(self) -> None:
        """Written, not mapped: a full disk is an error here, and would be a killed process later."""
        for name, value in (("reasons", np.uint8(0)), ("equals", np.int64(-1))):
            with open(self.job.work / name, "wb") as stream:
                for start in range(0, len(self), CHUNK):
                    stream.write(np.full(min(CHUNK, len(self) - start), value).tobytes())

    def batches(self, columns: Iterable[str]) -> Iterator[Signed]:
        """All documents in order, with these columns of their signature files."""
        wanted = list(columns)
        for start, shard in zip(self.starts_S1, self.shards, strict=False):
            first = int(start)
            for batch in shard_batches(self.job.path(shard, "signatures.arrow")):
                alive_D = batch["alive"].to_numpy(zero_copy_only=False)
                yield Signed(first, alive_D & (self.reason_N[first : first + len(batch)] == 0), batch.select(wanted))
                first += len(batch)

    def drop(self, dropped: Dropped) -> None:
        """Enter what a decider has said."""
        self.reason_N[dropped.ordinals_K] = REASONS.index(dropped.reason)
        self.equals_N[dropped.ordinals_K] = dropped.equals_K

    def place(self, ordinal: int) -> tuple[Shard, int]:
        """The shard and the row of a document."""
        index = int(np.searchsorted(self.starts_S1, ordinal, side="right")) - 1
        return self.shards[index], ordinal - int(self.starts_S1[index])


def decide(job: Job, shards: Sequence[Shard], deciders: Iterable[Decider]) -> Ledger:
    """Ask the deciders in turn about all documents of the shards, which are done."""
    ledger = Ledger(job, shards, new=True)
    for decider in deciders:
        for dropped in decider(ledger):
            ledger.drop(dropped)
    return ledger
