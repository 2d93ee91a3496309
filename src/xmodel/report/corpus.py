"""The corpus on the page: funnel, why documents were dropped, the mixture, decontamination, and labelled dirt."""

from __future__ import annotations

from typing import Any

from xmodel.report import markup
from xmodel.report.markup import Html, coloured, element, folded, join, key, missing, paragraph, table
from xmodel.report.numbers import DASH, count, decimal, known, language, number, percent, share, size
from xmodel.report.read import Run, planned_tokens

Entry = dict[str, Any]  # of the funnel: one source, or the total
DIRT_NOTE = (
    "Dirt of known kinds was mixed into the sandbox. Recall: the part of a kind that was dropped. "
    "Precision: the part of what was dropped for the reasons meant for a kind that is dirt."
)
OVERLAP_NOTE = (
    "Searched: items long enough to be told from common phrases. Found: items of which some document holds the text; "
    "such documents, or the shared text, were taken out of the training text."
)
EPOCHS_NOTE = "Epochs: weight × samples × context / tokens of the source, over the whole planned training."


def corpus(run: Run) -> Html:
    """The funnel by source, reasons of the drops, the mixture, overlap with held-out texts, and labelled dirt."""
    if not run.funnel:
        return missing("The corpus", "xmodel corpus")
    sources, total = run.funnel.get("sources", {}), run.funnel.get("total", {})
    parts = [_told(len(sources), total), _funnel(sources, total), _reasons(sources, total), _mixture(run, sources)]
    if run.funnel.get("decontamination"):
        parts.append(_overlaps(run.funnel["decontamination"]))
    if run.funnel.get("dirt"):
        parts.append(_dirt(run.funnel["dirt"], run.funnel.get("clean")))
    return join(part for part in parts if part)


def amount(entry: Entry, *path: str, unit: str = "documents") -> float:
    """The documents (or bytes) at `path` of a funnel entry, 0 where nothing is counted; all reasons for `dropped`."""
    for name in path:
        entry = entry.get(name) or {}
    if path == ("dropped",):
        return sum(number(reason.get(unit, 0)) for reason in entry.values())
    return number(entry.get(unit, 0))


def epochs(run: Run, source: str, weight: Any) -> float | None:
    """How often training goes through a source: weight × samples × context / tokens; None where one is not known."""
    tokens, planned = source_tokens(run, source), planned_tokens(run)
    return weight * planned / tokens if known(weight) and planned and tokens else None


def source_tokens(run: Run, source: str) -> int | None:
    return (run.tokens.get("train") or {}).get(source, {}).get("tokens")


def _told(sources: int, total: Entry) -> Html:
    read, dropped = amount(total, "read"), amount(total, "dropped")
    kept_bytes = amount(total, "kept", unit="bytes")
    chinese = share(amount(total, "languages", "zh", unit="bytes"), kept_bytes)
    cut = amount(total, "cut", unit="bytes")
    lines = f"Lines and passages of {size(cut)} were cut out of documents that were kept or judged. " if cut else ""
    return paragraph(
        f"{count(read)} documents ({size(amount(total, 'read', unit='bytes'))}) were read from {sources} sources; "
        f"{count(dropped)} ({percent(share(dropped, read))}) were dropped, "
        f"{count(amount(total, 'validation'))} set aside for validation, "
        f"and {count(amount(total, 'kept'))} ({size(kept_bytes)}) kept for training. {lines}",
        f"{percent(chinese)} of the kept bytes are ",
        coloured("zh", "Chinese"),
        ".",
    )


def _funnel(sources: dict[str, Entry], total: Entry) -> Html:
    columns = ["Source", "~Share of the documents", "#Read", "#Dropped", "#Validation", "#Kept", "#Kept bytes"]
    rows = []
    for title, entry in [*((markup.name(name), entry) for name, entry in sources.items()), ("All", total)]:
        read = amount(entry, "read")
        shares = {step: share(amount(entry, step), read) for step in ("kept", "validation", "dropped")}
        drawn = markup.bar((part, step, f"{step}: {percent(part)}") for step, part in shares.items())
        counts = [count(amount(entry, step)) for step in ("read", "dropped", "validation", "kept")]
        rows.append([title, drawn, *counts, size(amount(entry, "kept", unit="bytes"))])
    keys = [key(step, step) for step in ("kept", "validation", "dropped")]
    return join([element("h3", "From read to kept"), table(columns, rows, totals=1), paragraph(*keys, class_="note")])


