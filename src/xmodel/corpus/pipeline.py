"""The corpus stage: from the recipe's sources to clean, deduplicated, decontaminated documents, and the funnel.

    shards ─▶ preparation ─▶ mapping: each shard by itself ─▶ ledger: duplicates, over all ─▶ finish: train/, ...

Any number of workers carries out the phases, in any order, here or elsewhere (workers.py): the
finished corpus is the same to the byte. What a phase leaves stands in a work folder, so a run that was cut off,
whatever the moment, goes on with the shards that are not done. Memory holds a batch, a row group and, while duplicates
are looked for, the table that `corpus.memory` bounds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from xmodel.console import log, progress
from xmodel.corpus import earlier, workers
from xmodel.corpus.decontaminate import warn_of_unmatched
from xmodel.corpus.exact import find_exact_duplicates
from xmodel.corpus.finish import join_validation, write_source
from xmodel.corpus.funnel import LANGUAGES, Counts, funnel_table, score_dirt
from xmodel.corpus.ledger import Decider, decide
from xmodel.corpus.mapping import Job, all_overlaps, process_shard, question_sets
from xmodel.corpus.near import find_near
from xmodel.corpus.preparation import prepare
from xmodel.corpus.shards import Shard, in_order, shards
from xmodel.errors import UserError
from xmodel.files import PARTIAL, write_json
from xmodel.recipe.settings import Corpus, Source

LITTLE = 256 << 20  # bytes to read that are done before processes have started


def build_corpus(
    settings: Corpus, *, seed: int, folder: Path, work: Path | None = None, ray: str | None = None
) -> dict[str, Any]:
    """Build the corpus into a fresh folder: train/, validation/, dropped/, questions/ and funnel.json.

    Args:
        settings: `corpus` of the recipe, paths absolute.
        seed: of the sandbox and of the choice of held-out documents.
        folder: an existing folder that nobody reads yet.
        work: folder for what is to survive a kill; what stands there is not done again. The caller removes it when the
            corpus stands. None: a temporary folder.
        ray: address of a Ray cluster that carries out the work, or "local"; None: `settings.workers` processes.

    Returns:
        The funnel, as funnel.json has it.

    Raises:
        UserError: something cannot be read, is empty, or has no document left after the filters.
        MachineError: a worker died again and again at the same work.
        OSError: the disk is full.
    """
    if work is None:
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
            return build_corpus(settings, seed=seed, folder=folder, work=Path(name), ray=ray)
    job = Job(settings, seed, work)
    todo = work_list(job)
    run = _runner(settings, todo, ray)
    earlier.opened(job)  # which may be missing: better known now
    _map(job, todo, run)
    ledger = decide(job, todo, deciders(job, run))
    counts = _write(job, todo, run, folder)
    join_validation(job, folder)
    write_questions(settings, seed, folder / "questions")
    if settings.keep_index:
        earlier.write_index(job, ledger, folder / "index")
    del ledger

    funnel = _funnel(settings, counts)
    funnel["decontamination"] = all_overlaps(job, todo).describe()
    log(funnel_table(funnel))
    for kind, index, source in in_order(settings):
        outcome = "kept" if kind == "sources" else "validation"
        _refuse_nothing(counts[source.name], outcome, f"corpus.{kind}[{index}]", source)
    write_json(folder / "funnel.json", funnel)
    _warn_of_missing_validation(settings, funnel)
    own = question_sets(settings, seed)
    warn_of_unmatched({name: row for name, row in funnel["decontamination"].items() if name not in own})
    return funnel


def carry_out_share(settings: Corpus, *, seed: int, work: Path, rank: int, world: int) -> tuple[int, int]:
    """Carry out one rank's share of the first phase; safe to repeat. `build_corpus` then does the rest.

    Args:
        work: the same folder for all ranks, on a file system that they share.
        rank, world: shards rank, rank + world, ... of the work list.

    Returns:
        Shards that are done now, by whichever rank, and all shards.
    """
    job = Job(settings, seed, work)
    todo = work_list(job)
    _map(job, todo, _runner(settings, todo[rank::world], None), rank, world)
    return sum(map(job.done, todo)), len(todo)


def work_list(job: Job) -> list[Shard]:
    """The shards in order; they are also written to manifest.json of the work folder, for people to read."""
    todo = shards(job.settings, job.seed)
    names = [source.name for _, _, source in in_order(job.settings)]
    rows = [
        {"shard": s.name, "source": names[s.source], "bytes": s.size, "reads": [astuple(piece) for piece in s.pieces]}
        for s in todo
    ]
    write_json(job.work / "manifest.json", rows, shared=True)
    return todo


def deciders(job: Job, run: workers.Runner) -> list[Decider]:
    """What is asked about all documents, in this order."""
    settings, index = job.settings, earlier.opened(job)
    asked: list[Decider] = [
        partial(find_exact_duplicates, everywhere=settings.deduplicate, memory=settings.memory, earlier=index)
    ]
    return [*asked, partial(find_near, run=run, earlier=index)] if job.near else asked


def _runner(settings: Corpus, todo: Sequence[Shard], ray: str | None) -> workers.Runner:
    if ray is not None:
        return partial(workers.on_ray, address=ray)
    count = settings.workers or workers.cores()
    little = settings.workers == 0 and sum(shard.size for shard in todo) < LITTLE
    return workers.here if little or count == 1 else partial(workers.in_processes, workers=count)


def _map(job: Job, todo: Sequence[Shard], run: workers.Runner, rank: int = 0, world: int = 1) -> None:
    own = todo[rank::world]
    left = [shard for shard in own if not job.done(shard)]
    if len(left) < len(own):
        log(f"corpus: {len(own) - len(left)} of {len(own)} shards are done already")
    if not left:
        return
    prepared = prepare(job, todo, run, rank)
    megabytes = sum(shard.size for shard in own) / 1e6, sum(shard.size for shard in own if shard not in left) / 1e6
    with progress("corpus: reading and filtering", megabytes[0], "MB", megabytes[1]) as shown:
        for shard, _ in run(partial(process_shard, job, prepared), left):
            shown.advance(shard.size / 1e6)


def _write(job: Job, todo: Sequence[Shard], run: workers.Runner, folder: Path) -> dict[str, Counts]:
    sources = in_order(job.settings)
    task = partial(write_source, job, todo, folder)
    with progress("corpus: writing", len(sources), "sources") as shown:
        found = {}
        for index, counts in run(task, range(len(sources))):
            found[index] = counts
            shown.advance()
    for partial_file in folder.rglob(f"*{PARTIAL}"):  # of workers that were killed
        partial_file.unlink()
    for index, (kind, place, source) in enumerate(sources):
        if found[index].read[0] == 0:
            raise UserError(
                f"corpus.{kind}[{place}] ({source.name}): holds no document; take it out of the recipe or add text"
            )
    return {source.name: found[index] for index, (_, _, source) in enumerate(sources)}


def write_questions(settings: Corpus, seed: int, folder: Path) -> None:
    """Write the run's question sets, a JSON-lines file each."""
    for name, items in question_sets(settings, seed).items():
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


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
