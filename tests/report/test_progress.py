"""Scores while training on the page: correlations as independent programs have them, and TinyLlama's trajectory."""

from __future__ import annotations

import json
import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from fake_run import TASKS, fake_run, paper
from test_report import Page, assert_alone

from xmodel.report import build_report
from xmodel.report.trajectory import CHECKPOINTS, NORMED, published
from xmodel.report.trend import least_p, ranks, trend

# ---- whether scores follow log steps ---------------------------------------------------------------------------------


def test_a_line_is_a_line() -> None:
    steps = [10, 100, 1_000, 10_000, 100_000]
    one = trend(steps, [0.2, 0.3, 0.4, 0.5, 0.6])
    assert one is not None
    assert (one.points, one.pearson, one.spearman) == (5, pytest.approx(1), pytest.approx(1))
    assert one.slope == pytest.approx(0.1)
    assert one.stderr == pytest.approx(0, abs=1e-9)
    assert one.pearson_p == one.spearman_p == pytest.approx(2 / math.factorial(5)) == least_p(5)
    assert one.sure


CURVES = [
    ([200, 400, 600, 800, 1000, 1200, 1400], [0.31, 0.35, 0.33, 0.46, 0.5, 0.5, 0.61]),
    ([1, 2, 4, 8, 16, 32, 64, 128, 256], [0.25, 0.3, 0.22, 0.27, 0.26, 0.31, 0.28, 0.33, 0.3]),
]


@pytest.mark.parametrize(("x", "y"), CURVES)
def test_figures_are_those_of_least_squares(x: list[float], y: list[float]) -> None:
    one = trend(x, y)
    assert one is not None
    log_N, y_N = np.log10(x), np.array(y)
    assert one.pearson == pytest.approx(np.corrcoef(log_N, y_N)[0, 1])
    assert one.spearman == pytest.approx(np.corrcoef(ranks(log_N), ranks(y_N))[0, 1])
    design = np.stack([np.ones_like(log_N), log_N], 1)
    (_, slope), (residual,), _, _ = np.linalg.lstsq(design, y_N, rcond=None)
    covariance = residual / (len(x) - 2) * np.linalg.inv(design.T @ design)
    assert one.slope == pytest.approx(slope)
    assert one.stderr == pytest.approx(math.sqrt(covariance[1, 1]))


def test_p_is_the_share_of_orders_that_are_as_strong() -> None:
    x, y = [10, 20, 50, 100, 400, 900], [0.3, 0.28, 0.41, 0.35, 0.42, 0.39]
    one = trend(x, y)
    assert one is not None
    r = [abs(np.corrcoef(np.log10(x), order)[0, 1]) for order in permutations(y)]
    assert one.pearson_p == pytest.approx(np.mean(np.array(r) >= abs(one.pearson) - 1e-9))
    assert not one.sure


def test_drawn_orders_agree_with_theory_and_never_change() -> None:
    x, y = CURVES[1]
    one = trend(x, y)
    assert one == trend(x, y)
    assert one is not None
    r = one.pearson
    t = r * math.sqrt((len(x) - 2) / (1 - r * r))
    draws = np.random.default_rng(1).standard_t(len(x) - 2, 400_000)
    assert one.pearson_p == pytest.approx(float(np.mean(np.abs(draws) >= t)), abs=0.02)


def test_points_that_say_nothing() -> None:
    assert trend([1, 2, 3], [1, 2, 3]) is None
    assert trend([5, 5, 5, 5], [1, 2, 3, 4]) is None
    flat = trend([1, 2, 3, 4], [0.25] * 4)
    assert flat is not None
    assert math.isnan(flat.pearson)
    assert not flat.sure
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]
    assert least_p(4) == pytest.approx(2 / 24)


