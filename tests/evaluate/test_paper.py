"""The paper's tables: their arithmetic, and ours by the same rules."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("lm_eval", reason="the extra `harness`")

from xmodel.errors import UserError
from xmodel.evaluate.paper import (
    BENCHMARKS,
    MEANS,
    MISPRINTS,
    PUBLISHED,
    definitions,
    published_columns,
    questions,
    select,
    summarise,
)
from xmodel.evaluate.sizes import SIZES, size_of
from xmodel.evaluate.tasks import stock, subset_of

ROUNDED = 0.025  # one mean, 43.02, is printed as 43.00; all others are right to a hundredth
BY_NAME = {benchmark.name: benchmark for benchmark in BENCHMARKS}


def row(task: str, value: float, *, benchmark: str = "", stderr: float | None = 0.01, items: int = 100, **more) -> dict:
    owner = BY_NAME[benchmark or task]
    return {
        "suite": owner.suite,
        "benchmark": owner.name,
        "set": task,
        "language": owner.language,
        "shots": owner.shots,
        "metric": owner.metric,
        "value": value,
        "stderr": stderr,
        "chance": 0.25,
        "items": items,
        "seconds": 1.0,
    } | more


@pytest.mark.parametrize("suite", PUBLISHED)
def test_published_means_are_means_of_their_rows_but_for_the_two_misprints(suite: str) -> None:
    columns = published_columns(suite)
    for model, figures in PUBLISHED[suite].items():
        assert len(figures) == len(columns)
        by_column = dict(zip(columns, figures, strict=True))
        for name, members in MEANS[suite].items():
            true = sum(by_column[member] for member in members) / len(members)
            printed = by_column[f"{name}_{suite}"]
            misprint = MISPRINTS.get((suite, model, name))
            if misprint is None:
                assert printed == pytest.approx(true, abs=ROUNDED), (suite, model, name)
            else:
                assert misprint == pytest.approx(true, abs=0.0051)
                assert abs(printed - true) > 0.2
    assert len(MISPRINTS) == 2


def test_published_scores_through_our_own_means() -> None:
    for suite, models in PUBLISHED.items():
        for model, figures in models.items():
            columns = published_columns(suite)
            own = [name for name in columns if name in BY_NAME]
            rows = [row(name, figure / 100) for name, figure in zip(own, figures, strict=False)]
            # a group has several tasks: the published figure stands for each of them alike
            spread = [
                row(task, one["value"], benchmark=one["set"])
                for one in rows
                for task in definitions(BY_NAME[one["set"]])
                if task != "cola"
            ]
            means = {found["set"]: found for found in summarise(spread) if found["metric"] == "mean"}
            for name in MEANS[suite]:
                printed = dict(zip(columns, figures, strict=True))[f"{name}_{suite}"]
                expected = MISPRINTS.get((suite, model, name), printed)
                assert 100 * means[f"{name}_{suite}"]["value"] == pytest.approx(expected, abs=ROUNDED)
                assert "partial" not in means[f"{name}_{suite}"]


def test_suites_hold_what_the_paper_scored() -> None:
    chosen = select(["paper"])
    sizes = {benchmark.name: len(tasks) for benchmark, tasks in chosen.items()}
    assert sizes["mmlu"] == 57
    assert sizes["bbh_fewshot"] == sizes["bbh_cot_fewshot"] == 27
    assert sizes["glue"] == 9
    assert {name for name, size in sizes.items() if size == 1} == {
        "arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "piqa", "sciq", "triviaqa", "winogrande",
        "gsm8k", "arc_zh", "xcopa_zh", "xnli_zh",
    }  # fmt: skip
    shots = {benchmark.name: benchmark.shots for benchmark in chosen}
    assert (shots["glue"], shots["gsm8k"], shots["mmlu"], shots["bbh_cot_fewshot"], shots["arc_easy"]) == (
        5,
        5,
        5,
        3,
        0,
    )
    beyond = {benchmark.name: len(tasks) for benchmark, tasks in select(["beyond"]).items()}
    groups = {"ceval-valid": 52, "cmmlu": 67, "mmlu_continuation": 57}
    assert beyond == groups | {"lambada_openai": 1, "gsm8k_cot": 1, "humaneval": 1}
    assert select(["mmlu_anatomy", "boolq"]) == {BY_NAME["boolq"]: ["boolq"], BY_NAME["mmlu"]: ["mmlu_anatomy"]}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("comonsense", "did you mean commonsense"),
        ("mmlu_anatmy", "mmlu_anatomy"),
        ("zzzzzz", "the suites are commonsense"),
    ],
)
def test_a_name_that_does_not_exist(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        select([name])


def test_groups_weight_by_size_and_glue_leaves_cola_out() -> None:
    sizes = {
        "mnli": 9815,
        "mnli_mismatch": 9832,
        "mrpc": 408,
        "qnli": 5463,
        "qqp": 40430,
        "rte": 277,
        "sst2": 872,
        "wnli": 71,
    }
    rows = [
        row(task, 0.3 + 0.05 * number, benchmark="glue", items=size, stderr=0.01 * (1 + number))
        for number, (task, size) in enumerate(sizes.items())
    ]
    extra = [
        row("cola", 0.1, benchmark="glue", metric="mcc", items=1043),
        row("mrpc", 0.8, benchmark="glue", metric="f1", items=408),
    ]
    found = [one for one in summarise(rows + extra) if one["set"] == "glue"]
    assert [one["metric"] for one in found] == ["acc"]

    from lm_eval.api.metrics import aggregate_subtask_metrics

    values = [one["value"] for one in rows]
    assert found[0]["value"] == pytest.approx(aggregate_subtask_metrics(values, list(sizes.values())))
    total = sum(sizes.values())
    error = math.sqrt(sum((size / total * one["stderr"]) ** 2 for size, one in zip(sizes.values(), rows, strict=True)))
    assert found[0]["stderr"] == pytest.approx(error)
    assert found[0]["items"] == total
    assert "partial" not in found[0]
    assert next(one for one in summarise(rows[1:]) if one["set"] == "glue")["partial"]


def test_a_mean_s_error_and_what_is_partial() -> None:
    names = MEANS["commonsense"]["mean"]
    rows = [row(name, 0.5, stderr=0.01 * (number + 1)) for number, name in enumerate(names)]
    mean = summarise(rows)[-1]
    assert mean["set"] == "mean_commonsense"
    assert mean["stderr"] == pytest.approx(math.sqrt(sum((0.01 * n) ** 2 for n in range(1, 10))) / 9)
    assert "partial" not in mean
    assert summarise(rows[:-1])[-1]["partial"]
    assert summarise([*rows[:-1], rows[-1] | {"partial": True}])[-1]["partial"]
    assert summarise([rows[0] | {"stderr": None}, *rows[1:]])[-1]["stderr"] is None


def test_published_shares_are_of_so_many_questions() -> None:
    """A figure printed as 26.24 is 307 of 1,170, and no number of 1,172 questions: so the sizes are the paper's."""
    odd = []
    for suite, models in PUBLISHED.items():
        for place, name in enumerate(published_columns(suite)):
            if name not in BY_NAME or set(SIZES[BY_NAME[name].data]) != {""}:
                continue
            size = questions(BY_NAME[name])
            for model, figures in models.items():
                right = figures[place] * size / 100
                if abs(100 * round(right) / size - figures[place]) > 0.00501:
                    odd.append((model, name))
    assert odd == [("Pythia-1.4B", "gsm8k")]  # 1.63 is 21.5 of 1,319, as a mean of two figures would be
    assert abs(100 * round(26.24 * 11.72) / 1172 - 26.24) > 0.02


def test_every_task_s_size_is_known_and_a_group_s_is_their_sum() -> None:
    for benchmark in BENCHMARKS:
        sizes = {
            task: size_of(benchmark.data, subset_of(benchmark, stock(benchmark, task, resolve=False)), task)
            for task in definitions(benchmark)
        }
        assert None not in sizes.values(), benchmark.name
        assert sum(size or 0 for task, size in sizes.items() if task != "cola") == questions(benchmark)
    totals = {"mmlu": 14042, "bbh_fewshot": 6511, "ceval-valid": 1346, "cmmlu": 11582, "glue": 67168}
    assert {name: questions(BY_NAME[name]) for name in totals} == totals


def test_a_group_of_short_tasks_is_partial() -> None:
    rows = [row(task, 0.5, benchmark="mmlu", partial=True) for task in definitions(BY_NAME["mmlu"])]
    found = next(one for one in summarise(rows) if one["set"] == "mmlu")
    assert found["partial"]
    assert (found["items"], found["benchmark_items"]) == (5700, 14042)
