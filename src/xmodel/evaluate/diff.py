"""Two evaluations side by side: what changed, and whether it is more than chance, from the records of single items.

Both models answered the same items, so differences are taken item by item: what makes an item hard for both drops out,
and the standard error of the difference is smaller than that of two scores apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodel.errors import UserError
from xmodel.evaluate.choices import ratio_and_error
from xmodel.evaluate.results import ITEMS, Table, read_items
from xmodel.files import read_json

DRAWS = 9_999  # sign flips of a permutation test
RESAMPLES = 2_000  # of a bootstrap interval
EXACT = 13  # so few items have fewer than `DRAWS` ways to flip: all are taken
SETTINGS = ("window", "stride", "documents")  # of perplexity; with others, figures are of something else
PICKS = {"acc": "picked", "acc_norm": "picked_norm"}
MEANS = ("gold_bpb", "sentence_chrf")  # means over items of what their records hold
LOWER_IS_BETTER = ("bits_per_byte", "gold_bpb")
SHOWN_SETS, SHOWN_FLIPS = 4, 10

Key = tuple[str, int, str]  # set, shots, metric


class Measured(NamedTuple):
    """One metric of one set: values of N items, in the order of their ids."""

    ids: list[str]
    values_N: np.ndarray  # float64; of a share 0 or 1
    weights_N: np.ndarray | None  # of a ratio of sums (bits over bytes) the denominators
    same_N: list[Any]  # what has to be equal for an item to be the same: its answer, its bytes
    settings: dict[str, Any]

    @property
    def binary(self) -> bool:
        """Whether every item is right or wrong."""
        return self.weights_N is None and bool(np.isin(self.values_N, (0.0, 1.0)).all())

    @property
    def value(self) -> float:
        """The score."""
        total = len(self.values_N) if self.weights_N is None else self.weights_N.sum()
        return float(self.values_N.sum() / total)


def read_measured(where: Path) -> dict[Key, Measured]:
    """Every metric that the item records of a results file or folder (or of a run's eval/) give.

    Raises:
        UserError: no results there. MachineError: a damaged file.
    """
    if where.is_dir() and (where / "recipe.yaml").is_file():
        where = where / "eval"
    paths = [where] if where.is_file() else sorted(where.glob("*.json"))
    found: dict[Key, Measured] = {}
    for path in paths:
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(rows := content.get("results"), list):
            continue
        known: dict[str, dict[int, list[str]]] = {}  # of the rows: set, shots, metrics
        for row in rows:
            known.setdefault(row["set"], {}).setdefault(row.get("shots") or 0, []).append(row["metric"])
        beside = path.with_name(path.stem + ITEMS).is_file()
        items = content.get("items") or (read_items(path.parent, path.stem) if beside else [])
        settings = {name: value for name, value in content.get("settings", {}).items() if name in SETTINGS}
        groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
        for part, records in enumerate((items, content.get("outputs", []))):
            for record in records:
                name = _set_of(record, known) or path.stem
                shots = record.get("shots", next(iter(known.get(name, (0,)))))
                groups.setdefault((name, shots, part), []).append(record)
        for (name, shots, _), own in groups.items():
            for metric, measured in _measures(own, known.get(name, {}).get(shots, []), settings):
                if (name, shots, metric) in found:
                    raise UserError(f"{path}: {name} ({shots}-shot, {metric}) stands in {where} twice; name one file")
                found[name, shots, metric] = measured
    if not found:
        raise UserError(f"{where}: no results with records of their items (*.json of `xmodel evaluate`)")
    return found


def _set_of(record: dict[str, Any], known: dict[str, Any]) -> str | None:
    """The set of a record: the beginning of its id (`facts_en/test/0`), or of held-out text its language."""
    if "nats" in record:
        return f"{next(iter(known), 'text')}_{record['language']}"
    name = str(record["id"]).rsplit("/", 2)[0]
    return name if name in known else None


def _measures(
    records: Sequence[dict[str, Any]], metrics: Sequence[str], settings: dict[str, Any]
) -> Iterator[tuple[str, Measured]]:
    """Every metric of one set's records.

    Args:
        metrics: of the set's result rows.
    """
    records = sorted(records, key=lambda record: str(record["id"]))
    ids = [str(record["id"]) for record in records]

    def of(values: Sequence[Any], same: str = "answer", weights: np.ndarray | None = None) -> Measured:
        equal = [record.get(same) for record in records]
        return Measured(ids, np.array(values, np.float64), weights, equal, settings)

    first = records[0]
    if "nats" in first:
        sizes = np.array([record["bytes"] for record in records], np.float64)
        yield "bits_per_byte", of([record["nats"] / math.log(2) for record in records], "bytes", sizes)
        return
    main = next((name for name in ("acc", "exact_match") if name in metrics), "acc")
    for metric in dict.fromkeys([main, *metrics, *PICKS, *MEANS]):
        if metric in PICKS and PICKS[metric] in first and "right" not in first:
            yield metric, of([record[PICKS[metric]] == record["answer"] for record in records])
        elif metric == main and "right" in first:
            yield metric, of([record["right"] for record in records])
        elif isinstance(first.get(metric), int | float):
            yield metric, of([record[metric] for record in records])


def diff(a: dict[Key, Measured], b: dict[Key, Measured]) -> dict[str, Any]:
    """Compare two evaluations, from A to B.

    Returns:
        results: a row for each set, number of shots and metric that both have: set, shots, metric, a, b, value (b − a),
            stderr (of the paired difference), low and high (95 %, bootstrap over items), p, p_holm (Holm's correction
            over the rows of the metric), test, items, won and lost (items that only B, only A has right).
        flips: per row with such items their ids. only_a, only_b: (set, shots) that the other lacks.

    Raises:
        UserError: nothing in common, or a set with other items, shots or settings on the two sides.
    """
    for name in sorted({key[0] for key in a} & {key[0] for key in b}):
        shots_a, shots_b = ({key[1] for key in side if key[0] == name} for side in (a, b))
        if not shots_a & shots_b:
            raise UserError(f"{name}: A was scored {_shots(shots_a)}, B {_shots(shots_b)}: that is no comparison")
    common = [key for key in a if key in b]
    if not common:
        has = [", ".join(sorted({key[0] for key in side})[:5]) for side in (a, b)]
        raise UserError(f"A and B have no set in common: A has {has[0]}; B has {has[1]}")
    rows, flips = [], []
    for key in common:
        _check_same(key, a[key], b[key])
        row, changed = _compare(key, a[key], b[key])
        rows.append(row)
        if changed["won"] or changed["lost"]:
            flips.append({"set": key[0], "shots": key[1], "metric": key[2], **changed})
    for metric in {row["metric"] for row in rows}:
        own = [row for row in rows if row["metric"] == metric]
        for row, p in zip(own, holm([row["p"] for row in own]), strict=True):
            row["p_holm"] = p
    asked = [dict.fromkeys(key[:2] for key in side) for side in (a, b)]
    only = {"only_a": [one for one in asked[0] if one not in asked[1]]}
    only["only_b"] = [one for one in asked[1] if one not in asked[0]]
    return {"results": rows, "flips": flips} | only


def _shots(numbers: set[int]) -> str:
    return " and ".join(f"{count}-shot" for count in sorted(numbers))


def _check_same(key: Key, a: Measured, b: Measured) -> None:
    name = key[0]
    for setting in sorted(a.settings.keys() & b.settings.keys()):
        if a.settings[setting] != b.settings[setting]:
            raise UserError(
                f"{name}: {setting} was {a.settings[setting]} for A and {b.settings[setting]} for B; "
                "evaluate both in the same way"
            )
    if a.ids != b.ids:
        alone = sorted(set(a.ids) ^ set(b.ids))
        raise UserError(
            f"{name}: A has {len(a.ids)} items, B {len(b.ids)}, and they are not the same (the first that only one "
            f"of them has: {alone[0] if alone else 'one id twice'}); evaluate both on the same items, with the same "
            "limit"
        )
    for number, (one, other) in enumerate(zip(a.same_N, b.same_N, strict=True)):
        if one != other:
            raise UserError(
                f"{name}: item {a.ids[number]} is another one in A than in B (its answer or size: {one!r}, {other!r}); "
                "evaluate both on the same files"
            )


def _compare(key: Key, a: Measured, b: Measured) -> tuple[dict[str, Any], dict[str, list[str]]]:
    change_N = b.values_N - a.values_N
    weights_N = np.ones(len(change_N)) if a.weights_N is None else a.weights_N
    value, stderr = ratio_and_error(change_N, weights_N)
    binary = a.binary and b.binary
    won = [a.ids[i] for i in np.flatnonzero(change_N > 0)] if binary else []
    lost = [a.ids[i] for i in np.flatnonzero(change_N < 0)] if binary else []
    low, high = bootstrap_interval(change_N, weights_N)
    row = {
        "set": key[0],
        "shots": key[1],
        "metric": key[2],
        "a": a.value,
        "b": b.value,
        "value": value,
        "stderr": stderr,
        "low": low,
        "high": high,
        "p": exact_mcnemar(len(won), len(lost)) if binary else sign_flip_test(change_N),
        "test": "McNemar, exact" if binary else "paired sign flips",
        "items": len(change_N),
        "won": len(won) if binary else None,
        "lost": len(lost) if binary else None,
    }
    return row, {"won": won, "lost": lost}


# ── Statistics ───────────────────────────────────────────────────────────────────────────────────────────────────────


def exact_mcnemar(won: int, lost: int) -> float:
    """Two-sided exact p of McNemar's test: of the items that changed, half would have gone either way by chance.

    The binomial probability of at most min(won, lost) among won + lost, doubled, at most 1.
    """
    n, fewer = won + lost, min(won, lost)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(math.exp(value - n * math.log(2)) for value in logs))


def sign_flip_test(change_N: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of the paired permutation test: by chance A and B might have changed places on any item.

    Every way to flip signs for few items, else `DRAWS` random ones, the one that was seen counted among them.
    """
    n, seen = len(change_N), abs(float(change_N.sum()))
    tolerance = 1e-12 * float(np.abs(change_N).sum())
    if n <= EXACT:
        signs_MN = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(signs_MN @ change_N) >= seen - tolerance).mean())
    rng = np.random.default_rng(seed)
    reached = 0
    for first in range(0, DRAWS, 256):
        signs_MN = 1 - 2 * rng.integers(0, 2, (min(256, DRAWS - first), n), np.int8)
        reached += int((np.abs(signs_MN @ change_N) >= seen - tolerance).sum())
    return (1 + reached) / (1 + DRAWS)


