"""Scores while training: against the step on a logarithmic axis, whether they follow it, and beside TinyLlama's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from xmodel.report.charts import MARGIN, colour_of, column, end_label
from xmodel.report.draw import SMALL, Curve, lines
from xmodel.report.markup import Html, element, figure, folded, join, paragraph, table
from xmodel.report.markup import name as code
from xmodel.report.numbers import INTERVAL, LANGUAGES, count, decimal, known, language, number, percent
from xmodel.report.read import Run
from xmodel.report.trajectory import beside
from xmodel.report.trend import FEWEST, SURE, Trend, least_p, trend, with_p

ORDER_NOTE = (
    "p: how often scores put in random order would give a correlation at least as strong (two-sided permutation test). "
    "Checkpoints of one run are no independent draws: p tells whether the order matters, not whether another run would "
    "show it."
)
GOLD_NOTE = "Bits that the model needs for the right answers, for each UTF-8 byte of them: less is better."


class Kind(NamedTuple):
    """A figure of the score rows that is drawn over the steps."""

    key: str
    error: str
    title: str
    note: str
    limits: tuple[float | None, float | None]
    write: Callable[[float], str]


ACCURACY = Kind("accuracy", "stderr", "mean accuracy", "", (0, 1), lambda value: percent(value, 0))
GOLD = Kind(
    "gold_bpb",
    "gold_bpb_stderr",
    "bits per byte of the right answers",
    GOLD_NOTE,
    (0, None),
    lambda value: decimal(value, 1),
)


def during(run: Run) -> Html:
    """Scores while training, or nothing when none were taken."""
    by_set = _multiples(run, ACCURACY)
    if not by_set:
        return Html("")
    items = sorted({count(record.get("items")) for records in run.scores.values() for record in records}, key=len)
    n = " to ".join(dict.fromkeys((items[0], items[-1])))
    note = f"Each point of a set is n = {n} questions. Bands: ±{INTERVAL} standard errors; dashed grey: chance."
    if any(record["step"] <= 0 for records in run.scores.values() for record in records):
        note += " Step 0 has no place on a logarithmic axis."
    parts = [
        element("h3", "While training"),
        element("div", _means(run), class_="figures"),
        element("div", by_set, class_="multiples"),
        paragraph(note, class_="note"),
    ]
    if gold := _multiples(run, GOLD):
        parts.append(folded("Bits per byte of the right answers, by set", element("div", gold, class_="multiples")))
    return join([*parts, trends(run), beside(run)])


def _means(run: Run) -> Html:
    """For each suite and number of shots the means by language: accuracy, and bits per byte beside it."""
    groups = dict.fromkeys((suite_of(records), shots) for (_, shots), records in sorted(run.scores.items()))
    return join(_mean(run, *group, kind) for group in groups for kind in (ACCURACY, GOLD))


def _mean(run: Run, suite: str, shots: int, kind: Kind) -> Html:
    means = language_means(run, suite, shots, kind)
    if not means:
        return Html("")
    levels = {tongue: points["chance"] for tongue, points in means.items() if kind is ACCURACY}
    levels = {tongue: level for tongue, level in levels.items() if math.isfinite(level)}
    limits = _step_limits(run)
    apart = bool(levels) and max(levels.values()) - min(levels.values()) > 0.005
    curves = []
    for tongue, points in means.items():
        label = end_label(language(tongue), points["value"], percent if kind is ACCURACY else decimal)
        curves.append(Curve(points["step"], points["value"], tongue, label, band=points["interval"]))
        if apart and tongue in levels:
            curves.append(Curve(limits, [levels[tongue]] * 2, tongue, "chance", width=1, dashed=True))
    level = next(iter(levels.values())) if levels and not apart else None
    drawing = lines(
        f"progress-{kind.key}-{len(suite)}-{sum(map(ord, suite))}-{shots}".replace("_", "-"),
        f"{kind.title.capitalize()} by language against the training step",
        curves,
        x_label="step, logarithmic",
        x_log=True,
        x_limits=limits,
        y_format=kind.write,
        y_limits=kind.limits,
        level=None if level is None else (level, f"chance {percent(level)}"),
        margin=MARGIN,
    )
    sets = ", ".join(f"{len(points['sets'])} {language(tongue)}" for tongue, points in means.items())
    note = f"Band: ±{INTERVAL} standard errors of the mean over the sets ({sets}). {kind.note}".strip()
    title = f"{suite}: {kind.title}" if suite else kind.title
    return figure(f"{title[0].upper()}{title[1:]}, {shots}-shot", drawing, note)


def _multiples(run: Run, kind: Kind) -> Html:
    """Small multiples: one chart for each question set."""
    figures = []
    for title in dict.fromkeys(title for title, _ in run.scores):
        shots = sorted(shots for other, shots in run.scores if other == title)
        drawing = _one_set(run, title, shots, kind, f"{kind.key.replace('_', '-')}-set-{len(figures)}")
        if drawing:
            figures.append(figure(code(title), drawing))
    return join(figures)


def _one_set(run: Run, title: str, all_shots: list[int], kind: Kind, name: str) -> Html:
    curves: list[Curve] = []
    chance = math.nan
    for shots in all_shots:
        records = _placeable(run.scores[title, shots], kind)
        if records:
            first, label = not curves, f"{shots}-shot" if len(all_shots) > 1 else ""
            band = [INTERVAL * error for error in column(records, kind.error)] if first else []
            x, y = column(records, "step"), column(records, kind.key)
            colour = colour_of(set_language(run, title))
            curves.append(Curve(x, y, colour, label, 1.6, dashed=not first, band=band))
            chance = number(records[-1].get("chance")) if kind is ACCURACY else math.nan
    if not curves:
        return Html("")
    return lines(
        name, f"{kind.title.removeprefix('mean ').capitalize()} against the training step", curves,
        size=SMALL, x_log=True, x_limits=_step_limits(run), y_limits=kind.limits,
        y_ticks=(0, 0.5, 1) if kind is ACCURACY else None, y_format=kind.write,
        level=(chance, "") if math.isfinite(chance) else None, margin=36 if len(all_shots) > 1 else 0,
    )  # fmt: skip


def trends(run: Run) -> Html:
    """Whether scores follow log steps, set by set, in sentences and tables; nothing where no set has four points."""
    accuracy, gold = (_trends(run, kind) for kind in (ACCURACY, GOLD))
    if not accuracy:
        return Html("")
    told = [_told(list(accuracy.values()), "accuracy"), _told(list(gold.values()), "the right answers’ bits per byte")]
    fewest = min(one.points for one in accuracy.values())
    if least_p(fewest) >= SURE:
        told.append(f"{fewest} points cannot show it: their smallest p is {decimal(least_p(fewest), 2)}.")
    meaning = (
        f"r: Pearson’s correlation with log10 of the step, ρ: Spearman’s, each with its p ({FEWEST} points at least). "
    )
    meaning += "After ±: the standard error of the slope, by least squares. "
    parts = [
        element("h3", "Do scores follow the logarithm of the step?"),
        paragraph(" ".join(filter(None, told))),
        _trend_table(run, accuracy, "Points of % per tenfold of steps", 100, 1),
    ]
    if gold:
        parts.append(folded("The same of bits per byte", _trend_table(run, gold, "Bits per tenfold of steps", 1, 3)))
    return join([*parts, paragraph(meaning + ORDER_NOTE, class_="note")])


def _trends(run: Run, kind: Kind) -> dict[tuple[str, int], Trend]:
    """By set and number of shots, where there are points enough and the score moves at all."""
    found = {}
    for key, records in sorted(run.scores.items()):
        placed = _placeable(records, kind)
        one = trend(column(placed, "step"), column(placed, kind.key))
        if one is not None and known(one.pearson):
            found[key] = one
    return found


def _told(found: Sequence[Trend], what: str) -> str:
    if not found:
        return ""
    sure, n = sum(one.sure for one in found), len(found)
    curves = "curve" if n == 1 else "curves"
    told = f"For {sure} of {n} {curves} of {what} the correlation with log steps can be told from none (p < {SURE:g})"
    return f"{told}; of {n} without any relation about {SURE * n:.1g} would be." if n > 1 else f"{told}."


def _trend_table(run: Run, found: dict[tuple[str, int], Trend], slope: str, scale: float, places: int) -> Html:
    several = len({shots for _, shots in run.scores}) > 1
    rows = []
    for (title, shots), one in found.items():
        moved = f"{scale * one.slope:+.{places}f} ±{scale * one.stderr:.{places}f}"
        figures = [with_p(one.pearson, one.pearson_p), with_p(one.spearman, one.spearman_p), moved]
        rows.append([code(title), *([count(shots)] if several else []), count(one.points), *figures])
    return table(["Set", *(["#Shots"] if several else []), "#Points", "#r", "#ρ", f"#{slope}"], rows)


# ---- what the rows say -----------------------------------------------------------------------------------------------


def _placeable(records: Sequence[dict[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    """Rows that have this figure, and a place on a logarithmic axis."""
    return [record for record in records if record["step"] > 0 and known(record.get(kind.key))]


def suite_of(records: Sequence[dict[str, Any]]) -> str:
    """The suite that a set's rows name; empty for rows of older runs, which name none."""
    return str(records[-1].get("suite") or "")


