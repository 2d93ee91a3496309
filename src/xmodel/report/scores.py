"""The final scores: a dot for each, its 95 % interval, and where chance lies; then perplexity and other measures."""

from __future__ import annotations

import math
from typing import Any

from xmodel.report import markup, tables
from xmodel.report.markup import Html, coloured, element, join, missing, paragraph, table
from xmodel.report.numbers import DASH, INTERVAL, LANGUAGES, count, decimal, known, language, number, percent, share
from xmodel.report.read import Run

SIZES = {"bits_per_byte": "bits per byte", "loss": "loss, nats per token", "perplexity": "perplexity"}
ACCURACIES = ("acc", "exact_match")  # what a dot is drawn of: the share of right answers
SHARES = (*ACCURACIES, "acc_norm", "f1", "mcc", "pass@1", "mean")
MEASURES = {"chrf": "chrF", "bleu": "BLEU"}
CONTAMINATED = (
    "Contaminated: of the question with its right answer 13 words or 30 Han characters in a row, or all of a shorter "
    "one, stand in the training text. The others may be harder or easier."
)
CHRF_NOTE = "chrF, BLEU: 0 to 100, greedy translations; chance: the score of answering with another item’s reference."


def final(run: Run) -> Html:
    """Every result in eval/*.json, and what stands in evaluations/."""
    if not (run.results or run.others or run.tables):
        return missing("The scores of the finished model", "xmodel evaluate")
    steps = sorted({row["step"] for row in run.results if known(row.get("step"))})
    of = f" at step {' and '.join(map(count, steps))}" if steps else ""
    errors = f"The number after ± is {INTERVAL} standard errors (a 95% interval); n counts the items."
    metrics = {row.get("metric") for row in run.results}
    if "acc_norm" in metrics:
        errors += " acc picks the likeliest choice, acc_norm the likeliest per byte."
    if "exact_match" in metrics:
        errors += " Where answers are written, not chosen, the share of exact matches stands in place of acc."
    if "gold_bpb" in metrics:
        errors += " Bits/byte: what the model needs for the right answers; less is better."
    parts = [paragraph(f"Scores of the model{of}. {errors}"), tables.published(run)]
    beside = {metric: choices(run, metric) for metric in ("acc_norm", "gold_bpb")}
    for group, rows in choices(run).items():
        suite, shots = group
        more = {metric: found[group] for metric, found in beside.items() if group in found}
        parts += [element("h3", f"{suite.capitalize()}, {shots}-shot accuracy"), _dots(rows, more)]
    parts.append(tables.shots(run, SHARES))
    sizes = [row for row in run.results if row.get("metric") in SIZES]
    if sizes:
        parts += [element("h3", "Held-out text"), _held_out(sizes)]
    for title, rows in run.others.items():
        if sizes := [row for row in rows if row.get("metric") in SIZES]:
            parts += [element("h3", "Text of ", markup.name(title)), _held_out(sizes)]
    shown = {id(row) for found in (choices(run), *beside.values()) for rows in found.values() for row in rows}
    others = [row for row in run.results if id(row) not in shown and row.get("metric") not in (*SIZES, "mean")]
    if others:
        columns = ["Set", "Language", "Measure", "#Shots", "#Value", "#Chance", "#n"]
        rows = []
        for row in others:
            share = row.get("metric") in SHARES
            chance = percent(row.get("chance")) if share else decimal(row.get("chance"), 2)
            value = _interval(row, 1, 100) if share else _interval(row, 2)
            figures = [count(row.get("shots")), value, chance, _questions(row)]
            rows.append(
                [
                    markup.name(row.get("set")),
                    _tongue(row),
                    MEASURES.get(str(row.get("metric")), row.get("metric")),
                    *figures,
                ]
            )
        parts += [element("h3", "Other measures"), table(columns, rows)]
        if any(row.get("metric") == "chrf" for row in others):
            parts.append(paragraph(CHRF_NOTE, class_="note"))
    return join(parts)


def told(run: Run) -> list[Html]:
    """A sentence for each suite: its accuracies with the fewest shots, as means where the suite has them."""
    groups, sentences = choices(run), []
    means = [row for row in run.results if row.get("metric") == "mean" and known(row.get("value"))]
    suites = dict.fromkeys([*(suite for suite, _ in groups), *(str(row["suite"]) for row in means)])
    for suite in suites:
        own = [row for row in means if row["suite"] == suite]
        shots = min((shots for other, shots in groups if other == suite), default=0)
        rows = own or [row for row in groups[suite, shots] if is_mean(row)] or groups[suite, shots]
        scores = []
        for row in sorted(rows, key=lambda row: str(row.get("language"))):
            chance = f" (chance {percent(row['chance'], 0)})" if known(row.get("chance")) else ""
            what = str(row["set"]).removesuffix(f"_{suite}").replace("_", " ") if own else _tongue(row)
            part = ", of a part of the suite alone" if row.get("partial") else ""
            scores.append(join([what, f" {percent(row['value'])}{chance}{part}"], ""))
        head = f"{suite.capitalize()}: " if own else f"{suite.capitalize()}, {shots}\u2011shot accuracy: "
        sentences.append(join([head, join(scores, ", "), "."], ""))
    return sentences


def choices(run: Run, metric: str = "acc") -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Results of a metric by suite and number of shots; accuracies, and what stands for them, with a chance level."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    metrics = ACCURACIES if metric == "acc" else (metric,)
    for row in run.results:
        if (
            row.get("metric") in metrics
            and known(row.get("value"))
            and (known(row.get("chance")) or metric == "gold_bpb")
        ):
            groups.setdefault((str(row["suite"]), row.get("shots") or 0), []).append(row)
    return groups