def bootstrap_interval(change_N: np.ndarray, weights_N: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of Σ change / Σ weights over resampled items."""
    rng, n = np.random.default_rng(seed), len(change_N)
    found = []
    for first in range(0, RESAMPLES, 64):
        drawn_MN = rng.integers(0, n, (min(64, RESAMPLES - first), n))
        found.append(change_N[drawn_MN].sum(1) / weights_N[drawn_MN].sum(1))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) corrected p values of a family of tests: the chance of even one false alarm stays below alpha."""
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


# ── Tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────

HEADERS = ("set", "shots", "metric", "A", "B", "B - A", "95 %", "p", "p (Holm)", "won", "lost", "items")


def cells(result: dict[str, Any]) -> list[list[str]]:
    """The rows for people: shares in percent, a star where the corrected p is below 0.05."""
    lines = []
    for row in result["results"]:
        share = row["test"].startswith("McNemar") or row["metric"] in PICKS
        scale, digits = (100, 1) if share else (1, 4 if row["metric"] in LOWER_IS_BETTER else 2)
        error = "" if row["stderr"] is None else f" ± {scale * row['stderr']:.{digits}f}"
        star = " *" if row["p_holm"] < 0.05 else ""
        lines.append(
            [
                row["set"],
                str(row["shots"]),
                row["metric"] + (" %" if share else ""),
                *(f"{scale * row[side]:.{digits}f}" for side in ("a", "b")),
                f"{scale * row['value']:+.{digits}f}{error}",
                f"{scale * row['low']:+.{digits}f} to {scale * row['high']:+.{digits}f}",
                f"{row['p']:.2g}",
                f"{row['p_holm']:.2g}{star}",
                *("" if row[side] is None else str(row[side]) for side in ("won", "lost")),
                str(row["items"]),
            ]
        )
    return lines


def notes(result: dict[str, Any]) -> list[str]:
    """What the table means, what it leaves out, and the first items that flipped."""
    lines = [
        "Differences are paired by item: ± standard error, 95 % by bootstrap over items; p by McNemar's exact test "
        "where items are right or wrong, else by sign flips; Holm's correction over the rows of a metric, * below 0.05."
    ]
    if any(row["metric"] in LOWER_IS_BETTER for row in result["results"]):
        lines.append("Of bits per byte less is better.")
    for side, label in (("only_a", "A"), ("only_b", "B")):
        if result[side]:
            named = ", ".join(f"{name} ({shots}-shot)" for name, shots in result[side])
            lines.append(f"Only {label} has {named}.")
    flips = [row for row in result["flips"] if row["metric"] in ("acc", "exact_match")]
    if len(flips) > SHOWN_SETS:
        lines.append("--json names the items that flipped; two files of single sets show them here.")
        return lines
    for row in flips:
        for side, label in (("won", "won by B"), ("lost", "lost by B")):
            ids, more = row[side][:SHOWN_FLIPS], len(row[side]) - SHOWN_FLIPS
            if ids:
                tail = f" and {more} more (--json has all)" if more > 0 else ""
                lines.append(f"{row['set']} ({row['shots']}-shot), {label}: {', '.join(ids)}{tail}")
    return lines


def diff_table(result: dict[str, Any], a: str, b: str) -> Table:
    """For `as_text`, `as_markdown` and `as_html`."""
    return Table(f"From A, {a}, to B, {b}", list(HEADERS), cells(result), notes(result))
