"""What contamination means for scores: each set's accuracy with and without the items that stand in the corpus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from xmodel.console import table
from xmodel.evaluate.choices import mean_and_error
from xmodel.evaluate.diff import Key, Measured
from xmodel.evaluate.questions import QuestionSet


def giveaways(sets: Iterable[QuestionSet]) -> list[tuple[str, str, list[str]]]:
    """(set, item id, texts) of every test item: the question with its right answer; of a translation both sides too."""
    return [
        (
            questions.name,
            item.id,
            [item.prompt + item.choices[item.answer], *(text for text in (item.source, item.reference) if text)],
        )
        for questions in sets
        for item in questions.test
    ]


def with_scores(found: dict[str, Any], measured: dict[Key, Measured]) -> list[dict[str, Any]]:
    """Scores of all items, of the clean ones and of the contaminated ones, for each set that has any.

    Args:
        found: of the corpus room's `scan`.
        measured: of `read_measured`, whose item ids are those of `found`.

    Returns:
        Rows of right-or-wrong metrics with set, shots, metric, and for `all`, `clean` and `contaminated` the items,
        value and stderr (None where there is no such item, or but one).
    """
    dirty: dict[str, set[str]] = {}
    for item in found["items"]:
        dirty.setdefault(item["set"], set()).add(item["id"])
    rows = []
    for (name, shots, metric), scores in measured.items():
        if name not in dirty or not scores.binary or not dirty[name] & set(scores.ids):
            continue
        parts: dict[str, list[float]] = {"all": [], "clean": [], "contaminated": []}
        for item, value in zip(scores.ids, scores.values_N.tolist(), strict=True):
            parts["all"].append(value)
            parts["contaminated" if item in dirty[name] else "clean"].append(value)
        row: dict[str, Any] = {"set": name, "shots": shots, "metric": metric}
        for part, values in parts.items():
            value, stderr = mean_and_error(values) if values else (None, None)
            row[part] = {"items": len(values), "value": value, "stderr": stderr}
        rows.append(row)
    return rows


def contamination_table(found: dict[str, Any]) -> str:
    """Sets, scores with and without, examples."""
    lines = [
        [
            row["set"],
            f"{row['items']:,}",
            f"{row['searched']:,}",
            f"{row['found']:,}",
            f"{row['contaminated']:,}",
            f"{100 * row['contaminated'] / row['items']:.1f}",
            f"{row['documents']:,}",
        ]
        for row in found["sets"]
    ]
    parts = [
        table(["set", "items", "searched", "any n-gram", "contaminated", "%", "documents"], lines),
        f"in {found['documents']:,} documents of {found['bytes'] / 1e6:,.1f} MB, {found['seconds']:.1f} s "
        f"({found['bytes'] / 1e6 / max(found['seconds'], 1e-9):,.0f} MB/s). any n-gram: 13 words or 26 Han characters "
        "in a row, or the whole of a shorter text; contaminated: 13 words or 30 Han characters, or the whole.",
    ]
    if found.get("scores"):
        lines = [
            [row["set"], str(row["shots"]), row["metric"], *(_score(row[part]) for part in _PARTS)]
            for row in found["scores"]
        ]
        parts.append(table(["set", "shots", "metric", *_PARTS], lines))
    examples = [
        f"{row['set']} {row['id']}, {100 * row['share']:.0f} % in {row['document']}: {row['text']}"
        for row in found["examples"]
    ]
    if examples:
        parts.append("\n".join(["examples (item, share of its text, document: what both hold, folded)", *examples]))
    return "\n\n".join(parts)


_PARTS = ("all", "clean", "contaminated")


def _score(part: dict[str, Any]) -> str:
    if part["value"] is None:
        return "–"
    error = "" if part["stderr"] is None else f" ± {part['stderr']:.3f}"
    return f"{part['value']:.3f}{error} ({part['items']})"