def language_means(run: Run, suite: str, shots: int, kind: Kind) -> dict[str, dict[str, Any]]:
    """Mean over the sets of each language, at the steps where every set was scored.

    The sets are taken as independent: the mean's standard error is sqrt(sum of squares) / number of sets.
    """
    means: dict[str, dict[str, Any]] = {}
    for tongue in LANGUAGES:
        curves = {
            title: {record["step"]: record for record in _placeable(records, kind)}
            for (title, given), records in run.scores.items()
            if given == shots and suite_of(records) == suite and set_language(run, title) == tongue
        }
        curves = {title: curve for title, curve in curves.items() if curve}
        steps = sorted(set.intersection(*(set(curve) for curve in curves.values()))) if curves else []
        if steps:
            rows = [[curve[step] for curve in curves.values()] for step in steps]
            means[tongue] = {"step": steps, "sets": list(curves)} | {
                "value": [sum(column(row, kind.key)) / len(row) for row in rows],
                "interval": [INTERVAL * math.hypot(*column(row, kind.error)) / len(row) for row in rows],
                "chance": sum(column(rows[-1], "chance")) / len(curves),
            }
    return means


def set_language(run: Run, title: str) -> str:
    """The language of a question set: what its rows or its final result say, else what its name ends in."""
    during = [record for (name, _), records in run.scores.items() for record in records if name == title]
    for row in (*during, *run.results):
        if row.get("set") == title and row.get("language"):
            return row["language"]
    found = re.search(r"_(en|zh)$", title)
    return found[1] if found else ""


def _step_limits(run: Run) -> tuple[float, float]:
    """From the first to the last scored step, the same for all figures."""
    steps = [record["step"] for records in run.scores.values() for record in _placeable(records, ACCURACY)]
    low, high = min(steps), max(steps)
    return (low / 1.1, high) if low < high else (low / 2, high * 2)
