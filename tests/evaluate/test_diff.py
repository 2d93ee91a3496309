"""Paired differences: p values against scipy's, errors against simulation, and refusals of what does not match."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodel.errors import MachineError, UserError
from xmodel.evaluate.diff import (
    bootstrap_interval,
    diff,
    diff_table,
    exact_mcnemar,
    holm,
    read_measured,
    sign_flip_test,
)
from xmodel.evaluate.results import as_html, as_markdown, as_text, write_task
from xmodel.evaluate.suites import write_result

# ── Statistics ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (5, 5), (3, 17), (40, 22), (700, 800), (6000, 5800)])
def test_mcnemar_is_the_binomial_test(won: int, lost: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert exact_mcnemar(won, lost) == pytest.approx(expected, rel=1e-8)


@given(st.integers(0, 300), st.integers(0, 300))
@settings(max_examples=100, deadline=None)
def test_mcnemar_is_symmetric_and_falls_with_the_imbalance(won: int, lost: int) -> None:
    p = exact_mcnemar(won, lost)
    assert 0 < p <= 1
    assert p == exact_mcnemar(lost, won)
    if won > lost:
        assert exact_mcnemar(won + 1, lost) < p or p == 1


@pytest.mark.parametrize("n", [2, 5, 12, 60])
def test_sign_flips_are_scipys_permutation_test(n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    change_N = np.random.default_rng(n).normal(0.4, 1.0, n)
    theirs = stats.permutation_test(
        (change_N, np.zeros(n)),
        lambda x, y: (x - y).sum(),
        permutation_type="samples",
        n_resamples=20_000 if n > 20 else np.inf,
        rng=np.random.default_rng(1),
    )
    expected = theirs.pvalue
    tolerance = 1e-12 if n <= 12 else 5 * math.sqrt(expected * (1 - expected) / 7_000) + 1e-4
    assert sign_flip_test(change_N) == pytest.approx(expected, abs=tolerance)


def test_sign_flips_hold_their_level() -> None:
    rng = np.random.default_rng(0)
    p_values = [sign_flip_test(rng.standard_t(3, 25), seed) for seed in range(200)]
    assert np.mean(np.array(p_values) < 0.1) == pytest.approx(0.1, abs=0.06)
    assert sign_flip_test(np.zeros(40)) == 1.0
    assert sign_flip_test(np.ones(40)) == 1 / 10_000  # never 0: what was seen is one of the ways


def test_the_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(150):
        low, high = bootstrap_interval(rng.normal(0.3, 1.0, 60), np.ones(60), seed)
        covered += low <= 0.3 <= high
    assert covered / 150 == pytest.approx(0.95, abs=0.05)


def test_holm_by_hand() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") and p.adjust(c(0.6, 0.7), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_plain_value_and_bonferronis(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for p, q in zip(p_values, corrected, strict=True):
        assert p <= q <= min(1.0, len(p_values) * p) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert list(np.array(corrected)[order]) == sorted(corrected)


# ── Files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def choices_file(path: Path, right: list[int], name: str = "facts_en", shots: int = 0, **more: object) -> None:
    """As the evaluate stage and `evaluate curve --out` write it."""
    items = [
        {"id": f"{name}/test/{n}", "shots": shots, "picked": 1 - one, "picked_norm": 0, "answer": 0}
        for n, one in enumerate(right)
    ]
    row = {"set": name, "language": "en", "shots": shots, "value": float(np.mean(right)), "metric": "acc"}
    write_result(path, "sandbox", 7, {"results": [row, row | {"metric": "acc_norm"}], "items": items} | more)


def task_files(folder: Path, task: str, right: list[float], answers: list[int] | None = None) -> None:
    """As the harness's tasks are written: a file of rows, and one of records."""
    items = [
        {"id": n, "answer": (answers or [0] * len(right))[n], "picked": 0, "right": one, "acc_norm": 1.0}
        for n, one in enumerate(right)
    ]
    rows = [{"set": task, "shots": 5, "metric": metric, "value": 0.0} for metric in ("acc", "acc_norm")]
    write_task(folder, task, {"task": task, "fingerprint": {}, "results": rows}, items)


def test_a_set_by_hand(tmp_path: Path) -> None:
    before, after = [1, 1, 0, 0, 0, 0, 0, 1], [1, 0, 1, 1, 1, 1, 1, 1]
    choices_file(tmp_path / "a.json", before)
    choices_file(tmp_path / "b.json", after)
    result = diff(read_measured(tmp_path / "a.json"), read_measured(tmp_path / "b.json"))
    row = next(row for row in result["results"] if row["metric"] == "acc")
    change = np.subtract(after, before)
    assert (row["a"], row["b"], row["value"]) == (3 / 8, 7 / 8, 0.5)
    assert row["stderr"] == pytest.approx(change.std(ddof=1) / math.sqrt(8))
    assert (row["won"], row["lost"], row["items"]) == (5, 1, 8)
    assert row["p"] == pytest.approx(2 * 7 / 64)
    assert row["low"] <= 0.5 <= row["high"]
    assert result["flips"][0]["lost"] == ["facts_en/test/1"]
    other = next(row for row in result["results"] if row["metric"] == "acc_norm")
    assert (other["value"], other["p"], other["won"]) == (0.0, 1.0, 0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30))
