"""The weighted mixture: what a token budget draws from each source, and the same mixture as text for the tokenizer.

The weights are given; a search for better ones on small proxies would put its weights in the place of the recipe's.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from xmodel.console import table
from xmodel.recipe.settings import Corpus, Source
from xmodel.recipe.summary import short

TOLERANCE = 1.25  # printed epochs are rounded (2 for 2.2, 0.3 for 0.34); beyond this factor they say something else


@dataclass(frozen=True)
class Share:
    """One source in the plan."""

    source: str
    language: str
    category: str
    weight: float
    available: int | None  # tokens; None: not known
    drawn: int  # tokens
    epochs: float | None  # drawn / available
    outcome: str  # "repeated", "once", "cut", or "" where the size is not known
    printed_epochs: float | None  # as published with the mixture


@dataclass(frozen=True)
class Plan:
    """What the mixture draws from each source."""

    budget: int  # tokens
    shares: list[Share]
    warnings: list[str]


def plan(sources: Sequence[Source], budget: int, counted: Mapping[str, int] | None = None) -> Plan:
    """Share a budget of tokens among sources by weight.

    Args:
        sources: with weights that sum to 1, in millionths (the recipe's check).
        budget: tokens in all; the shares sum to it exactly (largest remainders).
        counted: tokens of each source as the tokens stage counted them; else the published size counts.
    """
    parts = [round(source.weight * 1e6) for source in sources]
    drawn = [budget * part // 1_000_000 for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda index: (-(budget * parts[index] % 1_000_000), index))
    for index in by_remainder[: budget - sum(drawn)]:
        drawn[index] += 1
    shares = []
    for source, amount in zip(sources, drawn, strict=True):
        available = counted.get(source.name) if counted is not None else source.tokens
        epochs = amount / available if available else None
        shares.append(
            Share(
                source=source.name,
                language=source.language,
                category=source.category,
                weight=source.weight,
                available=available,
                drawn=amount,
                epochs=epochs,
                outcome=_outcome(epochs),
                printed_epochs=source.epochs,
            )
        )
    return Plan(budget, shares, _disagreements(sources) + _missing(shares))


def _outcome(epochs: float | None) -> str:
    if epochs is None:
        return ""
    return "once" if abs(epochs - 1) < 0.005 else "repeated" if epochs > 1 else "cut"


def _disagreements(sources: Sequence[Source]) -> list[str]:
    """Sources whose published epochs do not follow from the published weights.

    Each row of a published table implies the size of the whole, tokens x epochs / weight; the median of the rows is
    taken for the whole, and a row that is further from it than rounding explains contradicts itself.
    """
    rows = [(source, source.tokens, source.epochs) for source in sources if source.tokens and source.epochs]
    rows = [row for row in rows if row[0].weight]
    if len(rows) < 3:
        return []
    whole = statistics.median(tokens * epochs / source.weight for source, tokens, epochs in rows)
    found = []
    for source, tokens, epochs in rows:
        derived = source.weight * whole / tokens
        if not 1 / TOLERANCE <= derived / epochs <= TOLERANCE:
            found.append(
                f"{source.name}: published as {epochs:g} epochs, but its weight of {source.weight:g} is "
                f"{derived:.2f} epochs of its {tokens:,} tokens (the other rows of the table make a whole of "
                f"{short(whole)} tokens); the weight counts"
            )
    return found


def _missing(shares: Sequence[Share]) -> list[str]:
    return [
        f"{share.source}: weight {share.weight:g}, and no token is there to draw"
        for share in shares
        if share.weight and share.available == 0
    ]


def plan_table(made: Plan) -> str:
    """The plan for the terminal."""
    rows = [
        [
            share.source,
            f"{share.available:,}" if share.available is not None else "not known",
            f"{share.weight:.4f}",
            f"{share.epochs:.2f}" if share.epochs is not None else "",
            f"{share.printed_epochs:g}" if share.printed_epochs is not None else "",
            f"{share.drawn:,}",
            share.outcome,
        ]
        for share in made.shares
    ]
    known = [share.available for share in made.shares if share.available is not None]
    rows.append(
        ["total", f"{sum(known):,}", f"{sum(s.weight for s in made.shares):.4f}", "", "", f"{made.budget:,}", ""]
    )
    headers = ["source", "tokens available", "weight", "epochs", "published", "tokens drawn", "outcome"]
    if all(share.printed_epochs is None for share in made.shares):
        headers.pop(4)
        for row in rows:
            row.pop(4)
    warnings = [f"warning: {warning}" for warning in made.warnings]
    return "\n".join([table(headers, rows), *warnings])


def sample_texts(folder: Path, settings: Corpus, most_bytes: int) -> Iterator[str]:
    """Documents of the training text in the proportions of the mixture, at most about `most_bytes` of UTF-8.

    Each source may give its weight's share of `most_bytes`. One that has less gives all; one that has more gives
    documents spread evenly over its whole length (an error-diffusion stride: no randomness, no memory).

    Args:
        folder: the corpus folder of a run (train/<source>.parquet).
    """
    for source in settings.sources:
        if source.weight == 0:
            continue
        file = pq.ParquetFile(folder / "train" / f"{source.name}.parquet")
        sizes = [file.metadata.row_group(group).column(_column(file, "text")) for group in range(file.num_row_groups)]
        available = sum(size.total_uncompressed_size for size in sizes)
        share = min(1.0, source.weight * most_bytes / max(available, 1))
        due = 0.0
        for batch in file.iter_batches(batch_size=1024, columns=["text"]):
            for text in batch.column(0).to_pylist():
                due += share
                if due >= 1.0:
                    due -= 1.0
                    yield text


def _column(file: pq.ParquetFile, name: str) -> int:
    return file.schema_arrow.names.index(name)