def scored(folder: Path, curves: dict[str, list[float]]) -> Page:
    """A page of a run whose sets have these accuracies at steps 100, 200, 400 ..."""
    fake_run(folder, ["recipe"])
    rows = [
        {"kind": "score", "step": 100 * 2**place, "tokens": 1, "set": name, "suite": "sandbox", "language": "en",
         "shots": 0, "accuracy": value, "stderr": 0.05, "chance": 0.25, "items": 48}
        for name, values in curves.items() for place, value in enumerate(values)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Page(build_report(folder))


def test_the_page_states_the_correlation_and_does_not_assume_it(tmp_path: Path) -> None:
    rising, jumping = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [0.5, 0.3, 0.5, 0.3, 0.4, 0.45]
    page = scored(tmp_path / "run", {"rising_en": rising, "jumping_en": jumping, "short_en": [0.1, 0.2, 0.3]})
    assert "For 1 of 2 curves of accuracy the correlation with log steps can be told from none (p < 0.05)" in page.text
    slope = f"{10 / math.log10(2):+.1f} ±0.0"
    assert page.row("rising_en") == ["rising_en", "6", "+1.00 (p 0.003)", "+1.00 (p 0.003)", slope]
    assert page.row("jumping_en")[1] == "6"
    assert not any(row[:1] == ["short_en"] for row in page.rows)
    assert "bits per byte" not in page.texts["scores"]


def test_too_few_points_are_said_to_be_too_few(tmp_path: Path) -> None:
    page = scored(tmp_path / "run", {"rising_en": [0.3, 0.4, 0.5, 0.6]})
    assert "For 0 of 1 curve of accuracy" in page.text
    assert "4 points cannot show it: their smallest p is 0.08." in page.text


def test_suites_do_not_mix_in_a_mean(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run")
    paper(folder)
    page = Page(build_report(folder))
    assert_alone(page)
    assert len(page.ids) == len(set(page.ids))
    for title in (
        "Sandbox: mean accuracy, 0-shot",
        "Sandbox: mean accuracy, 3-shot",
        "Commonsense: mean accuracy, 0-shot",
    ):
        assert title in page.text, title
    assert "the mean over the sets (9 English)" in page.text
    assert "Commonsense: bits per byte of the right answers, 0-shot" in page.text
    assert "the mean over the sets (8 English)" in page.text  # TriviaQA is generated


# ---- beside TinyLlama -------------------------------------------------------------------------------------------------


def test_published_means_are_those_of_the_printed_figures() -> None:
    printed = [46.11, 48.28, 50.22, 51.29, 51.64, 53.86, 52.99]
    assert [sum(row) / 7 for row in CHECKPOINTS.values()] == pytest.approx(printed, abs=0.02)
    assert published("hellaswag")[0] == pytest.approx(0.4350)
    assert published("piqa")[-1] == pytest.approx(0.7329)


def test_trajectory_is_drawn_for_the_tasks_that_the_run_has(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", ["recipe"])
    paper(folder)
    page = Page(build_report(folder))
    assert "Beside TinyLlama-1.1B" in page.text
    assert "Mean over 7 of TinyLlama’s 7 tasks" in page.text
    assert set(NORMED) < set(TASKS)

    some = fake_run(tmp_path / "some", ["recipe"])
    paper(some, ["arc_easy", "piqa", "sciq"])
    assert "Mean over 2 of TinyLlama’s 7 tasks" in Page(build_report(some)).text

    none = fake_run(tmp_path / "none", ["recipe"])
    paper(none, ["sciq", "triviaqa"])
    assert "TinyLlama" not in Page(build_report(none)).text


def test_the_measure_is_theirs(tmp_path: Path) -> None:
    """acc_norm where TinyLlama's is; a run that has acc alone is not put beside it."""
    folder = fake_run(tmp_path / "run", ["recipe"])
    paper(folder, ["arc_easy", "winogrande"])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = {row["set"]: row for row in rows}
    mean = (last["arc_easy"]["accuracy_norm"] + last["winogrande"]["accuracy"]) / 2
    html = build_report(folder)
    assert f"this run {100 * mean:.1f}%" in html
    for row in rows:
        row.pop("accuracy_norm", None)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "Mean over 1 of TinyLlama’s 7 tasks" in Page(build_report(folder)).text
