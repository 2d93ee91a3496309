"""The figures of a run: which curves, on which axes, with which words. `draw` puts them on the page."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from xmodel.report.draw import HALF, SMALL, Curve, lines, smooth
from xmodel.report.markup import Html, figure, join
from xmodel.report.markup import name as code
from xmodel.report.numbers import LANGUAGES, decimal, known, language, number, percent, power, scaled, size
from xmodel.report.read import Run

FAINT = "Raw values faint, moving mean bold."
PHASES = "Rise, plateau and fall are expected: cosine schedule and decoupled weight decay can make them by themselves."
PLATEAU = 0.01  # of the highest norm
UPDATE = "How far one step moves the weights. "
WAITING = "Share of the time for which the host stood still until the next batch was there."
SKIPPED = "A step whose loss or gradient is not finite changes nothing and is counted."
LAYERS = {
    "param_norm": "Norm of each block’s parameters",
    "grad_norm": "Norm of each block’s gradients, before clipping",
    "update_norm": "Norm of each block’s update",
}
MARGIN = 88  # pixels for the labels at the right
INTERVAL = 1.96  # standard errors to either side: 95 % of a normal distribution


def column(records: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [number(record.get(key)) for record in records]


def drawable(records: Sequence[dict[str, Any]], key: str) -> bool:
    return sum(math.isfinite(value) for value in column(records, key)) > 1


def training(run: Run) -> Html:
    """Loss, bits per byte, norms, learning rate and speed, against the tokens seen."""
    clip = number(run.setting("pretrain", "clip"))
    figures = [
        loss(run),
        bits_per_byte(run),
        train_curve(run, "param_norm", "L2 norm of the parameters", norm_note(run), ending=1),
        train_curve(run, "grad_norm", "Gradient norm, before clipping", FAINT, smoothed=True, floor=0,
                    level=(clip, f"clip {clip:g}") if clip > 0 else None),
        train_curve(run, "update_norm", "L2 norm of an update", UPDATE + FAINT, smoothed=True, floor=0, y_format=power),
        train_curve(run, "lr", "Learning rate", "", y_format=power, floor=0),
        train_curve(run, "tokens_per_second", "Tokens per second", FAINT, smoothed=True, floor=0),
        utilisation(run),
        train_curve(run, "data_wait", "Time spent waiting for data", WAITING, floor=0, y_format=percent),
        train_curve(run, "memory_peak", "Highest memory so far", "", floor=0, y_format=size),
        skipped(run),
        *(by_layer(run, part, title) for part, title in LAYERS.items()),
    ]  # fmt: skip
    return join(drawn for drawn in figures if drawn)


def norm_note(run: Run) -> str:
    """The phases of the parameters' norm in words: how far it rises, how long it stays, how far it falls."""
    points = [
        (x, y) for x, y in zip(column(run.train, "tokens"), column(run.train, "param_norm"), strict=True) if known(y)
    ]
    if len(points) < 3:
        return PHASES
    highest = max(y for _, y in points)
    near = [x for x, y in points if y >= (1 - PLATEAU) * highest]
    (_, first), (end, last) = points[0], points[-1]
    told = f"Rise from {decimal(first, 1)} until {scaled(near[0])} tokens, within {percent(PLATEAU, 0)} of its highest "
    told += f"({decimal(highest, 1)}) until {scaled(near[-1])}"
    told += f", fall to {decimal(last, 1)}. " if near[-1] < end else ". "
    return told + PHASES


def skipped(run: Run) -> Html:
    """Steps that were skipped, drawn only if there are any."""
    if not run.train or not run.train[-1].get("skipped_steps"):
        return Html("")
    return train_curve(run, "skipped_steps", "Skipped steps in all", SKIPPED, ending=0, floor=0)


def by_layer(run: Run, part: str, title: str) -> Html:
    """A norm over the depth of the model: at the first row of norms by layer, and at the last."""
    rows = [row for row in run.layers if isinstance(row.get(part), dict)]
    if not rows:
        return Html("")
    curves = []
    for row, colour in ((rows[0], "muted"), (rows[-1], "accent"))[-min(2, len(rows)) :]:
        blocks = sorted((int(name), norm) for name, norm in row[part].items() if name.isdigit())
        y = [number(norm) for _, norm in blocks]
        curves.append(Curve([float(block) for block, _ in blocks], y, colour, f"step {row['step']:,}"))
    about = f"{title} against the block's number"
    drawing = lines(f"layers-{part}", about, curves, size=HALF, x_label="block", y_limits=(0, None), margin=MARGIN)
    return figure(title, drawing, "Each point is a block; embedding, head and last norm are left out.")


