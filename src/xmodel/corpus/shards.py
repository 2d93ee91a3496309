"""The work list: each source cut into shards (sources/), which any number of workers read in any order.

How a source is cut depends on its settings and files alone, never on who carries out the work, so the finished corpus
does not depend on it either. A shard is known by a key: a hash of everything that decides what is read from it and what
becomes of each document by itself. What was done for a key is done for good.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from xmodel.corpus import sources
from xmodel.corpus.benchmarks import benchmark_files
from xmodel.recipe.dump import identity_settings
from xmodel.recipe.settings import Corpus, Source

VERSION = 2  # raised when the same shard and settings come to give another outcome
SANDBOX_BYTES = 4_000  # writing a document of the sandbox takes as long as reading so many bytes of text
ALONE = (  # settings on which depends what becomes of a document by itself
    *("dirt", "filters", "decontaminate", "benchmarks", "contaminated", "near_duplicates", "quality"),
)  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """A part of a source that one worker reads from beginning to end."""

    source: int  # index into `in_order`
    number: int  # of the source's shards
    pieces: tuple[sources.Piece, ...]  # of its input, in reading order
    size: int  # bytes to read: an estimate of the work
    key: str

    @property
    def name(self) -> str:
        """The name of its files: sorted by name, shards stand in the order of the corpus."""
        return f"{self.source:04d}-{self.number:06d}-{self.key}"


def in_order(settings: Corpus) -> list[tuple[str, int, Source]]:
    """All sources in the order in which the first of several equal documents is kept: validation sources first."""
    return [
        *(("validation", index, source) for index, source in enumerate(settings.validation)),
        *(("sources", index, source) for index, source in enumerate(settings.sources)),
    ]


def shards(settings: Corpus, seed: int) -> list[Shard]:
    """The work list, in the order of the corpus.

    Raises:
        UserError: a path that matches nothing, an unknown part of the sandbox.
    """
    found: list[Shard] = []
    shared: list[Any] = [VERSION, seed, has_sandbox(settings), _stats(benchmark_files(settings.benchmarks))]
    shared.append({name: identity_settings(getattr(settings, name)) for name in ALONE})
    if settings.quality.reference:  # the quantiles are taken of all sources
        shared += [_stats(sources.input_files(settings)), identity_settings(settings.sources)]
    for index, (kind, place, source) in enumerate(in_order(settings)):
        cut = sources.shards(source, f"corpus.{kind}[{place}]", sources.SHARD_BYTES)
        local = source.reader != "sandbox"
        own = [*shared, identity_settings(source)]
        if local:  # lines are judged by how often they stand in the source
            own.append(_stats(sources.files(source, f"corpus.{kind}[{place}]")))
        for shard in cut:
            parts = [*own, [(piece.path, piece.start, piece.stop) for piece in shard.pieces]]
            size = shard.size if local else shard.size * SANDBOX_BYTES
            found.append(Shard(index, shard.number, shard.pieces, size, _hash(parts)))
    return found


def read_shard(shard: Shard, settings: Corpus, seed: int) -> Iterator[pa.RecordBatch]:
    """The documents of a shard in bounded batches (schema: sources.SCHEMA)."""
    kind, place, source = in_order(settings)[shard.source]
    own = sources.Shard(shard.number, shard.pieces, shard.size)
    where = f"corpus.{kind}[{place}]"
    yield from sources.read_shard(own, source, where, seed=seed, dirt=settings.dirt)


def has_sandbox(settings: Corpus) -> bool:
    """Whether the run has question sets, which no document may hold."""
    return any(source.reader == "sandbox" for _, _, source in in_order(settings))


def _stats(paths: Iterable[Path]) -> list[Any]:
    return [(str(path), (found := path.stat()).st_size, found.st_mtime_ns) for path in paths]


def _hash(parts: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()