def is_mean(row: dict[str, Any]) -> bool:
    """Whether a result is a mean over sets."""
    return str(row.get("set")).startswith("mean")


def _dots(rows: list[dict[str, Any]], more: dict[str, list[dict[str, Any]]]) -> Html:
    """A dot plot that is a table: each row with its mark on a scale from 0 to 100 %; means below.

    Args:
        more: rows of further metrics (acc_norm, gold_bpb) of the same sets, each a column.
    """
    scale = element("span", *(element("span", text) for text in ("0%", "25%", "50%", "75%", "100%")), class_="scale")
    heads = {"acc_norm": "#acc_norm", "gold_bpb": "#Bits/byte"}
    columns = ["Set", "Language", Html(f"~{scale}"), "#acc", *(heads[metric] for metric in more), "#Chance", "#n"]
    searched = any("clean" in row for row in rows)
    columns += ["#Contaminated", "#acc of the others"] if searched else []
    by_name = {metric: {row.get("set"): row for row in found} for metric, found in more.items()}
    means = [row for row in rows if is_mean(row)]
    drawn = []
    for row in [row for row in rows if not is_mean(row)] + means:
        tongue = str(row.get("language"))
        title = coloured(tongue, "Mean") if row["set"] == f"mean_{tongue}" else markup.name(row.get("set"))
        figures = [join([_interval(row, 1, 100), "†" if row.get("partial") else ""], "")]
        for metric, found in by_name.items():
            other = found.get(row["set"], {})
            figures.append(_interval(other, 2) if metric == "gold_bpb" else _interval(other, 1, 100))
        figures += [percent(row["chance"]), _questions(row)]
        if searched:
            part = share(row["contaminated"], row["items"]) if "clean" in row else math.nan
            figures += [percent(part), _interval(row.get("clean", {}), 1, 100)]
        drawn.append([title, _tongue(row), _strip(row), *figures])
    drawing = table(columns, drawn, totals=len(means), class_="scores")
    partial = any(row.get("partial") for row in rows)
    notes = ["† not of the whole benchmark: compares with nothing published."] if partial else []
    notes += [CONTAMINATED] if searched else []
    return join([drawing, *(paragraph(note, class_="note") for note in notes)])


def _questions(row: dict[str, Any]) -> str:
    """How many questions a figure is of, and how many the benchmark has where these are others."""
    items, whole = row.get("items"), row.get("benchmark_items")
    return count(items) + (f" of {count(whole)}" if known(whole) and whole != items else "")


def _strip(row: dict[str, Any]) -> Html:
    """One row of the dot plot, 0 to 100 % from edge to edge of its cell."""
    value, chance, half = 100 * row["value"], 100 * row["chance"], 100 * INTERVAL * number(row.get("stderr"))
    code = row["language"] if row.get("language") in LANGUAGES else ""
    marks = [f'<line class="grid" x1="{x}%" x2="{x}%" y1="0" y2="100%"/>' for x in (0, 25, 50, 75, 100)]
    marks.append(f'<line class="chance" x1="{chance:.2f}%" x2="{chance:.2f}%" y1="3" y2="21"/>')
    if math.isfinite(half):
        low, high = max(value - half, 0), min(value + half, 100)
        marks.append(f'<line class="whisker {code}" x1="{low:.2f}%" x2="{high:.2f}%" y1="12" y2="12"/>')
    marks.append(f'<circle class="{code}" cx="{value:.2f}%" cy="12" r="4.5"/>')
    said = f"{percent(row['value'])}, chance {percent(row['chance'])}"
    return Html(f'<svg class="strip" role="img" aria-label="{said}">{"".join(marks)}</svg>')


def _interval(row: dict[str, Any], places: int, scale: float = 1) -> Html:
    value, half = number(row.get("value")), INTERVAL * number(row.get("stderr"))
    sign = "%" if scale == 100 else ""
    after = element("span", f" ±{decimal(scale * half, places)}", class_="quiet") if math.isfinite(half) else ""
    return join([decimal(scale * value, places) + (sign if math.isfinite(value) else ""), after], "")


def _held_out(rows: list[dict[str, Any]]) -> Html:
    """Loss on text by set, language and, where rows name one, source."""
    groups: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        key = (str(row.get("set")), str(row.get("language")), str(row.get("source") or ""))
        groups.setdefault(key, {})[str(row["metric"])] = row
    metrics = [metric for metric in SIZES if any(metric in group for group in groups.values())]
    by_source = any(source for _, _, source in groups)
    written = []
    for (title, tongue, source), group in groups.items():
        about = next(iter(group.values()))
        figures = [_interval(group[metric], 3) if metric in group else DASH for metric in metrics]
        figures += [count(about.get("tokens")), count(about.get("bytes"))]
        origin = [markup.name(source) if source else "all"] if by_source else []
        written.append([markup.name(title), coloured(tongue, language(tongue)), *origin, *figures])
    heads = [f"#{SIZES[metric].capitalize()}" for metric in metrics]
    return table(["Set", "Language", *(["Source"] if by_source else []), *heads, "#Tokens", "#Bytes"], written)


def _tongue(row: dict[str, Any]) -> Html:
    code = row.get("language")
    return coloured(code, language(code)) if code else Html(DASH)
