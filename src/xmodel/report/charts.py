"""The figures of a run: which curves, on which axes, with which words. `draw` puts them on the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from xmodel.report.draw import HALF, Curve, lines, smooth
from xmodel.report.markup import Html, element, figure, join
from xmodel.report.numbers import LANGUAGES, decimal, known, number, percent, power, scaled, size
from xmodel.report.read import CONTROLS, Run

FAINT = "Raw values faint, moving mean bold."
PHASES = "Rise, plateau and fall: a falling rate with decoupled weight decay can make them by itself."
CONTROL_NAMES = {"constant": "constant rate", "no-decay": "no decay"}
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
        parameter_norm(run),
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


def parameter_norm(run: Run) -> Html:
    """The L2 norm of the parameters, of control runs too, and how to make one."""
    if not drawable(run.train, "param_norm"):
        return Html("")
    runs = {"": run.train} | {CONTROL_NAMES[what]: rows for what, rows in run.controls.items()}
    curves = []
    for name, rows in runs.items():
        y = column(rows, "param_norm")
        label = end_label(name, y, lambda value: decimal(value, 1))
        colour = "muted" if name else "accent"
        curves.append(Curve(column(rows, "tokens"), y, colour, label, dashed=name == CONTROL_NAMES["no-decay"]))
    return _half("L2 norm of the parameters", "param-norm", curves, join([norm_phases(run), norm_cause(run)], " "))


def norm_phases(run: Run) -> str:
    """The phases of the parameters' norm in words: how far it rises, how long it stays, how far it falls."""
    points = [
        (x, y) for x, y in zip(column(run.train, "tokens"), column(run.train, "param_norm"), strict=True) if known(y)
    ]
    if len(points) < 3:
        return ""
    highest = max(y for _, y in points)
    near = [x for x, y in points if y >= (1 - PLATEAU) * highest]
    (_, first), (end, last) = points[0], points[-1]
    told = f"Rise from {decimal(first, 1)} until {scaled(near[0])} tokens, within {percent(PLATEAU, 0)} of its highest "
    told += f"({decimal(highest, 1)}) until {scaled(near[-1])}"
    return told + (f", fall to {decimal(last, 1)}." if near[-1] < end else ".")


def norm_cause(run: Run) -> Html:
    """What can make these phases, and the runs that tell: the ones that are not there yet, as commands."""
    train = run.recipe.get("pretrain") or {}
    causes = {
        "constant": train.get("schedule", "constant") != "constant",
        "no-decay": bool(train.get("weight_decay")),
    }
    wanted = [what for what, is_cause in causes.items() if is_cause and what not in run.controls]
    if not any(causes.values()):
        return Html("Neither a falling rate nor weight decay is at work here.")
    if not wanted:
        return Html("Grey: the control runs, which differ in the rate or the decay alone.")
    commands = []
    for what in wanted:
        overrides = CONTROLS[what] + (
            " pretrain.decay_steps=0" if train.get("decay_steps") and what == "constant" else ""
        )
        commands.append(element("code", f"xmodel run runs/{run.name}/recipe.yaml name={run.name}-{what} {overrides}"))
    told = f"{PHASES} A control run tells, and is drawn here once it stands beside this one:"
    return join([told, join(commands, " or ")], " ")


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
        curves += [Curve(x, y, "muted", width=0.8, alpha=0.4), Curve(x, mean, "muted", end_label("training", mean))]
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
    curves = [Curve(x, shown, "accent", end_label("", shown, write))]
    if smoothed:
        curves.insert(0, Curve(x, y, "accent", width=0.8, alpha=0.4))
    return _half(title, key.replace("_", "-"), curves, note, **how)


def utilisation(run: Run) -> Html:
    """Share of the device's peak that training reaches, in both conventions."""
    curves = []
    for key, label, colour in (("mfu_palm", "PaLM", "accent"), ("mfu_causal", "causal", "muted")):
        if drawable(run.train, key):
            mean = smooth(column(run.train, key))
            curves.append(Curve(column(run.train, "tokens"), mean, colour, end_label(label, mean, percent)))
    note = "Moving mean of FLOPs over the device’s peak. Per token, PaLM counts 6N + 12·L·d·S, causal 6N + 6·L·d·S."
    if run.starts:
        last = run.starts[-1]
        note += f" The peak is {last['peak_flops'] / 1e12:.3g} TFLOP/s a device ({last['peak_source']})."
    return _half(
        "Model FLOPs utilisation (MFU)", "mfu", curves, note, floor=0, y_format=lambda value: percent(value, 0)
    )


def _validation(run: Run, key: str) -> list[Curve]:
    curves = []
    for tongue, records in run.validation.items():
        y = column(records, key)
        label = LANGUAGES.get(tongue, "other")  # only words of ours enter a drawing
        curves.append(Curve(column(records, "tokens"), y, colour_of(tongue), end_label(label, y)))
    return curves


def colour_of(tongue: str) -> str:
    return tongue if tongue in LANGUAGES else "accent"


def end_label(label: str, values: Sequence[float], write: Callable[[float], str] = decimal) -> str:
    """The label at a curve's right end: its name and its last value."""
    finite = [value for value in values if math.isfinite(value)]
    return f"{label} {write(finite[-1])}".strip() if finite else label


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
