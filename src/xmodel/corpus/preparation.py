"""What has to be known of the corpus before its documents are judged, each by itself (mapping.py).

- How often lines stand in a source, so that its boilerplate can be dropped (lines.py): counted in up to `SAMPLED_BYTES`
  of text, from the beginnings of up to `SAMPLED_SHARDS` shards, spread evenly over the source.
- The quality filter's models and thresholds (quality.py): found once, from the reference text and the beginnings of
  such shards.

Both depend on the recipe and the input alone, stand in the work folder when they are done, and are not made twice.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from xmodel.console import log, progress
from xmodel.corpus import quality
from xmodel.corpus.lines import LineCounts, collect
from xmodel.corpus.mapping import Job, Prepared, judging
from xmodel.corpus.shards import Shard, in_order, read_shard
from xmodel.corpus.workers import Runner
from xmodel.files import PARTIAL, atomic_write

SAMPLED_SHARDS = 8  # of a source
SAMPLED_BYTES = 128 << 20  # of them together: two whole shards


def prepare(job: Job, todo: Sequence[Shard], run: Runner, rank: int = 0) -> Prepared:
    """Prepare the first phase for these shards, which are all of the corpus.

    Args:
        run: carries out the counting of lines.
        rank: of a job array: where in the work to begin, so that tasks that start together share it.

    Raises:
        UserError: something cannot be read; too little text for the quality filter.
    """
    own = [[shard for shard in todo if shard.source == source] for source in range(len(in_order(job.settings)))]
    lines = _count_lines(job, own, run, rank)
    if not job.settings.quality.reference:
        return Prepared(lines, None)
    return Prepared(lines, _prepare_quality(job, own, lines))


def _count_lines(job: Job, own: list[list[Shard]], run: Runner, rank: int) -> tuple[Path | None, ...]:
    if job.settings.filters.lines.max_document_share >= 1:
        return (None,) * len(own)
    chosen = [_spread(shards, SAMPLED_SHARDS) for shards in own]
    paths = [job.work / "lines" / f"{source:04d}-{_key(shards)}.npz" for source, shards in enumerate(chosen)]
    left = [
        (shard, SAMPLED_BYTES // len(shards))
        for shards, path in zip(chosen, paths, strict=True)
        if not path.exists()
        for shard in shards
    ]
    left = left[rank % max(len(left), 1) :] + left[: rank % max(len(left), 1)]
    if left:
        with progress("corpus: counting lines", len(left), "shards") as shown:
            for _ in run(partial(_count_shard, job), left):
                shown.advance()
    for shards, path in zip(chosen, paths, strict=True):
        if not path.exists():
            total = collect(())
            for shard in shards:
                total += LineCounts.load(_counted(job, shard))
            _write_counts(path, total)
    return tuple(paths)


def _spread(shards: list[Shard], most: int) -> list[Shard]:
    return [shards[number * len(shards) // most] for number in range(most)] if len(shards) > most else shards


def _counted(job: Job, shard: Shard) -> Path:
    return job.work / "lines" / f"{shard.name}.npz"


def _count_shard(job: Job, item: tuple[Shard, int]) -> None:
    """Count the lines at the beginning of a shard, so many bytes of text."""
    shard, most = item

    def batches() -> Iterator[pa.RecordBatch]:
        left = most
        for batch in read_shard(shard, job.settings, job.seed):
            yield batch
            left -= batch["text"].nbytes
            if left <= 0:
                return

    if not _counted(job, shard).exists():
        _write_counts(_counted(job, shard), collect(batches()))


def _write_counts(path: Path, counts: LineCounts) -> None:
    with atomic_write(path, shared=True) as stream:
        counts.save(stream)


def _prepare_quality(job: Job, own: list[list[Shard]], lines: tuple[Path | None, ...]) -> Path:
    """The folder of the quality filter; tasks of a job array may make it at the same time, and the first one stands."""
    settings = job.settings.quality
    folder = job.work / f"quality-{_key([shard for shards in own for shard in shards])}"
    if folder.exists():
        return folder
    partial_folder = folder.with_name(f"{folder.name}.{socket.gethostname()}-{os.getpid()}{PARTIAL}")
    shutil.rmtree(partial_folder, ignore_errors=True)
    log("corpus: training the models of the quality filter")
    try:
        described = quality.prepare(settings, _sample(job, own, lines), partial_folder, seed=job.seed)
        try:
            partial_folder.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    for language, row in described.items():
        log(f"corpus: quality of {language}: head to perplexity {row['head']:.0f}, tail from {row['tail']:.0f}")
    return folder


def _sample(job: Job, own: list[list[Shard]], lines: tuple[Path | None, ...]) -> Iterator[pa.RecordBatch]:
    """The first documents of shards spread evenly over each training source, judged by the filters."""
    for source, (kind, _, _) in enumerate(in_order(job.settings)):
        chosen = _spread(own[source], SAMPLED_SHARDS) if kind == "sources" else []
        stages = judging(job, source, lines[source]) if chosen else []
        for number, shard in enumerate(chosen, 1):
            wanted = job.settings.quality.sample_documents
            left = wanted * number // len(chosen) - wanted * (number - 1) // len(chosen)
            for batch in read_shard(shard, job.settings, job.seed) if left else ():
                batch = batch.slice(0, left)
                left -= len(batch)
                for stage in stages:
                    batch = stage(batch)
                yield batch
                if left == 0:
                    break


def _key(shards: Sequence[Shard]) -> str:
    return hashlib.blake2b("".join(shard.key for shard in shards).encode(), digest_size=8).hexdigest()
