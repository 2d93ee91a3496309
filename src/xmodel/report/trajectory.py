"""A run's scores beside the trajectory that TinyLlama's authors published.

Source: github.com/jzhang38/TinyLlama, EVAL.md at commit bf122247c486b6b897050e98cbb7bedae8eeba73: scored by
lm-evaluation-harness with its default of 0 shots, "acc_norm by default". BoolQ and WinoGrande have no acc_norm there;
their figures at 3T tokens are those that arXiv 2406.02856 prints as acc. A step is 2,048 x 1,024 tokens.
"""

from __future__ import annotations

import math

from xmodel.report.charts import MARGIN, end_label
from xmodel.report.draw import SMALL, Curve, lines
from xmodel.report.markup import Html, element, figure, join, paragraph
from xmodel.report.markup import name as code
from xmodel.report.numbers import INTERVAL, number, percent
from xmodel.report.read import Run
from xmodel.report.trend import trend, with_p

NAME = "TinyLlama-1.1B"
NORMED = {"hellaswag": True, "openbookqa": True, "winogrande": False, "arc_challenge": True, "arc_easy": True,
          "boolq": False, "piqa": True}  # fmt: skip
"""By the harness's name of a task: whether its figure is acc_norm; in the order of the figures below."""
CHECKPOINTS: dict[int, tuple[float, ...]] = {  # tokens: percent for each task
    103 * 10**9: (43.50, 29.80, 53.28, 24.32, 44.91, 59.66, 67.30),
    503 * 10**9: (49.56, 31.40, 55.80, 26.54, 48.32, 56.91, 69.42),
    1_007 * 10**9: (52.54, 33.40, 55.96, 27.82, 52.36, 59.54, 69.91),
    1_500 * 10**9: (53.68, 35.20, 58.33, 29.18, 51.89, 59.08, 71.65),
    2_000 * 10**9: (54.63, 33.40, 56.83, 28.07, 54.67, 63.21, 70.67),
    2_500 * 10**9: (58.96, 34.40, 58.72, 31.91, 56.78, 63.21, 73.07),
    3_000 * 10**9: (59.20, 36.00, 59.12, 30.12, 55.25, 57.83, 73.29),
}
NOTE = (
    f"{NAME} (grey): the scores that its authors published, 0-shot, for 103B to 3T tokens; acc_norm, for BoolQ and "
    "WinoGrande acc. The same measure is drawn of this run, on its subset of the questions."
)


def published(task: str) -> list[float]:
    """The figures of a task, shares of 1, in the order of CHECKPOINTS."""
    place = list(NORMED).index(task)
    return [row[place] / 100 for row in CHECKPOINTS.values()]


def beside(run: Run) -> Html:
    """Scores against tokens, this run's and TinyLlama's; nothing where the run has none of its tasks."""
    ours = {task: _beside_points(run, task, normed) for task, normed in NORMED.items()}
    ours = {task: points for task, points in ours.items() if points}
    if not ours:
        return Html("")
    tokens = [float(count) for count in CHECKPOINTS]
    shared = sorted(set.intersection(*(set(points) for points in ours.values())))
    limits = (0.8 * min(min(points) for points in ours.values()), 1.2 * max(tokens))
    theirs = {task: published(task) for task in ours}
    figures = []
    if shared:
        mean = [sum(points[seen][0] for points in ours.values()) / len(ours) for seen in shared]
        errors = [INTERVAL * math.hypot(*(points[seen][1] for points in ours.values())) / len(ours) for seen in shared]
        other = [sum(each) / len(ours) for each in zip(*theirs.values(), strict=True)]
        curves = [
            Curve(tokens, other, "muted", end_label("TinyLlama", other, percent)),
            Curve(shared, mean, "en", end_label("this run", mean, percent), band=errors),
        ]
        drawing = lines(
            "beside-mean", "Mean score against tokens, beside TinyLlama’s", curves, x_label="tokens, logarithmic",
            x_log=True, x_limits=limits, y_format=_whole, margin=MARGIN,
        )  # fmt: skip
        note = f"Mean over {len(ours)} of TinyLlama’s 7 tasks. Band: ±{INTERVAL} standard errors."
        if (line := trend(tokens, other)) is not None:
            note += f" TinyLlama’s own means and log tokens: r {with_p(line.pearson, line.pearson_p)}, "
            note += f"{100 * line.slope:+.1f} ±{100 * line.stderr:.1f} points for each tenfold of tokens."
        figures.append(figure("Mean score", drawing, note))
    multiples = []
    for task, points in ours.items():
        y, errors = [value for value, _ in points.values()], [INTERVAL * error for _, error in points.values()]
        curves = [
            Curve(tokens, theirs[task], "muted", width=1.6),
            Curve(list(points), y, "en", "", 1.6, band=errors),
        ]
        drawing = lines(
            f"beside-{len(multiples)}", "Score against tokens, beside TinyLlama’s", curves, size=SMALL, x_log=True,
            x_limits=limits, y_format=_whole,
        )  # fmt: skip
        multiples.append(figure(code(task), drawing))
    return join(
        [
            element("h3", f"Beside {NAME}"),
            element("div", *figures, class_="figures") if figures else "",
            element("div", *multiples, class_="multiples"),
            paragraph(NOTE, class_="note"),
        ]
    )


def _beside_points(run: Run, task: str, normed: bool) -> dict[float, tuple[float, float]]:
    """Of this run: tokens -> (score, standard error; NaN where unknown), in the measure of TinyLlama's authors."""
    points = {}
    for record in run.scores.get((task, 0), []):
        value = number(record.get("accuracy_norm" if normed else "accuracy"))
        error = number(record.get("accuracy_norm_stderr" if normed else "stderr"))
        if number(record.get("tokens")) > 0 and math.isfinite(value):
            points[float(record["tokens"])] = (value, error)
    return points


def _whole(value: float) -> str:
    return percent(value, 0)