@settings(max_examples=30, deadline=None)
def test_b_against_a_is_the_opposite(tmp_path_factory, pairs: list[tuple[bool, bool]]) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    for number, name in enumerate(("a", "b")):
        choices_file(folder / f"{name}.json", [int(pair[number]) for pair in pairs])
    a, b = read_measured(folder / "a.json"), read_measured(folder / "b.json")
    one, other = diff(a, b)["results"][0], diff(b, a)["results"][0]
    assert one["value"] == -other["value"]
    assert (one["won"], one["lost"], one["p"]) == (other["lost"], other["won"], other["p"])
    same = diff(a, a)["results"][0]
    assert (same["value"], same["p"], same["stderr"]) == (0.0, 1.0, 0.0)


def test_folders_of_tasks_and_the_correction_over_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for task, gain in (("boolq", 0.0), ("mmlu_law", 0.5), ("piqa", 0.0)):
        for side in ("a", "b"):
            right = rng.random(120) < 0.3 + gain * (side == "b")
            task_files(tmp_path / side, task, right.astype(float).tolist())
    task_files(tmp_path / "b", "sciq", [1.0, 0.0])
    result = diff(read_measured(tmp_path / "a"), read_measured(tmp_path / "b"))
    rows = {(row["set"], row["metric"]): row for row in result["results"]}
    assert rows["mmlu_law", "acc"]["p_holm"] == pytest.approx(3 * rows["mmlu_law", "acc"]["p"])
    assert rows["mmlu_law", "acc"]["p_holm"] < 0.001 < rows["boolq", "acc"]["p_holm"]
    assert rows["boolq", "acc"]["shots"] == 5
    assert result["only_b"] == [("sciq", 5)]

    page = [diff_table(result, "one", "other")]
    text, marked, drawn = as_text(page), as_markdown(page, "d"), as_html(page, "d")
    for form in (text, marked, drawn):
        assert "mmlu_law" in form
        assert "Only B has sciq (5-shot)." in form
    assert text.splitlines()[4].endswith("120")
    assert sum(line.startswith("|") for line in marked.splitlines()) == 2 + len(rows)


def test_held_out_text_is_compared_by_bits_per_byte(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 500, 40)
    row = {"set": "text", "language": "en", "metric": "loss", "value": 0.0}
    nats = {side: sizes * rng.normal(mean, 0.1, 40) for side, mean in (("a", 0.9), ("b", 0.85))}
    for side, values in nats.items():
        items = [
            {"id": f"d{n}", "language": "en", "nats": value, "tokens": 3 if side == "a" else 5, "bytes": int(size)}
            for n, (value, size) in enumerate(zip(values, sizes, strict=True))
        ]
        settings = {"window": 64, "stride": 64 if side == "a" else 32, "documents": "apart"}
        for name, said in ((side, {}), (f"{side}2", {"settings": settings})):
            write_result(tmp_path / f"{name}.json", "perplexity", 1, {"results": [row], "items": items} | said)
    result = diff(read_measured(tmp_path / "a.json"), read_measured(tmp_path / "b.json"))["results"][0]
    expected = (nats["b"] - nats["a"]).sum() / math.log(2) / sizes.sum()
    assert result["value"] == pytest.approx(expected)
    assert (result["set"], result["metric"], result["won"]) == ("text_en", "bits_per_byte", None)
    assert result["p"] < 0.05
    assert (result["high"] - result["low"]) / 3.92 == pytest.approx(result["stderr"], rel=0.2)
    with pytest.raises(UserError, match="stride was 64 for A and 32 for B"):
        diff(read_measured(tmp_path / "a2.json"), read_measured(tmp_path / "b2.json"))


def test_what_does_not_match_is_refused(tmp_path: Path) -> None:
    task_files(tmp_path / "a", "boolq", [1.0, 0.0, 1.0])
    task_files(tmp_path / "short", "boolq", [1.0, 0.0])
    task_files(tmp_path / "other", "boolq", [1.0, 0.0, 1.0], answers=[0, 1, 0])
    task_files(tmp_path / "apart", "piqa", [1.0, 0.0, 1.0])
    a = read_measured(tmp_path / "a")
    with pytest.raises(UserError, match=r"boolq: A has 3 items, B 2.*only one of them has: 2\).*same limit"):
        diff(a, read_measured(tmp_path / "short"))
    moved = {key: one._replace(ids=[f"{name}0" for name in one.ids]) for key, one in a.items()}  # as many, but others
    with pytest.raises(UserError, match="boolq: A has 3 items, B 3, and they are not the same"):
        diff(a, moved)
    with pytest.raises(UserError, match="boolq: item 1 is another one"):
        diff(a, read_measured(tmp_path / "other"))
    with pytest.raises(UserError, match="no set in common: A has boolq; B has piqa"):
        diff(a, read_measured(tmp_path / "apart"))
    choices_file(tmp_path / "x.json", [1, 0], shots=0)
    choices_file(tmp_path / "y.json", [1, 0], shots=3)
    with pytest.raises(UserError, match="facts_en: A was scored 0-shot, B 3-shot"):
        diff(read_measured(tmp_path / "x.json"), read_measured(tmp_path / "y.json"))
    choices_file(tmp_path / "z.json", [1, 0], shots=0)
    with pytest.raises(UserError, match=r"stands in .* twice; name one file"):
        read_measured(tmp_path)


def test_what_holds_no_results(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results with records of their items"):
        read_measured(tmp_path)
    (tmp_path / "samples.json").write_text(json.dumps([{"prompt": "a"}]))
    with pytest.raises(UserError, match="no results with records"):
        read_measured(tmp_path)
    task_files(tmp_path, "boolq", [1.0])
    (tmp_path / "boolq.items.jsonl.zst").write_bytes(b"no zstd")
    with pytest.raises(MachineError, match=r"boolq\.items\.jsonl\.zst: damaged"):
        read_measured(tmp_path)
