"""The corpus stage: from the recipe's sources to clean, deduplicated, decontaminated documents, and the funnel.

    read ─▶ fold ─▶ filter ─▶ decontaminate ─▶ sign ─▶ deduplicate ─▶ hold out ─▶ train/<source>.parquet
                                                                              └─▶ validation/<language>.parquet

One batch at a time goes through all stages, so memory holds one batch and the signatures of the documents seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xmodel.console import log, progress
from xmodel.corpus.batches import alive, with_column
from xmodel.corpus.decontaminate import decontamination
from xmodel.corpus.deduplicate import Seen, deduplicating, excluding, signatures, signing
from xmodel.corpus.filters import filtering
from xmodel.corpus.folding import folding
from xmodel.corpus.funnel import LANGUAGES, Counts, funnel_table, score_dirt
from xmodel.corpus.holdout import held_out
from xmodel.corpus.sources import extent, read
from xmodel.errors import UserError
from xmodel.files import write_json
from xmodel.recipe.settings import Corpus, Source

Stage = Callable[[pa.RecordBatch], pa.RecordBatch]

KEPT = ("id", "text", "language", "source", "category")  # columns of train/ and validation/, all of them strings
DROPPED = (*KEPT, "reason", "label")  # columns of dropped/


def build_corpus(settings: Corpus, *, seed: int, folder: Path) -> dict[str, Any]:
    """Build the corpus into a fresh folder: train/, validation/, questions/, dropped/ (if asked for) and funnel.json.

    Validation sources come first, so that no training document equals one of theirs.

    Args:
        settings: `corpus` of the recipe, paths absolute.
        seed: of the sandbox and of the choice of held-out documents.
        folder: an existing folder that nobody reads yet.

    Returns:
        The funnel, as funnel.json has it.

    Raises:
        UserError: something cannot be read, is empty, or has no document left after the filters.
    """
    questions = write_questions(settings, seed, folder / "questions")
    decontaminate: Stage = decontamination(questions) if settings.decontaminate else lambda batch: batch
    seen, seen_in_validation = Seen(), Seen()
    everything = [("validation", index, source) for index, source in enumerate(settings.validation)]
    everything += [("sources", index, source) for index, source in enumerate(settings.sources)]
    counts = {source.name: Counts() for _, _, source in everything}
    assert len(counts) == len(everything), "the recipe's check refuses two sources of one name"

    with ExitStack() as validation_files:
        validation = _Writers(folder / "validation", KEPT, validation_files)
        for number, (kind, index, source) in enumerate(everything, start=1):
            where = f"corpus.{kind}[{index}]"
            stages: list[Stage] = [
                folding,
                partial(filtering, settings=settings.filters, stated=source.language),
                decontaminate,
                signing,
            ]
            if kind == "sources":
                stages.append(partial(excluding, seen=seen_in_validation))
            if settings.deduplicate:
                stages.append(partial(deduplicating, seen=seen))

            total, unit = extent(source, where)
            with (
                progress(f"corpus {number}/{len(everything)}: {source.name}", total, unit) as shown,
                ExitStack() as files,
            ):
                train = _Writers(folder / "train", KEPT, files)
                dropped = _Writers(folder / "dropped", DROPPED, files)
                for batch in read(source, where, seed=seed, dirt=settings.dirt, advance=shown.advance):
                    counts[source.name].add_read(batch)
                    for stage in stages:
                        batch = stage(batch)
                    hashes_D2, alive_D = signatures(batch), alive(batch)
                    if kind == "validation":
                        seen_in_validation.add(hashes_D2, alive_D)
                        validation_D = alive_D
                    else:
                        validation_D = alive_D & held_out(hashes_D2, settings.holdout, seed)
                    counts[source.name].add(batch, validation_D)

                    batch = _described(batch, source)
                    train.write(source.name, batch, alive_D & ~validation_D)
                    for language in LANGUAGES:
                        in_language_D = batch["language"].to_numpy(zero_copy_only=False) == language
                        validation.write(language, batch, validation_D & in_language_D)
                    if settings.keep_dropped:
                        dropped.write(source.name, batch, ~alive_D)
            _refuse_nothing(counts[source.name], "kept" if kind == "sources" else "validation", where, source)

    funnel = _funnel(settings, counts)
    write_json(folder / "funnel.json", funnel)
    log(funnel_table(funnel))
    _warn_of_missing_validation(settings, funnel)
    return funnel


def write_questions(settings: Corpus, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Write the sandbox's question sets, a JSON-lines file each, if the recipe uses the sandbox; return all items."""
    if all(source.reader != "sandbox" for source in (*settings.sources, *settings.validation)):
        return []
    from xmodel.corpus import sandbox

    folder.mkdir(parents=True)
    sets = sandbox.question_sets(seed)
    for name, items in sets.items():
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    return [item for items in sets.values() for item in items]


