"""Each shard by itself, through every stage that needs nothing but the document and what is prepared (preparation.py).

    read ─▶ fold ─▶ clean ─▶ filter ─▶ perplexity ─▶ decontaminate ─▶ sketch ─▶ sign
        ─▶ NAME.documents.arrow    what the documents are, dropped ones too
        ─▶ NAME.signatures.arrow   what the search for exact duplicates compares
        ─▶ NAME.records.npy        what the search for near duplicates compares, if there is one
        ─▶ NAME.json               counts; written last: the shard is done

The Arrow files hold the same rows in the same record batches. A shard that is done is not done again, whoever did it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xmodel.corpus.batches import Stage, alive, with_column
from xmodel.corpus.benchmarks import load_benchmarks
from xmodel.corpus.decontaminate import Held, Overlaps, decontaminating
from xmodel.corpus.deduplicate import signing
from xmodel.corpus.filters import filtering
from xmodel.corpus.folding import folding
from xmodel.corpus.funnel import Counts
from xmodel.corpus.lines import LineCounts, cleaning
from xmodel.corpus.near_duplicates import record_file, records, sketching
from xmodel.corpus.quality import quality_stage
from xmodel.corpus.shards import Shard, has_sandbox, in_order, read_shard
from xmodel.corpus.utf8 import byte_lengths
from xmodel.files import atomic_write, write_json
from xmodel.recipe.settings import Corpus

TEXT = pa.string()
DESCRIPTION = ("category", "provenance", "licence")
DOCUMENTS = pa.schema(
    [
        *((name, TEXT) for name in ("id", "text", "label", "reason", "language", *DESCRIPTION)),
        ("perplexity", pa.float32()),
    ]
)
SIGNATURES = pa.schema([("signature", pa.binary(16)), ("alive", pa.bool_())])


@dataclass(frozen=True)
class Job:
    """What every worker has to know."""

    settings: Corpus  # paths absolute
    seed: int
    work: Path  # folder of the intermediate files, the same for all workers

    @property
    def near(self) -> bool:
        """Whether near duplicates are looked for."""
        return self.settings.deduplicate and self.settings.near_duplicates.mode != "off"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The files that a finished shard has."""
        return ("json", "documents.arrow", "signatures.arrow", *(["records.npy"] if self.near else []))

    def path(self, shard: Shard, kind: str) -> Path:
        """A shard's file of one of the `kinds`."""
        return self.work / "shards" / f"{shard.name}.{kind}"

    def done(self, shard: Shard) -> bool:
        """Whether the shard's files stand."""
        return all(self.path(shard, kind).exists() for kind in self.kinds)


@dataclass(frozen=True)
class Prepared:
    """What is known of the corpus before its documents are judged: files that every worker opens."""

    lines: tuple[Path | None, ...]  # for each source in order: how often its lines stand; None: it is not asked
    quality: Path | None  # folder of the quality filter's models and thresholds; None: no such filter