def loss(run: Run) -> Html:
    """Training loss with validation loss for each language."""
    curves = []
    if drawable(run.train, "loss"):
        x, y = column(run.train, "tokens"), column(run.train, "loss")
        mean = smooth(y)
        curves += [Curve(x, y, "muted", width=0.8, alpha=0.4), Curve(x, mean, "muted", _ending("training", mean))]
    curves += _validation(run, "loss")
    note = f"Training: {FAINT.lower()} Validation: text kept out of training."
    return _half("Loss, nats per token", "loss", curves, note)


def bits_per_byte(run: Run) -> Html:
    note = "Validation loss per UTF-8 byte: comparable between tokenizers. A Chinese character has three bytes."
    return _half("Bits per byte", "bits-per-byte", _validation(run, "bits_per_byte"), note)


def train_curve(
    run: Run, key: str, title: str, note: str, *, smoothed: bool = False, ending: int | None = None, **how: Any
) -> Html:
    """One figure of the training records; `smoothed` draws the raw values faintly behind their moving mean."""
    if not drawable(run.train, key):
        return Html("")
    x, y = column(run.train, "tokens"), column(run.train, key)
    shown = smooth(y) if smoothed else y
    write = how.get("y_format") or (scaled if ending is None else lambda value: decimal(value, ending))
    curves = [Curve(x, shown, "accent", _ending("", shown, write))]
    if smoothed:
        curves.insert(0, Curve(x, y, "accent", width=0.8, alpha=0.4))
    return _half(title, key.replace("_", "-"), curves, note, **how)


def utilisation(run: Run) -> Html:
    """Share of the device's peak that training reaches, in both conventions."""
    curves = []
    for key, label, colour in (("mfu_palm", "PaLM", "accent"), ("mfu_causal", "causal", "muted")):
        if drawable(run.train, key):
            mean = smooth(column(run.train, key))
            curves.append(Curve(column(run.train, "tokens"), mean, colour, _ending(label, mean, percent)))
    note = "Moving mean of FLOPs over the device’s peak. Per token, PaLM counts 6N + 12·L·d·S, causal 6N + 6·L·d·S."
    if run.starts:
        last = run.starts[-1]
        note += f" The peak is {last['peak_flops'] / 1e12:.3g} TFLOP/s a device ({last['peak_source']})."
    return _half(
        "Model FLOPs utilisation (MFU)", "mfu", curves, note, floor=0, y_format=lambda value: percent(value, 0)
    )


def progress(run: Run) -> Html:
    """Mean accuracy by language against the step on a logarithmic axis, a figure for each number of shots."""
    return join(
        _progress(run, shots) for shots in sorted({shots for _, shots in run.scores}) if language_means(run, shots)
    )


def _progress(run: Run, shots: int) -> Html:
    means = language_means(run, shots)
    levels = {tongue: points["chance"][-1] for tongue, points in means.items()}
    limits = _step_limits(run)
    apart = max(levels.values()) - min(levels.values()) > 0.005
    curves = []
    for tongue, points in means.items():
        label = _ending(language(tongue), points["accuracy"], percent)
        curves.append(Curve(points["step"], points["accuracy"], tongue, label, band=points["interval"]))
        if apart:
            curves.append(Curve(limits, [levels[tongue]] * 2, tongue, "chance", width=1, dashed=True))
    level = next(iter(levels.values()))
    drawing = lines(
        f"progress-{shots}",
        "Mean accuracy by language against the training step",
        curves,
        x_label="step, logarithmic",
        x_log=True,
        x_limits=limits,
        y_format=lambda value: percent(value, 0),
        y_limits=(0, 1),
        level=None if apart else (level, f"chance {percent(level)}"),
        margin=MARGIN,
    )
    sets = ", ".join(f"{len(points['sets'])} {language(tongue)}" for tongue, points in means.items())
    note = f"Band: ±{INTERVAL} standard errors of the mean over the sets ({sets})."
    return figure(f"Mean accuracy, {shots}-shot", drawing, note)


def progress_by_set(run: Run) -> Html:
    """Small multiples: one chart for each question set."""
    figures = []
    for title in dict.fromkeys(title for title, _ in run.scores):
        shots = sorted(shots for other, shots in run.scores if other == title)
        drawing = _one_set(run, title, shots, f"set-{len(figures)}")
        if drawing:
            figures.append(figure(code(title), drawing))
    return join(figures)


