"""Tables beside what was published, as the evaluation has written them, and accuracy by the number of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xmodel.report import markup
from xmodel.report.charts import MARGIN, end_label
from xmodel.report.draw import HALF, SMALL, Curve, lines
from xmodel.report.markup import Html, element, figure, folded, join, paragraph, table
from xmodel.report.numbers import INTERVAL, LANGUAGES, known, language, number, percent
from xmodel.report.read import Run

FEWEST = 3  # numbers of shots that make a curve
CURVE_NOTE = f"Solved examples before each question, the same questions each time. Bands: ±{INTERVAL} standard errors."


def published(run: Run) -> Html:
    """The tables of evaluations/*/tables.json: those of the last step open, others folded; nothing where none are.

    What they mark (partial figures, misprinted means) is explained below each.
    """
    found = []
    for place, content in run.tables.items():
        drawn = join(_table(each) for each in content)
        found.append(drawn if place == list(run.tables)[-1] else folded(f"Tables of {place}", drawn))
    return join(reversed(found))


def _table(content: dict[str, Any]) -> Html:
    """One table; beside published figures the model's own row stands first, with its errors and chance below it."""
    heads, rows = content.get("headers") or [""], content.get("rows") or []
    beside = heads[0] == "model"
    written = []
    for place, row in enumerate(rows):
        kind = "b" if beside and place == 0 else "span"
        quiet = "quiet" if beside and row[0].startswith(" ") else ""
        written.append([element(kind, cell, class_=quiet) for cell in row[: len(heads)]])
    title = str(content.get("title", ""))
    words = table([heads[0].capitalize() if beside else heads[0], *(f"#{head}" for head in heads[1:])], written)
    notes = join(paragraph(note, class_="note") for note in content.get("notes") or [])
    if not beside:
        return folded(title.capitalize(), words, notes)
    return join([element("h3", f"{title.capitalize()}, beside what was published"), words, notes])


def shots(run: Run, metrics: Sequence[str]) -> Html:
    """Accuracy by the number of solved examples, where a set has three numbers or more: means, then set by set."""
    files = {"": run.results} | run.others
    return join(drawn for title, rows in files.items() if (drawn := _curves(title, rows, metrics)))


def _curves(title: str, rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> Html:
    sets: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        if row.get("metric") in metrics[:2] and known(row.get("value")) and isinstance(row.get("shots"), int):
            sets.setdefault(str(row.get("set")), {})[row["shots"]] = row
    sets = {name: found for name, found in sets.items() if len(found) >= FEWEST}
    if not sets:
        return Html("")
    mark = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in title)
    means = {name: found for name, found in sets.items() if name.startswith("mean")}
    curves = [_curve(found, language(_tongue(found))) for found in means.values() if _tongue(found) in LANGUAGES]
    parts = [element("h3", "Accuracy by the number of examples", *([" (", markup.name(title), ")"] if title else []))]
    if curves:
        drawing = lines(
            f"shots{mark}-mean", "Mean accuracy by language against the number of examples", curves, size=HALF,
            x_label="solved examples", y_format=lambda value: percent(value, 0), margin=MARGIN,
        )  # fmt: skip
        parts.append(element("div", figure("Mean over the sets", drawing), class_="figures"))
    small = []
    for name, found in sets.items():
        if name not in means:
            chance = number(found[min(found)].get("chance"))
            drawing = lines(
                f"shots{mark}-{len(small)}", "Accuracy against the number of examples", [_curve(found)], size=SMALL,
                y_format=lambda value: percent(value, 0), y_limits=(0, 1), y_ticks=(0, 0.5, 1),
                level=(chance, "") if known(chance) else None,
            )  # fmt: skip
            small.append(figure(markup.name(name), drawing))
    parts += [element("div", *small, class_="multiples"), paragraph(CURVE_NOTE, class_="note")]
    return join(parts)


def _curve(found: dict[int, dict[str, Any]], label: str = "") -> Curve:
    x = sorted(found)
    y = [float(found[shots]["value"]) for shots in x]
    band = [INTERVAL * number(found[shots].get("stderr")) for shots in x]
    tongue = _tongue(found)
    return Curve(
        x, y, tongue if tongue in LANGUAGES else "accent", end_label(label, y, percent) if label else "", band=band
    )


def _tongue(found: dict[int, dict[str, Any]]) -> str:
    return str(next(iter(found.values())).get("language"))