def question_sets(settings: Corpus, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The question sets of a run: the sandbox's, if the recipe uses the sandbox."""
    return _sandbox_questions(seed) if has_sandbox(settings) else {}


@lru_cache(maxsize=1)
def _sandbox_questions(seed: int) -> dict[str, list[dict[str, Any]]]:
    from xmodel.corpus import sandbox

    return sandbox.question_sets(seed)


# ── What takes a moment to load stays with the process that has loaded it ────────────────────────────────────────────

_loaded: dict[str, tuple[Any, Any]] = {}  # name -> (what it was made from, the thing)


def _once(name: str, made_from: Any, make: Callable[[], Any]) -> Any:
    if name not in _loaded or _loaded[name][0] != made_from:
        _loaded[name] = (made_from, make())
    return _loaded[name][1]


def held_out_texts(job: Job) -> Held:
    """The index of what no document may hold: the run's own questions, and benchmarks."""
    settings = job.settings

    def make() -> Held:
        sets = question_sets(settings, job.seed) if settings.decontaminate else {}
        return Held([item for items in sets.values() for item in items], load_benchmarks(settings.benchmarks))

    key = (settings.decontaminate and has_sandbox(settings), job.seed, tuple(settings.benchmarks), str(job.work))
    return _once("held", key, make)


# ── The stages ───────────────────────────────────────────────────────────────────────────────────────────────────────


def judging(job: Job, source: int, lines: Path | None) -> list[Stage]:
    """The stages that clean and judge the documents of a source by what they look like."""
    counts = _once("lines", lines, lambda: LineCounts.load(lines)) if lines is not None else None
    stated = in_order(job.settings)[source][2].language
    return [
        folding,
        partial(cleaning, settings=job.settings.filters.lines, counts=counts),
        partial(filtering, settings=job.settings.filters, stated=stated),
    ]


def stages_for(job: Job, prepared: Prepared, shard: Shard) -> list[Stage]:
    """All stages that a shard's documents go through, each document by itself."""
    settings, held = job.settings, held_out_texts(job)
    stages = judging(job, shard.source, prepared.lines[shard.source])
    if prepared.quality is not None:
        folder = prepared.quality
        stages.append(_once("quality", folder, lambda: quality_stage(settings.quality, folder)))
    if held.names:
        stages.append(partial(decontaminating, held=held, contaminated=settings.contaminated))
    if job.near:
        stages.append(partial(sketching, settings=settings.near_duplicates))
    return [*stages, signing]


def process_shard(job: Job, prepared: Prepared, shard: Shard) -> None:
    """Take one shard through its stages, unless it is done; safe to repeat, and to do twice at the same time.

    Raises:
        UserError: something cannot be read; the message says where.
        OSError: the disk is full.
    """
    if job.done(shard):
        return
    near = job.settings.near_duplicates
    counts, overlaps = Counts(), Overlaps(held_out_texts(job))
    stages = stages_for(job, prepared, shard)
    with ExitStack() as files:
        documents = files.enter_context(_arrow_file(job.path(shard, "documents.arrow"), DOCUMENTS, "lz4"))
        signed = files.enter_context(_arrow_file(job.path(shard, "signatures.arrow"), SIGNATURES, None))
        record = files.enter_context(record_file(job.path(shard, "records.npy"), near)) if job.near else None
        for batch in read_shard(shard, job.settings, job.seed):
            counts.add_read(batch)
            read_D = byte_lengths(batch["text"])
            for stage in stages:
                batch = stage(batch)
            counts.add_cut(read_D - byte_lengths(batch["text"]))
            if "overlap" in batch.schema.names:
                overlaps.add(batch)
            if record is not None:
                record(records(batch, near))
            if prepared.quality is None:
                batch = with_column(batch, "perplexity", pa.nulls(len(batch), pa.float32()))
            batch = with_column(batch, "alive", pa.array(alive(batch)))
            documents.write_batch(batch.select(DOCUMENTS.names))
            signed.write_batch(batch.select(SIGNATURES.names))
    figures = {"read": counts.read.tolist(), "cut": counts.cut.tolist()}
    found = {"items": np.flatnonzero(overlaps.met).tolist(), "documents": overlaps.documents.tolist()}
    write_json(job.path(shard, "json"), figures | {"overlaps": found}, shared=True)


def shard_batches(path: Path, columns: Iterable[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The record batches of a shard's Arrow file; of uncompressed files only the pages that are looked at are read."""
    with pa.memory_map(str(path)) as mapped:
        options = pa.ipc.IpcReadOptions(use_threads=False)
        if columns is not None:
            with pa.ipc.open_file(mapped) as file:
                wanted = [file.schema.get_field_index(name) for name in columns]
            options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=wanted)
        with pa.ipc.open_file(mapped, options=options) as file:
            for number in range(file.num_record_batches):
                yield file.get_batch(number)


@contextmanager
def _arrow_file(path: Path, schema: pa.Schema, compression: str | None) -> Iterator[pa.ipc.RecordBatchFileWriter]:
    options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
    with atomic_write(path, shared=True) as stream, pa.ipc.new_file(stream, schema, options=options) as writer:
        yield writer


def shard_figures(job: Job, shard: Shard) -> dict[str, Any]:
    """What is written of a finished shard: "read" and "cut", [documents, bytes] each, and "overlaps"."""
    return json.loads(job.path(shard, "json").read_text(encoding="utf-8"))


def all_overlaps(job: Job, shards: Iterable[Shard]) -> Overlaps:
    """What the finished shards hold of held-out texts."""
    total = Overlaps(held_out_texts(job))
    for shard in shards:
        found = shard_figures(job, shard)["overlaps"]
        total.met[found["items"]] = True
        total.documents += np.array(found["documents"], np.int64)
    return total