class _Writers:
    """Parquet files of one folder, opened when the first row for them comes."""

    def __init__(self, folder: Path, columns: tuple[str, ...], files: ExitStack) -> None:
        self.folder, self.files = folder, files
        self.schema = pa.schema([(name, pa.string()) for name in columns])
        self.writers: dict[str, pq.ParquetWriter] = {}

    def write(self, name: str, batch: pa.RecordBatch, chosen_D: np.ndarray) -> None:
        """Append the chosen rows to `<name>.parquet`."""
        if not chosen_D.any():
            return
        if name not in self.writers:
            self.folder.mkdir(parents=True, exist_ok=True)
            options: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["source", "category", "language"]}
            writer = pq.ParquetWriter(self.folder / f"{name}.parquet", self.schema, write_statistics=False, **options)
            self.writers[name] = self.files.enter_context(writer)
        self.writers[name].write_batch(batch.select(self.schema.names).filter(pa.array(chosen_D)))


def _described(batch: pa.RecordBatch, source: Source) -> pa.RecordBatch:
    batch = with_column(batch, "source", pa.repeat(source.name, len(batch)))
    return with_column(batch, "category", pa.repeat(source.category, len(batch)))


def _refuse_nothing(counts: Counts, outcome: str, where: str, source: Source) -> None:
    if counts.sum(outcome)[0] == 0:
        held = counts.sum("validation")[0]
        raise UserError(
            f"{where} ({source.name}): no document is left of {counts.read[0]}: dropped {counts.reasons() or 'none'}"
            + (f"; {held} held out for validation (corpus.holdout)" if held else "")
            + ". Loosen corpus.filters, or look at the text"
        )


def _funnel(settings: Corpus, counts: dict[str, Counts]) -> dict[str, Any]:
    total = Counts()
    sources: dict[str, Any] = {}
    for source in (*settings.sources, *settings.validation):
        total += counts[source.name]
        weight = source.weight if source in settings.sources else 0.0
        sources[source.name] = {**counts[source.name].describe(), "category": source.category, "weight": weight}
    funnel: dict[str, Any] = {"sources": sources, "total": total.describe()}
    funnel["validation"] = {
        language: {"documents": int(documents), "bytes": int(size)}
        for language in LANGUAGES
        for documents, size in [total.sum("validation", language)]
        if documents
    }
    if settings.dirt > 0:
        sandbox = Counts()
        for source in (*settings.sources, *settings.validation):
            if source.reader == "sandbox":
                sandbox += counts[source.name]
        funnel |= score_dirt(sandbox)
    return funnel


def _warn_of_missing_validation(settings: Corpus, funnel: dict[str, Any]) -> None:
    for language, kept in funnel["total"]["languages"].items():
        if language not in funnel["validation"]:
            log(
                f"corpus: no {language} document was held out for validation ({kept['documents']} kept, corpus.holdout "
                f"{settings.holdout}); raise corpus.holdout, or name a corpus.validation source"
            )
