"""What became of the documents: figures by stage and language, samples of what a rule drops, the story of one document.

The finished corpus is all that is needed, and the sources: the text of a document that was dropped is read again from
the shard in which it stands.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xmodel.console import table
from xmodel.corpus.batches import raw_batch
from xmodel.corpus.earlier import Earlier
from xmodel.corpus.filters import RULES, quantities, stated_languages, threshold
from xmodel.corpus.finish import EARLIER_PLACE
from xmodel.corpus.folding import fold, folding
from xmodel.corpus.near_duplicates import compare
from xmodel.corpus.shards import in_order, read_shard, shards
from xmodel.corpus.sources import REASONS as SOURCE_REASONS
from xmodel.corpus.sources.fields import pc
from xmodel.errors import UserError
from xmodel.files import read_json
from xmodel.recipe.settings import Corpus, Source

# The stages that drop documents, in their order, each with its reasons; all other reasons are those of the filters.
REASONS_OF = {
    "reading": tuple(SOURCE_REASONS),
    "filters": (),
    "quality": ("perplexity",),
    "decontamination": ("contaminated",),
    "validation sources": ("in_validation",),
    "exact duplicates": ("duplicate",),
    "near duplicates": ("near_duplicate",),
}
STAGE_OF = {reason: stage for stage, reasons in REASONS_OF.items() for reason in reasons}
Figures = dict[str, int]
SHOWN = 10  # duplicates of a document


def stage_of(reason: str) -> str:
    """The stage that drops documents for this reason."""
    return STAGE_OF.get(reason, "filters")


def stats(corpus: Path, tokens: Path) -> dict[str, Any]:
    """Documents, bytes and tokens of a finished corpus.

    Args:
        corpus: the corpus folder of a run.
        tokens: its token folder, which need not exist.

    Returns:
        "stages": rows {source, stage, in, out, dropped: {documents, bytes}}, the source "total" last; a stage that
            dropped nothing of any source is left out. "cut" is text that documents lost while they were kept.
        "languages": rows {source, language, read, dropped, validation, kept}.
        "reasons": rows {source, language, reason, documents, bytes}.
        "tokens": {source: tokens}, empty before the tokens stage has run.
    """
    funnel = read_json(corpus / "funnel.json")
    manifest = tokens / "manifest.json"
    trained = read_json(manifest)["train"] if manifest.exists() else {}
    reasons = [row for name in funnel["sources"] for row in _dropped_by_language(corpus, name)]
    met = {stage_of(reason) for reason in funnel["total"]["dropped"]} | {"held out"}
    met |= {"cut"} if funnel["total"]["cut"]["bytes"] else set()
    entries = [*funnel["sources"].items(), ("total", funnel["total"])]
    return {
        "stages": [row for name, entry in entries for row in _by_stage(name, entry) if row["stage"] in met],
        "languages": list(_by_language(corpus, funnel, reasons)),
        "reasons": reasons,
        "tokens": {name: entry["tokens"] for name, entry in trained.items()},
    }


def _by_stage(name: str, entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    here = dict(entry["read"])
    yield _step(name, "cut", here, {"documents": 0, "bytes": entry["cut"]["bytes"]})
    for stage in REASONS_OF:
        own = [amount for reason, amount in entry["dropped"].items() if stage_of(reason) == stage]
        yield _step(name, stage, here, {unit: sum(amount[unit] for amount in own) for unit in here})
    yield _step(name, "held out", here, entry["validation"])


def _step(name: str, stage: str, here: Figures, gone: Figures) -> dict[str, Any]:
    before = dict(here)
    for unit in here:
        here[unit] -= gone[unit]
    return {"source": name, "stage": stage, "in": before, "out": dict(here), "dropped": dict(gone)}


def _dropped_by_language(corpus: Path, source: str) -> list[dict[str, Any]]:
    path = corpus / "dropped" / f"{source}.parquet"
    if not path.exists():
        return []
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["language", "reason", "bytes"]):
            grouped = pa.Table.from_batches([batch]).group_by(["language", "reason"])
            for row in grouped.aggregate([("bytes", "count"), ("bytes", "sum")]).to_pylist():
                sums[row["language"], row["reason"]][0] += row["bytes_count"]
                sums[row["language"], row["reason"]][1] += row["bytes_sum"]
    return [
        {"source": source, "language": language, "reason": reason, "documents": documents, "bytes": size}
        for (language, reason), (documents, size) in sorted(sums.items(), key=lambda pair: (-pair[1][0], pair[0]))
    ]


def _by_language(corpus: Path, funnel: dict[str, Any], reasons: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    held: dict[tuple[str, str], int] = defaultdict(int)
    for path in sorted((corpus / "validation").glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["source"]):
                for row in batch.column(0).value_counts().to_pylist():
                    held[row["values"], path.stem] += row["counts"]
    for name, entry in funnel["sources"].items():
        for language in ("en", "zh"):
            kept = entry["languages"].get(language, {}).get("documents", 0)
            own = [row for row in reasons if (row["source"], row["language"]) == (name, language)]
            dropped, validation = sum(row["documents"] for row in own), held[name, language]
            if kept + dropped + validation:
                yield {
                    "source": name,
                    "language": language,
                    "read": kept + dropped + validation,
                    "dropped": dropped,
                    "validation": validation,
                    "kept": kept,
                }


def stats_tables(found: dict[str, Any]) -> str:
    """The figures of `stats` as tables for the terminal."""
    stages = [
        [
            row["source"],
            row["stage"],
            *(f"{row[step]['documents']}" for step in ("in", "dropped", "out")),
            *(f"{row[step]['bytes'] / 1e6:.2f}" for step in ("in", "out")),
            str(found["tokens"].get(row["source"], "")) if row["stage"] == "held out" else "",
        ]
        for row in found["stages"]
    ]
    kinds = ("source", "language", "read", "dropped", "validation", "kept")
    languages = [[str(row[kind]) for kind in kinds] for row in found["languages"]]
    reasons = [
        [
            *(row["source"], row["language"], row["reason"], stage_of(row["reason"])),
            *(str(row["documents"]), f"{row['bytes'] / 1e6:.2f}"),
        ]
        for row in found["reasons"]
    ]
    parts = [
        table(["source", "stage", "in", "dropped", "out", "MB in", "MB out", "tokens"], stages),
        table(list(kinds), languages),
        table(["source", "language", "reason", "stage", "documents", "MB"], reasons),
    ]
    return "\n\n".join(parts)


# ── Documents that were dropped ──────────────────────────────────────────────────────────────────────────────────────


def samples(
    settings: Corpus, seed: int, corpus: Path, reason: str | None, source: str | None, count: int
) -> list[dict[str, Any]]:
    """Documents that were dropped, `count` for each reason, spread evenly over what was dropped for it.

    Returns:
        Rows of dropped/*.parquet, each with its text.

    Raises:
        UserError: nothing was dropped for that reason, or no such source.
    """
    names = [own.name for _, _, own in in_order(settings)]
    if source is not None and source not in names:
        raise UserError(f"--source {source}: no such source; the sources are {', '.join(names)}")
    totals: dict[str, int] = defaultdict(int)
    files = [corpus / "dropped" / f"{name}.parquet" for name in names if source in (None, name)]
    files = [path for path in files if path.exists()]
    for path in files:
        for row in _dropped_by_language(corpus, path.stem):
            totals[row["reason"]] += row["documents"]
    if reason is not None and reason not in totals:
        raise UserError(
            f"{reason}: nothing was dropped for that; reasons met are {', '.join(sorted(totals)) or 'none'}"
        )
    met: dict[str, int] = defaultdict(int)
    chosen = []
    for path in files:
        for row in _rows(path, None):
            total, seen = totals[row["reason"]], met[row["reason"]]
            met[row["reason"]] += 1
            if reason in (None, row["reason"]) and (seen + 1) * count // total > seen * count // total:
                chosen.append(row)
    _fill_in_text(settings, seed, chosen)
    return sorted(chosen, key=lambda row: row["reason"])


def why(settings: Corpus, seed: int, corpus: Path, document: str) -> list[dict[str, Any]]:
    """What happened to the documents of this id.

    Returns:
        For each: "id", "source", "language", "outcome" ("kept", "validation", "dropped"), "text", of what was dropped
        "reason", "stage" and, of a duplicate, "equals": {"source", "id", "text"} of the document that is kept (no text
        where it is one of an earlier corpus) and "similarity" of the two texts: {"hamming" (bits of 64 in which their
        SimHashes differ), "shared" (share of the 5-grams of both, estimated by MinHash)}; "duplicates": rows {source,
        id, reason} of other documents that were dropped for the same one, or for this one; and "quantities": rows
        {rule, reason, value, threshold, fails} of what the filters measure of the text.

    Raises:
        UserError: no document has this id.
    """
    found: list[dict[str, Any]] = []
    for folder, outcome in (("dropped", "dropped"), ("train", "kept"), ("validation", "validation")):
        for path in sorted((corpus / folder).glob("*.parquet")):
            found += [{**row, "outcome": outcome} for row in _rows(path, document)]
    if not found:
        raise UserError(f"{document}: no document of the corpus has this id (ids stand in {corpus}/train/*.parquet)")
    _fill_in_text(settings, seed, [row for row in found if row["outcome"] == "dropped"])
    stated = {source.name: source for _, _, source in in_order(settings)}
    for row in found:
        row["quantities"] = measured(row["text"], settings, stated[row["source"]])
        row["duplicates"] = list(_dropped_for(corpus, row.get("equals") or row["place"], row["place"]))
        if row["outcome"] == "dropped":
            row["stage"] = stage_of(row["reason"])
            if row["equals"] is not None:
                row["equals"] = other = _document_at(settings, seed, row["equals"])
                if other["text"] is not None:
                    row["similarity"] = compare(*fold(pa.array([row["text"], other["text"]])).to_pylist())
    return found


def _document_at(settings: Corpus, seed: int, place: str) -> dict[str, Any]:
    source, _, number = place.rsplit("/", 2)
    if source == EARLIER_PLACE:
        return {**Earlier(Path(settings.index), near=False).document(int(number)), "text": None}
    other: dict[str, Any] = {"place": place, "text": None}
    _fill_in_text(settings, seed, [other])
    return {"source": source, "id": other["id"], "text": other["text"]}


def _dropped_for(corpus: Path, kept: str, but: str) -> Iterator[dict[str, Any]]:
    """Documents that were dropped because the one at the place `kept` has their text, without the one at `but`."""
    for path in sorted((corpus / "dropped").glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["id", "source", "reason", "place", "equals"]):
                for row in batch.filter(pc.equal(batch["equals"], kept)).to_pylist():
                    if row["place"] != but:
                        yield {name: row[name] for name in ("source", "id", "reason")}


def measured(text: str, settings: Corpus, source: Source) -> list[dict[str, Any]]:
    """What the filters measure of one document, beside the thresholds for its language."""
    batch = folding(raw_batch([""], [text]))
    values = quantities(batch, stated_languages(batch, source.language))
    chinese = values["han_share"][0] >= settings.filters.chinese_share
    language = source.language if source.language != "auto" else "zh" if chinese else "en"
    rows = []
    for rule in RULES:
        value, limit = float(values[rule.setting][0]), threshold(settings.filters, rule.setting, language)
        if limit is None or not np.isfinite(value):
            continue
        fails = value > limit if rule.setting.startswith("max_") else value < limit
        rows.append(
            {"rule": rule.setting, "reason": rule.reason, "value": round(value, 4), "threshold": limit, "fails": fails}
        )
    return rows


def told(row: dict[str, Any]) -> str:
    """One answer of `why` for the terminal."""
    lines = [f"{row['id']} ({row['source']}, {row['language']}): " + _outcome(row)]
    if row.get("equals"):
        verb = "is nearly" if row["reason"] == "near_duplicate" else "equals"
        shown = " of an earlier corpus" if row["equals"]["text"] is None else f": {excerpt(row['equals']['text'])}"
        lines += [f"  {verb} {row['equals']['id']} ({row['equals']['source']}){shown}"]
    if row.get("similarity"):
        figures = row["similarity"]
        lines += [
            f"  their SimHashes differ in {figures['hamming']} of 64 bits; shared 5-grams {figures['shared']:.0%}"
        ]
    if row["duplicates"]:
        shown = ", ".join(f"{one['id']} ({one['source']}, {one['reason']})" for one in row["duplicates"][:SHOWN])
        rest = len(row["duplicates"]) - SHOWN
        lines += [f"  dropped for the same text: {shown}" + (f" and {rest} more" if rest > 0 else "")]
    lines += [f"  text: {excerpt(row['text'])}", ""]
    cells = [
        [one["rule"], f"{one['value']:g}", f"{one['threshold']:g}", f"fails: {one['reason']}" if one["fails"] else ""]
        for one in row["quantities"]
    ]
    return "\n".join(lines) + table(["quantity", "value", "threshold", ""], cells)


def _outcome(row: dict[str, Any]) -> str:
    if row["outcome"] != "dropped":
        return {"kept": "kept for training", "validation": "held out for validation"}[row["outcome"]]
    return f"dropped as {row['reason']} ({row['stage']})"


def excerpt(text: str, most: int = 160) -> str:
    """The beginning of a text on one line."""
    flat = " ".join(text[: 2 * most].split())
    return flat if len(flat) <= most and len(text) <= 2 * most else flat[:most] + " …"


def _rows(path: Path, document: str | None) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file; with `document`, only those of that id, for which whole rows are read."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            if document is not None:
                ids = file.read_row_group(group, columns=["id"]).column(0)
                if ids.index(document).as_py() < 0:
                    continue
            for batch in file.iter_batches(batch_size=1024, row_groups=[group]):
                yield from (row for row in batch.to_pylist() if document in (None, row["id"]))


def _fill_in_text(settings: Corpus, seed: int, rows: Iterable[dict[str, Any]]) -> None:
    """Read again the texts (and ids) of rows that have only their `place`."""
    wanted: dict[tuple[str, int], dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["text"] is None:
            source, number, at = row["place"].rsplit("/", 2)
            wanted[source, int(number)][int(at)].append(row)
    names = [source.name for _, _, source in in_order(settings)]
    for shard in shards(settings, seed) if wanted else ():
        places = wanted.get((names[shard.source], shard.number), {})
        first, last = 0, max(places, default=-1)
        for batch in read_shard(shard, settings, seed) if places else ():
            for at in (at for at in places if first <= at < first + len(batch)):
                for row in places[at]:
                    row |= {"id": batch["id"][at - first].as_py(), "text": batch["text"][at - first].as_py()}
            first += len(batch)
            if first > last:
                break