def _one_set(run: Run, title: str, all_shots: list[int], name: str) -> Html:
    curves: list[Curve] = []
    chance = math.nan
    for shots in all_shots:
        records = _placeable(run.scores[title, shots])
        if records:
            first, label = not curves, f"{shots}-shot" if len(all_shots) > 1 else ""
            band = [INTERVAL * error for error in column(records, "stderr")] if first else []
            x, y = column(records, "step"), column(records, "accuracy")
            curves.append(Curve(x, y, _colour(set_language(run, title)), label, 1.6, dashed=not first, band=band))
            chance = number(records[-1].get("chance"))
    if not curves:
        return Html("")
    return lines(
        name, "Accuracy against the training step", curves,
        size=SMALL, x_log=True, x_limits=_step_limits(run), y_limits=(0, 1), y_ticks=(0, 0.5, 1),
        y_format=lambda value: percent(value, 0), level=(chance, "") if math.isfinite(chance) else None,
        margin=36 if len(all_shots) > 1 else 0,
    )  # fmt: skip


def _placeable(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Scores that have a place on a logarithmic axis."""
    return [record for record in records if record["step"] > 0 and known(record.get("accuracy"))]


def language_means(run: Run, shots: int) -> dict[str, dict[str, Any]]:
    """Mean over the sets of each language, at the steps where every set was scored.

    The sets are taken as independent: the mean's standard error is sqrt(sum of squares) / number of sets.
    """
    means: dict[str, dict[str, Any]] = {}
    for tongue in LANGUAGES:
        curves = {
            title: {record["step"]: record for record in _placeable(records)}
            for (title, given), records in run.scores.items()
            if given == shots and set_language(run, title) == tongue
        }
        curves = {title: curve for title, curve in curves.items() if curve}
        steps = sorted(set.intersection(*(set(curve) for curve in curves.values()))) if curves else []
        if steps:
            rows = [[curve[step] for curve in curves.values()] for step in steps]
            means[tongue] = {"step": steps, "sets": list(curves)} | {
                "accuracy": [sum(column(row, "accuracy")) / len(row) for row in rows],
                "interval": [INTERVAL * math.hypot(*column(row, "stderr")) / len(row) for row in rows],
                "chance": [sum(column(row, "chance")) / len(row) for row in rows],
            }
    return means


def set_language(run: Run, title: str) -> str:
    """The language of a question set: what its final result says, else what its name ends in."""
    for row in run.results:
        if row.get("set") == title and row.get("language"):
            return row["language"]
    ending = re.search(r"_(en|zh)$", title)
    return ending[1] if ending else ""


def _validation(run: Run, key: str) -> list[Curve]:
    curves = []
    for tongue, records in run.validation.items():
        y = column(records, key)
        label = LANGUAGES.get(tongue, "other")  # only words of ours enter a drawing
        curves.append(Curve(column(records, "tokens"), y, _colour(tongue), _ending(label, y)))
    return curves


def _colour(tongue: str) -> str:
    return tongue if tongue in LANGUAGES else "accent"


def _ending(label: str, values: Sequence[float], write: Callable[[float], str] = decimal) -> str:
    """The label at a curve's right end: its name and its last value."""
    finite = [value for value in values if math.isfinite(value)]
    return f"{label} {write(finite[-1])}".strip() if finite else label


def _step_limits(run: Run) -> tuple[float, float]:
    """From the first to the last scored step, the same for all figures."""
    steps = [record["step"] for records in run.scores.values() for record in _placeable(records)]
    low, high = min(steps), max(steps)
    return (low / 1.1, high) if low < high else (low / 2, high * 2)


def _half(title: str, key: str, curves: list[Curve], note: str, *, floor: float | None = None, **how: Any) -> Html:
    """A figure half a page wide, over tokens; nothing when it has no value. A single spike does not set the scale."""
    drawn = [curve for curve in curves if any(math.isfinite(value) for value in curve.y)]
    if not drawn:
        return Html("")
    highest = max(value for curve in drawn for value in curve.y if math.isfinite(value))
    bold = max(value for curve in drawn if curve.alpha == 1 for value in curve.y if math.isfinite(value))
    top = 1.25 * bold if highest > 2 * bold > 0 else None
    about = f"{title} against tokens seen"
    drawing = lines(key, about, drawn, size=HALF, x_label="tokens", y_limits=(floor, top), margin=MARGIN, **how)
    return figure(title, drawing, note)
