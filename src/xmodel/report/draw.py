"""Line charts as inline SVG that take their colours from the page, so one drawing serves light, dark and paper.

Matplotlib draws with stand-in colours; each is then replaced by a CSS variable. The same data gives the same bytes:
no dates, ids from a fixed salt, and the user's own matplotlib settings are not read. Only our own English words enter
a drawing; names that come from files stand in the HTML around it.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from xmodel.report.markup import Html
from xmodel.report.numbers import scaled

COLOURS = {name: f"#0102{i:02x}" for i, name in enumerate(("ink", "muted", "line", "en", "zh", "accent"), start=1)}
HALF, SMALL = (440, 240), (210, 132)  # sizes in CSS pixels: half a page wide, and a small multiple
LINE = 13  # pixels from one label to the next
MOST_POINTS = 1200  # a curve longer than this is drawn by the extremes of its stretches

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "xmodel",
    "font.size": 11,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.8,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


@dataclass(frozen=True)
class Curve:
    """One line of a chart. `band` is the half-width of a shaded interval around it."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str = "ink"
    label: str = ""
    width: float = 1.8
    alpha: float = 1.0
    dashed: bool = False
    band: Sequence[float] = ()


def lines(
    name: str,
    about: str,
    curves: Sequence[Curve],
    *,
    size: tuple[int, int] = HALF,
    x_label: str = "",
    x_log: bool = False,
    x_limits: tuple[float, float] | None = None,
    y_format: Callable[[float], str] = scaled,
    y_limits: tuple[float | None, float | None] = (None, None),
    y_ticks: Sequence[float] | None = None,
    level: tuple[float, str] | None = None,
    margin: int = 0,
) -> Html:
    """Draw `curves` and label each at its right end.

    Args:
        name: unique on the page, it keeps the drawing's ids apart from those of others.
        about: what the drawing shows, for those who do not see it.
        y_limits: None leaves an end to the data.
        level: height and label of a dashed horizontal line.
        margin: pixels kept free at the right for labels.
    """
    width, height = size
    with matplotlib.style.context(["default", STYLE]):
        chart = Figure(figsize=(width / 72, height / 72), dpi=72)
        bottom = 38 if x_label else 22
        axes = chart.add_axes(
            (38 / width, bottom / height, (width - 48 - margin) / width, (height - bottom - 10) / height)
        )
        for curve in curves:
            _draw(axes, curve)
        if x_log:
            axes.set_xscale("log")
        if x_limits:
            axes.set_xlim(*x_limits)
        axes.margins(x=0.01)
        low, high = axes.get_ylim()
        axes.set_ylim(low if y_limits[0] is None else y_limits[0], high if y_limits[1] is None else y_limits[1])
        axes.yaxis.set_major_locator(FixedLocator(list(y_ticks)) if y_ticks else MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: y_format(value)))
        axes.xaxis.set_major_locator(
            FixedLocator(log_ticks(*axes.get_xlim(), most=width // 60))
            if x_log
            else MaxNLocator(5, steps=[1, 2, 5, 10])
        )
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: scaled(value)))
        axes.set_xlabel(x_label)
        labels = [
            (curve.y[-1], curve.label, curve.colour) for curve in map(_finite, curves) if curve.label and len(curve.y)
        ]
        if level:
            axes.axhline(level[0], color=COLOURS["muted"], linewidth=1, dashes=(3, 3))
            labels.append((level[0], level[1], "muted"))
        _label_ends(axes, [label for label in labels if label[1]])
        written = io.StringIO()
        chart.savefig(
            written, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return _inline(written.getvalue(), name, about)


def smooth(values: Sequence[float]) -> list[float]:
    """Centred moving mean over a fortieth of the curve; gaps (NaN, inf) are left out of the means."""
    array = np.asarray(values, dtype=float)
    reach = max(1, len(array) // 80)
    good = np.isfinite(array)
    sums = np.concatenate([[0.0], np.cumsum(np.where(good, array, 0.0))])
    counts = np.concatenate([[0], np.cumsum(good)])
    place = np.arange(len(array))
    low, high = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(array))
    inside = counts[high] - counts[low]
    return np.where(inside > 0, (sums[high] - sums[low]) / np.maximum(inside, 1), np.nan).tolist()


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """At most `MOST_POINTS` points: of each stretch the lowest and the highest, so that no spike is lost."""
    x_array, y_array = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(y_array) <= MOST_POINTS:
        return x_array, y_array
    kept: set[int] = {0, len(y_array) - 1}
    for stretch in np.array_split(np.arange(len(y_array)), MOST_POINTS // 2 - 1):
        good = stretch[np.isfinite(y_array[stretch])]
        if len(good):
            kept |= {int(good[np.argmin(y_array[good])]), int(good[np.argmax(y_array[good])])}
    order = np.array(sorted(kept))
    return x_array[order], y_array[order]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers inside a logarithmic range; its ends where there are not two."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
        if len(ticks) <= most:
            break
    ticks = ticks[:: math.ceil(len(ticks) / most) or 1]
    return ticks if len(ticks) > 1 else [math.ceil(low), math.floor(high)]


def spread(wanted: Sequence[float], apart: float, most: float) -> list[float]:
    """Places at least `apart` from each other, between 0 and `most` while there is room, near the rising `wanted` ones.

    Neighbours that are too close form a group that is centred on the mean of its wishes; groups that meet merge.
    """
    groups: list[tuple[float, int]] = []  # centre of the first member, members
    for place in wanted:
        groups.append((min(max(place, 0.0), most), 1))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < groups[-2][1] * apart:
            (later, more), (first, members) = groups.pop(), groups.pop()
            middle = (members * (first + (members - 1) * apart / 2) + more * (later + (more - 1) * apart / 2)) / (
                members + more
            )
            start = middle - (members + more - 1) * apart / 2
            groups.append((max(min(start, most - (members + more - 1) * apart), 0.0), members + more))
    return [first + i * apart for first, members in groups for i in range(members)]


def _finite(curve: Curve) -> Curve:
    good = np.isfinite(np.asarray(curve.y, dtype=float))
    return Curve(
        [x for x, ok in zip(curve.x, good, strict=True) if ok],
        [y for y, ok in zip(curve.y, good, strict=True) if ok],
        curve.colour,
        curve.label,
    )


def _draw(axes: Axes, curve: Curve) -> None:
    x, y = thinned(curve.x, curve.y)
    y = np.where(np.isfinite(y), y, np.nan)
    colour = COLOURS[curve.colour]
    (line,) = axes.plot(x, y, color=colour, linewidth=curve.width, alpha=curve.alpha)
    if curve.dashed:
        line.set_dashes((4, 2))
    if len(curve.x) <= 24 and curve.alpha == 1:
        axes.plot(x, y, color=colour, linestyle="", marker="o", markersize=2 * curve.width, markeredgewidth=0)
    if len(curve.band):
        middle, half = np.asarray(curve.y, dtype=float), np.asarray(curve.band, dtype=float)
        axes.fill_between(curve.x, middle - half, middle + half, color=colour, alpha=0.13, linewidth=0)


def _label_ends(axes: Axes, labels: list[tuple[float, str, str]]) -> None:
    """Write labels beside the right end of the axes, pushed apart so that none covers another."""
    height = axes.get_window_extent().height
    low, high = axes.get_ylim()
    ordered = sorted(labels)
    places = spread([(value - low) / (high - low) * height for value, _, _ in ordered], LINE, height)
    for (_, text, colour), place in zip(ordered, places, strict=True):
        axes.annotate(
            text,
            (1, place / height),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[colour],
        )


def _inline(svg: str, name: str, about: str) -> Html:
    """Strip what belongs to a file of its own; take colours and type from the page; keep ids apart."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*|<!--.*?-->\s*|<defs>\s*</defs>\s*", "", svg, flags=re.DOTALL
    )
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view, "matplotlib's SVG has a viewBox"
    svg = re.sub(r"<svg[^>]*>", f'<svg {view[0]} role="img" aria-label="{about}">', svg, count=1)
    svg = svg.replace("xlink:href", "href")
    wanted = set(re.findall(r'(?:url\(#|href="#)(\w+)', svg))
    svg = re.sub(r' id="([\w.]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in wanted else "", svg)
    svg = re.sub(r'(url\(#|href="#)(\w+)', rf"\1{name}-\2", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)  # the shorthand, up to matplotlib 3.10
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, code in COLOURS.items():
        svg = svg.replace(code, f"var(--{colour})")
    return Html(re.sub(r"\n\s*", "\n", svg).strip())
