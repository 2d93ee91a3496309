"""The weighted mixture: what a token budget draws from each source, and the same mixture as text for the tokenizer.

The weights are given; a search for better ones on small proxies would put its weights in the place of the recipe's.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
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
    phases: list[float]  # weights in the phases of `pretrain.phases`
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


def plan(
    sources: Sequence[Source],
    budget: int,
    counted: Mapping[str, int] | None = None,
    phases: Sequence[tuple[int, Mapping[str, float]]] = (),
) -> Plan:
    """Share a budget of tokens among sources by weight.

    Args:
        sources: with weights that sum to 1, in millionths (the recipe's check).
        budget: tokens in all; the shares sum to it exactly (largest remainders).
        counted: tokens of each source as the tokens stage counted them; else the published size counts.
        phases: (first token, weights by source) of the stretches that have other weights, in order.
    """
    stretches = [(0, {source.name: source.weight for source in sources}), *phases]
    bounds = [*(first for first, _ in stretches), budget]
    by_stretch = [
        _drawn([weights.get(source.name, 0.0) for source in sources], last - first)
        for (_, weights), (first, last) in zip(stretches, pairwise(bounds), strict=True)
    ]
    shares = []
    for index, source in enumerate(sources):
        amount = sum(drawn[index] for drawn in by_stretch)
        available = counted.get(source.name) if counted is not None else source.tokens
        epochs = amount / available if available else None
        shares.append(
            Share(
                source=source.name,
                language=source.language,
                category=source.category,
                weight=source.weight,
                phases=[weights.get(source.name, 0.0) for _, weights in phases],
                available=available,
                drawn=amount,
                epochs=epochs,
                outcome=_outcome(epochs),
                printed_epochs=source.epochs,
            )
        )
    return Plan(budget, shares, _disagreements(sources) + _missing(shares))


def _drawn(weights: Sequence[float], budget: int) -> list[int]:
    """Tokens of each source; they sum to the budget."""
    parts = [round(weight * 1e6) for weight in weights]
    drawn = [budget * part // 1_000_000 for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda index: (-(budget * parts[index] % 1_000_000), index))
    for index in by_remainder[: budget - sum(drawn)]:
        drawn[index] += 1
    return drawn


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
        f"{share.source}: weight {max(share.weight, *share.phases, 0):g}, and no token is there to draw"
        for share in shares
        if share.drawn and share.available == 0
    ]


def plan_table(made: Plan) -> str:
    """The plan for the terminal."""
    rows = [
        [
            share.source,
            f"{share.available:,}" if share.available is not None else "not known",
            " → ".join(f"{weight:.4f}" for weight in (share.weight, *share.phases)),
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


def sample_texts(folder: Path, settings: Corpus, most_bytes: int, balance: float = 1.0) -> Iterator[str]:
    """Documents of the training text, balanced by language and category, at most about `most_bytes` of UTF-8.

    See `sample_sizes` for what each source gives: all of it, or documents spread evenly over its whole length (an
    error-diffusion stride over their bytes: no randomness, no memory).

    Args:
        folder: the corpus folder of a run (train/<source>.parquet).
        balance: see `sample_sizes`.
    """
    files = {
        source.name: pq.ParquetFile(folder / "train" / f"{source.name}.parquet")
        for source in settings.sources
        if source.weight
    }
    available = {name: _text_bytes(file) for name, file in files.items()}
    sizes = sample_sizes(settings.sources, available, most_bytes, balance)
    for name, file in files.items():
        share = sizes[name] / max(available[name], 1)
        due = 0.0
        for batch in file.iter_batches(batch_size=1024, columns=["text"]):
            for text in batch.column(0).to_pylist():
                due += share
                if due >= 1.0 - 1e-9:
                    due -= 1.0
                    yield text


def sample_sizes(
    sources: Sequence[Source], available: Mapping[str, int], most_bytes: int, balance: float = 1.0
) -> dict[str, float]:
    """How many bytes each source gives to a sample of `most_bytes`.

    Languages share by weight to the power of `balance` (Conneau & Lample 2019, arXiv 1901.07291, section 3.1), within a
    language the categories likewise, within a category the sources by weight. What a source cannot give, because all of
    it is taken, the others give, in the same proportions.

    Args:
        sources: of the mixture; those without weight give nothing.
        available: bytes of text of each source with a weight.
        balance: 1: as the mixture weighs them; 0: all languages alike, and all categories of a language.
    """
    chosen = [source for source in sources if source.weight]
    by_language: dict[str, float] = {}
    by_category: dict[tuple[str, str], float] = {}
    for source in chosen:
        key = (source.language, source.category)
        by_language[key[0]] = by_language.get(key[0], 0.0) + source.weight
        by_category[key] = by_category.get(key, 0.0) + source.weight
    language_total = sum(weight**balance for weight in by_language.values())
    category_total = {
        language: sum(weight**balance for (other, _), weight in by_category.items() if other == language)
        for language in by_language
    }
    shares = {}
    for source in chosen:
        language, category = source.language, (source.language, source.category)
        part = by_language[language] ** balance / language_total
        part *= by_category[category] ** balance / category_total[language]
        shares[source.name] = part * source.weight / by_category[category]
    sizes: dict[str, float] = {}
    left = float(most_bytes)
    while len(sizes) < len(chosen):
        total = sum(share for name, share in shares.items() if name not in sizes)
        short = {n: float(available[n]) for n in shares if n not in sizes and available[n] <= left * shares[n] / total}
        if not short:
            return sizes | {name: left * shares[name] / total for name in shares if name not in sizes}
        sizes |= short
        left = max(0.0, left - sum(short.values()))
    return sizes


def _text_bytes(file: pq.ParquetFile) -> int:
    column = _column(file, "text")
    groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
    return sum(group.column(column).total_uncompressed_size for group in groups)


def _column(file: pq.ParquetFile, name: str) -> int:
    return file.schema_arrow.names.index(name)
