"""The funnel: what was read, what became of it and why. Counts of parts of a corpus merge by addition.

Keys of the counts are (outcome, detail, label): the outcome is "kept", "validation" or "dropped"; the detail is the
language or, of what was dropped, the reason; the label is the class of labelled dirt, or None.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from xmodel.console import table
from xmodel.corpus.batches import alive
from xmodel.corpus.utf8 import byte_lengths

LANGUAGES = ("en", "zh")

# Which reasons are meant for which class of the sandbox's dirt.
MEANT_FOR = {
    "exact_duplicate": ("duplicate",),
    **{f"near_duplicate_{percent}": ("near_duplicate", "duplicate") for percent in ("01", "02", "05", "10", "20")},
    "leaked_question": ("contaminated",),
    "too_short": ("too_short",),
    "mojibake": ("mojibake",),
    "wrong_language": ("wrong_language", "wrong_script"),
    "symbol_soup": ("symbols", "few_letters"),
    "list_without_sentences": ("list",),
    "repeated_lines": ("repeated_lines",),
    "boilerplate": ("boilerplate",),
}

Key = tuple[str, str, str | None]


class Counts:
    """Documents and bytes of UTF-8 under each key."""

    def __init__(self) -> None:
        self.read = np.zeros(2, np.int64)  # documents, bytes: counted before any stage
        self.cut = np.zeros(2, np.int64)  # documents that lost a part of their text, and the bytes of these parts
        self.of: dict[Key, np.ndarray] = defaultdict(_nothing)

    def add_read(self, batch: pa.RecordBatch) -> None:
        """Count a batch as it came from the reader."""
        self.read += (len(batch), int(byte_lengths(batch["text"]).sum()))

    def add_cut(self, bytes_D: np.ndarray) -> None:
        """Count by how many bytes the stages have shortened the texts of a batch."""
        self.cut += (np.count_nonzero(bytes_D), bytes_D.sum())

    def add(self, batch: pa.RecordBatch, validation_D: np.ndarray) -> None:
        """Count what became of a batch that has gone through all stages."""
        outcome_D = np.where(alive(batch), np.where(validation_D, "validation", "kept"), "dropped")
        columns = {
            "outcome": pa.array(outcome_D, pa.string()),
            "detail": batch["reason"].fill_null(batch["language"]),
            "label": batch["label"],
            "bytes": byte_lengths(batch["text"]),
        }
        grouped = pa.table(columns).group_by(["outcome", "detail", "label"])
        for row in grouped.aggregate([("bytes", "count"), ("bytes", "sum")]).to_pylist():
            self.of[row["outcome"], row["detail"], row["label"]] += (row["bytes_count"], row["bytes_sum"])

    def __iadd__(self, other: Counts) -> Counts:
        self.read += other.read
        self.cut += other.cut
        for key, amount in other.of.items():
            self.of[key] += amount
        return self

    def sum(self, outcome: str, detail: str | None = None) -> np.ndarray:
        """Documents and bytes with this outcome (and detail)."""
        chosen = [n for (one, other, _), n in self.of.items() if one == outcome and detail in (None, other)]
        return np.sum(chosen, axis=0) if chosen else np.zeros(2, np.int64)

    def details(self, outcome: str) -> list[str]:
        """The details met with this outcome: most documents first, then by name."""
        found = {detail for one, detail, _ in self.of if one == outcome}
        return sorted(found, key=lambda detail: (-self.sum(outcome, detail)[0], detail))

    def describe(self) -> dict[str, Any]:
        """The counts as funnel.json has them. read = dropped + validation + kept, always; of bytes, + cut."""
        outcomes = ("dropped", "validation", "kept")
        whole = self.read - (0, self.cut[1])
        assert (whole == sum(self.sum(outcome) for outcome in outcomes)).all(), "the funnel does not sum up"
        return {
            "read": _amount(self.read),
            "cut": _amount(self.cut),
            "dropped": {reason: _amount(self.sum("dropped", reason)) for reason in self.details("dropped")},
            "validation": _amount(self.sum("validation")),
            "kept": _amount(self.sum("kept")),
            "languages": {
                language: _amount(self.sum("kept", language)) for language in LANGUAGES if self.sum("kept", language)[0]
            },
        }

    def reasons(self) -> str:
        """Why documents were dropped, in one line."""
        return ", ".join(f"{self.sum('dropped', reason)[0]} {reason}" for reason in self.details("dropped"))


def _nothing() -> np.ndarray:
    return np.zeros(2, np.int64)


def _amount(documents_bytes: np.ndarray) -> dict[str, int]:
    return {"documents": int(documents_bytes[0]), "bytes": int(documents_bytes[1])}


def score_dirt(counts: Counts) -> dict[str, Any]:
    """How well the labelled dirt of the sandbox sources was told from the rest.

    Returns:
        "dirt": for each class "made", "caught" (dropped, whatever the reason), "recall" = caught / made, "reasons" (of
        the caught) and "precision": of all documents dropped for the reasons that are meant for the class, the share
        that is labelled dirt of any class; None when nothing was dropped for them.
        "clean": documents without a label: "made", "dropped", "reasons". A clean document dropped as a duplicate may
        well be one: the sandbox can say the same twice.
    """
    dirt: dict[str, Any] = {}
    labels = {label for _, _, label in counts.of if label is not None}
    for label in sorted(labels):
        of_label = {(outcome, detail): int(n[0]) for (outcome, detail, own), n in counts.of.items() if own == label}
        reasons = {detail: n for (outcome, detail), n in sorted(of_label.items()) if outcome == "dropped"}
        made, caught = sum(of_label.values()), sum(reasons.values())
        meant = [(own, int(n[0])) for (_, detail, own), n in counts.of.items() if detail in MEANT_FOR.get(label, ())]
        hits, dropped = sum(n for own, n in meant if own is not None), sum(n for _, n in meant)
        dirt[label] = {
            "made": made,
            "caught": caught,
            "precision": hits / dropped if dropped else None,
            "recall": caught / made,
            "reasons": reasons,
        }
    clean = {(outcome, detail): int(n[0]) for (outcome, detail, own), n in counts.of.items() if own is None}
    wrongly = {detail: n for (outcome, detail), n in sorted(clean.items()) if outcome == "dropped"}
    return {
        "dirt": dirt,
        "clean": {"made": sum(clean.values()), "dropped": sum(wrongly.values()), "reasons": wrongly},
    }


def funnel_table(funnel: dict[str, Any]) -> str:
    """The funnel as a table for the terminal."""

    def row(name: str, figures: dict[str, Any]) -> list[str]:
        dropped = sum(amount["documents"] for amount in figures["dropped"].values())
        reasons = ", ".join(f"{reason} {amount['documents']}" for reason, amount in figures["dropped"].items())
        counts = (
            figures["read"]["documents"],
            dropped,
            figures["validation"]["documents"],
            figures["kept"]["documents"],
        )
        return [name, *map(str, counts), f"{figures['kept']['bytes'] / 1e6:.2f}", reasons]

    rows: Iterable[list[str]] = [row(name, figures) for name, figures in funnel["sources"].items()]
    headers = ("source", "read", "dropped", "validation", "kept", "kept MB", "reasons")
    return table(headers, [*rows, row("total", funnel["total"])])
