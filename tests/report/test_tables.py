"""Benchmarks on the page: beside what was published, by the number of examples, on other text; and control runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_run import fake_run
from test_report import Page, assert_alone

from xmodel.report import build_report

PUBLISHED = {
    "title": "commonsense",
    "headers": ["model", "ARC-c", "ARC-e", "mean"],
    "rows": [
        ["mine", "21.33†", "22.00", "21.67†"],
        ["  ± standard error", "3.36", "3.39", "2.39"],
        ["  chance", "25.06", "25.06", "25.06"],
        ["Pythia-1.4B", "25.60", "57.58", "47.00*"],
    ],
    "notes": ["† partial: some rows were not there.", "* as printed for Pythia-1.4B; the mean of its row is 46.78."],
}
FIGURES = {"title": "all figures", "headers": ["suite", "set"], "rows": [["commonsense", "<arc>"]], "notes": []}


def put(folder: Path, name: str, content: Any) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def row(set_name: str, metric: str, value: float, **more: Any) -> dict[str, Any]:
    figures = {"language": "en", "shots": 0, "stderr": 0.02, "chance": 0.25, "items": 100, "seconds": 1.0}
    return {"set": set_name, "metric": metric, "value": value} | figures | more


# ---- beside what was published -----------------------------------------------------------------------------------------


def test_tables_stand_as_they_were_written(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", ["recipe", "evaluate"])
    put(folder, "evaluations/step-900/tables.json", [PUBLISHED | {"rows": [["older", "1.00", "2.00", "3.00"]]}])
    put(folder, "evaluations/step-1400/tables.json", [PUBLISHED, FIGURES])
    put(folder, "evaluations/step-1400/arc_easy.json", {"suite": "commonsense", "fingerprint": {}, "results": [
        row("arc_easy", "acc", 0.22)
    ]})  # fmt: skip
    html = build_report(folder)
    page = Page(html)
    assert_alone(page)
    assert "Commonsense, beside what was published" in page.text
    for line in PUBLISHED["rows"]:
        assert line in page.rows
    for note in PUBLISHED["notes"]:
        assert note in page.text
    assert "<b>mine</b>" in html
    assert '<span class="quiet">3.36</span>' in html
    assert "<arc>" not in html  # names stay text
    assert page.text.index("mine") < page.text.index("Tables of step-900") < page.text.index("older")


def test_a_suite_of_the_paper_in_words_and_dots(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", ["recipe", "pretrain", "evaluate"], steps=100)
    rows = [
        row("arc_easy", "acc", 0.6), row("arc_easy", "acc_norm", 0.55), row("arc_easy", "gold_bpb", 1.25, chance=None),
        row("triviaqa", "exact_match", 0.18, chance=0.0, partial=True),
        row("cola", "mcc", 0.1, chance=None, shots=5),
        row("mean_commonsense", "mean", 0.39, shots=None, chance=None, partial=True),
    ]  # fmt: skip
    put(folder, "eval/commonsense.json", {"suite": "commonsense", "step": 100, "results": rows})
    page = Page(build_report(folder))
    assert "Commonsense: mean 39.0%, of a part of the suite alone." in page.text
    arc, trivia = page.row("arc_easy"), page.row("triviaqa")
    assert arc[3:] == ["60.0% ±3.9", "55.0% ±3.9", "1.25 ±0.04", "25.0%", "100"]
    assert trivia[3:] == ["18.0% ±3.9†", "–", "–", "0.0%", "100"]
    assert "† not of the whole benchmark" in page.text
    assert "the share of exact matches" in page.text
    assert page.row("cola")[2:] == ["mcc", "5", "10.0% ±3.9", "–", "100"]


def test_what_was_met_in_training_stands_beside_the_scores(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", ["recipe", "evaluate"])
    clean = {"items": 30, "value": 0.5, "stderr": 0.1}
    rows = [
        row("arc_easy", "acc", 0.6, items=40, benchmark_items=2376, partial=True, contaminated=10, searched=None, clean=clean),
        row("piqa", "acc", 0.7, items=40, benchmark_items=40),
    ]  # fmt: skip
    put(folder, "eval/commonsense.json", {"suite": "commonsense", "step": 100, "results": rows})
    page = Page(build_report(folder))
    assert page.row("arc_easy")[3:] == ["60.0% ±3.9†", "25.0%", "40 of 2,376", "25.0%", "50.0% ±19.6"]
    assert page.row("piqa")[3:] == ["70.0% ±3.9", "25.0%", "40", "–", "–"]
    assert "13 words or 30 Han characters in a row" in page.text


# ---- by the number of examples, and by source ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["eval/sandbox.json", "evaluations/curve.json"])
def test_curve_over_shots_from_three_numbers_on(tmp_path: Path, where: str) -> None:
    folder = fake_run(tmp_path / "run", ["recipe"])
    rows = [
        row(name, "acc", 0.3 + 0.05 * shots, shots=shots)
        for name in ("facts_en", "mean_en") for shots in (0, 1, 2, 4)
    ]  # fmt: skip
    put(folder, where, {"suite": "sandbox", "step": 5, "results": rows})
    page = Page(build_report(folder))
    assert "Accuracy by the number of examples" in page.text
    assert "English 50.0%" in page.text
    assert ("curve.json" in page.text) == where.startswith("evaluations")

    put(folder, where, {"suite": "sandbox", "step": 5, "results": [each for each in rows if each["shots"] < 2]})
    assert "Accuracy by the number of examples" not in Page(build_report(folder)).text


def test_perplexity_by_language_and_source(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", ["recipe"])
    about = {"set": "text", "language": "zh", "stderr": 0.01, "tokens": 5_000, "bytes": 20_000}
    rows = [about | {"metric": "bits_per_byte", "value": 0.5}]
    rows += [
        about | {"metric": "bits_per_byte", "value": value, "source": name}
        for name, value in (("wiki", 0.4), ("news", 0.6))
    ]
    put(folder, "evaluations/novel.json", {"suite": "perplexity", "step": 5, "results": rows})
    page = Page(build_report(folder))
    assert page.row("text", "Chinese", "all")[3] == "0.500 ±0.020"
    assert page.row("text", "Chinese", "wiki")[3] == "0.400 ±0.020"
    assert page.row("text", "Chinese", "news")[3:] == ["0.600 ±0.020", "5,000", "20,000"]


# ---- the norm of the parameters, and what makes its shape ---------------------------------------------------------------


def test_a_control_run_is_named_and_then_drawn(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "quickstart", steps=100)
    told = Page(build_report(folder)).text
    assert "a falling rate with decoupled weight decay can make them by itself" in told
    constant = "xmodel run runs/quickstart/recipe.yaml name=quickstart-constant pretrain.schedule=constant"
    still = "xmodel run runs/quickstart/recipe.yaml name=quickstart-no-decay pretrain.weight_decay=0"
    assert constant in told
    assert still in told

    shutil.copytree(folder, tmp_path / "quickstart-constant")
    told = Page(build_report(folder)).text
    assert "constant rate" in told
    assert constant not in told
    assert still in told
    shutil.copytree(folder, tmp_path / "quickstart-no-decay")
    assert "Grey: the control runs" in Page(build_report(folder)).text
    for what in ("quickstart-constant", "quickstart-no-decay"):
        shutil.rmtree(tmp_path / what)


def test_a_run_without_rate_and_decay_needs_no_control(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", ["recipe", "pretrain"], steps=100)
    text = (folder / "recipe.yaml").read_text()
    text = text.replace("schedule: cosine", "schedule: constant").replace("weight_decay: 0.1", "weight_decay: 0.0")
    (folder / "recipe.yaml").write_text(text)
    assert "Neither a falling rate nor weight decay is at work here." in Page(build_report(folder)).text