def _reasons(sources: dict[str, Entry], total: Entry) -> Html:
    counts = {reason: amount(total, "dropped", reason) for reason in total.get("dropped", {})}
    reasons = sorted(counts, key=lambda reason: (-counts[reason], reason))
    everything = amount(total, "dropped")
    if not everything:
        return Html("")
    rows = []
    for reason in reasons:
        drawn = markup.bar([(share(counts[reason], counts[reasons[0]]), "dropped", "")])
        part, lost = percent(share(counts[reason], everything)), size(amount(total, "dropped", reason, unit="bytes"))
        rows.append([markup.name(reason), drawn, count(counts[reason]), part, lost])
    rows.append(["All", "", count(everything), percent(1), size(amount(total, "dropped", unit="bytes"))])
    matrix = [
        [markup.name(title), *(count(amount(entry, "dropped", reason) or None) for reason in reasons)]
        for title, entry in sources.items()
    ]
    by_source = table(["Source", *(f"#{reason}" for reason in reasons)], matrix, class_="small")
    return join(
        [
            element("h3", "Why documents were dropped"),
            table(["Reason", "~", "#Documents", "#Share", "#Bytes"], rows, totals=1),
            folded("By source, documents", by_source),
        ]
    )


def _mixture(run: Run, sources: dict[str, Entry]) -> Html:
    weights = {title: number(entry.get("weight")) for title, entry in sources.items()}
    given = [weight for weight in weights.values() if known(weight)]
    rows = []
    for title, entry in sources.items():
        codes = sorted(entry.get("languages") or {})
        sizes = {code: amount(entry, "languages", code, unit="bytes") for code in codes}
        shares = {code: share(part, sum(sizes.values())) for code, part in sizes.items()}
        scale = share(weights[title], max(given, default=0))
        drawn = markup.bar((scale * part, code, f"{language(code)}: {percent(part)}") for code, part in shares.items())
        figures = [count(source_tokens(run, title)), decimal(epochs(run, title, weights[title]), 2)]
        rows.append([markup.name(title), entry.get("category", DASH), drawn, percent(weights[title], 2), *figures])
    tokens = sum(source_tokens(run, title) or 0 for title in sources)
    rows.append(["All", "", "", percent(sum(given), 2), count(tokens or None), ""])
    columns = ["Source", "Category", "~Weight, by language", "#Weight", "#Tokens", "#Epochs"]
    note = EPOCHS_NOTE if run.tokens else f"{EPOCHS_NOTE} The tokens have not been written yet."
    keys = [key("en", "English"), key("zh", "Chinese")]
    notes = [paragraph(*keys, class_="note"), paragraph(note, class_="note")]
    return join([element("h3", "The mixture"), table(columns, rows, totals=1), *notes])


def _overlaps(found: dict[str, dict[str, Any]]) -> Html:
    steps = ("items", "searched", "found", "documents")
    rows = [[markup.name(title), *(count(entry.get(step)) for step in steps)] for title, entry in found.items()]
    columns = ["Held-out set", "#Items", "#Searched", "#Found", "#Documents"]
    shown = [table(columns, rows), paragraph(OVERLAP_NOTE, class_="note")]
    return join([element("h3", "Held-out questions and benchmarks in the text"), *shown])


def _dirt(dirt: dict[str, Any], clean: dict[str, Any] | None) -> Html:
    rows = []
    for kind, entry in dirt.items():
        rates = [percent(entry.get("precision")), percent(entry.get("recall"))]
        caught = [count(entry.get("made")), count(entry.get("caught")), *rates]
        rows.append([markup.name(kind), *caught, _listed(entry.get("reasons") or {})])
    columns = ["Kind of dirt", "#Made", "#Caught", "#Precision", "#Recall", "Caught as"]
    parts = [
        element("h3", "The filters against labelled dirt"),
        table(columns, rows),
        paragraph(DIRT_NOTE, class_="note"),
    ]
    if clean:
        dropped = f"{count(clean.get('dropped'))} ({percent(share(clean.get('dropped'), clean.get('made')), 2)})"
        told = f"Of {count(clean.get('made'))} documents that are not labelled as dirt, {dropped} were dropped"
        reasons = [": ", _listed(clean["reasons"])] if clean.get("reasons") else []
        parts.append(paragraph(told, *reasons, ".", class_="note"))
    return join(parts)


def _listed(reasons: dict[str, Any]) -> Html:
    """Reasons with their counts, the most frequent first."""
    ordered = sorted(reasons.items(), key=lambda pair: (-number(pair[1]), pair[0]))
    return join((join([markup.name(reason), f" {count(documents)}"], "") for reason, documents in ordered), ", ")
