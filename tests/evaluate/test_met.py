"""Contamination beside scores: which questions stand in a run's training text, found once, and the scores of the rest."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra `harness`")

import pyarrow as pa
import pyarrow.parquet as pq
from rows import FILES, SHARED, write_benchmarks, write_rows
from tiny import make_model

from xmodel.corpus.contamination import Asked, scan
from xmodel.evaluate import met, paper
from xmodel.evaluate.local_rows import DATA, GLUE, data_of
from xmodel.evaluate.met import Met, clean_scores, met_questions, question_text
from xmodel.evaluate.results import as_text, read_items, read_results, tables
from xmodel.evaluate.suites import results_table, score_tasks
from xmodel.evaluate.tasks import open_task, prepare
from xmodel.inference.subjects import Subject


def corpus(run: Path, texts: list[str]) -> Path:
    (run / "corpus" / "train").mkdir(parents=True, exist_ok=True)
    columns = {"id": [str(number) for number in range(len(texts))], "text": texts}
    pq.write_table(pa.table(columns), run / "corpus" / "train" / "a.parquet")
    return run


class Search:
    """The corpus room's, counted."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, paths: Sequence[Path], asked: Sequence[met.Asked]) -> dict[str, Any]:
        self.calls.append(len(asked))
        return scan(paths, [Asked(*item) for item in asked])


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("arc_challenge", "Which gas do plants take in? carbon dioxide"),
        ("boolq", "does iron rust"),
        ("hellaswag", "She opens the oven. then she takes out the bread."),
        ("openbookqa", "A magnet attracts iron"),
        ("piqa", "To cool soup blow on it."),
        ("sciq", "What do bees make? honey"),
        ("triviaqa", "Which city is the capital of Norway Oslo"),
        ("winogrande", "The cup fell off the shelf because the shelf was tilted."),
        ("bbh", "not ( True ) and ( True ) is False"),
        ("gsm8k", "Two boxes hold 3 pens each. How many pens? 2*3 = <<2*3=6>>6\n#### 6"),
        ("mmlu", "How many lungs has a human? 2"),
        ("arc_zh", "植物吸收哪种气体？ 二氧化碳"),
        ("xcopa_zh", "天黑了。 他开了灯。"),
        ("xnli_zh", "他在吃苹果。 他在吃水果。"),
        ("ceval", "一年有几个月？ 12"),
        ("cmmlu", "钢琴有几个键？ 88"),
        ("lambada_openai", "The kettle boiled, and she poured the tea into the cup"),
        ("humaneval", "def one():\n"),
    ],
)
def test_the_text_of_a_question_is_it_with_its_right_answer(folder: str, expected: str) -> None:
    assert question_text(folder, "", json.loads(DATA[folder].example)) == expected


def test_every_benchmark_has_such_a_text_as_the_harness_prepares_it_too(tmp_path: Path) -> None:
    write_benchmarks(tmp_path)
    names = ("commonsense", "chinese", "gsm8k", "mmlu_anatomy", "mrpc", "ceval-valid_law", "cmmlu_arts")
    for prepared in prepare(paper.select([*names, "lambada_openai", "humaneval"]), tmp_path)[0]:
        plain = met._texts(prepared)
        subset = "mrpc" if prepared.name == "mrpc" else ""
        docs = open_task(prepared).task_docs  # as they come from the hub, where the harness prepares them
        assert plain == [question_text(prepared.benchmark.data, subset, doc) for doc in docs], prepared.name
        assert all(len(text) > 5 for text in plain)
    assert {question_text("glue", name, json.loads(data_of("glue", name).example)) for name in GLUE}
    assert {name.split("/")[0] for name in FILES} == {*DATA, "glue"}


def test_scores_without_the_questions_that_were_met(tokenizer, tmp_path: Path) -> None:
    rows = write_benchmarks(tmp_path / "rows")
    draw = random.Random(0)
    for path in (rows / "arc_easy" / "test.jsonl", rows / "mmlu" / "test.jsonl"):  # questions that are not alike
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        words = [" ".join("".join(draw.choices("abcdef", k=6)) for _ in range(20)) for _ in lines]
        write_rows(path, [row | {"question": text} for row, text in zip(lines, words, strict=True)])
    ready, _ = prepare(paper.select(["arc_easy", "arc_zh", "mmlu_anatomy", "mmlu_virology"]), rows)
    texts = {prepared.name: met._texts(prepared) for prepared in ready}
    leaked = {"arc_easy": [1, 4, 5], "arc_zh": [], "mmlu_anatomy": [0], "mmlu_virology": []}
    search = Search()
    run = corpus(tmp_path / "run", ["nothing", *(f"so: {texts[name][n]}!" for name in leaked for n in leaked[name])])
    known = met_questions(run, ready, search)
    assert {task: sorted(map(int, found.ids)) for (task, _), found in known.items()} == leaked
    subject = Subject(make_model(tokenizer.vocab_size, context=512), tokenizer, True, "tiny", None, {})
    found, _ = score_tasks(subject, ready, [], tmp_path / "out", known=known)
    by_key = {(row["set"], row["metric"]): row for row in found}
    for name, out in leaked.items():
        row = by_key[name, "acc"]
        right = [record["right"] for record in read_items(tmp_path / "out", name)]
        clean = [value for number, value in enumerate(right) if number not in out]
        assert (row["contaminated"], row["clean"]["items"]) == (len(out), len(clean))
        assert row["searched"] == len(right)
        assert row["clean"]["value"] == pytest.approx(sum(clean) / len(clean))
        assert row["value"] == pytest.approx(sum(right) / len(right))
    assert "clean" in by_key["arc_easy", "acc_norm"]
    assert "clean" not in by_key["arc_easy", "gold_bpb"]  # a ratio of sums, not of right answers

    group = next(row for row in paper.summarise(found) if (row["set"], row["metric"]) == ("mmlu", "acc"))
    parts = [by_key[name, "acc"]["clean"] for name in ("mmlu_anatomy", "mmlu_virology")]
    assert (group["contaminated"], group["items"], group["clean"]["items"]) == (1, 8, 7)
    assert group["clean"]["value"] == pytest.approx(sum(part["value"] * part["items"] / 7 for part in parts))
    mean = next(row for row in paper.summarise(found) if row["set"] == "mean_commonsense")
    assert mean["clean"] == by_key["arc_easy", "acc"]["clean"]
    stage = results_table(found).splitlines()  # as the evaluate stage prints them
    assert stage[0].split()[-2:] == ["contaminated", "clean"]
    line = next(line.split() for line in stage if line.split()[1:4] == ["arc_easy", "0", "acc"])
    assert line[-2:] == ["3", f"{100 * by_key['arc_easy', 'acc']['clean']['value']:.1f}"]
    shown = as_text(tables(paper.summarise(found), "tiny"))
    assert "  without contaminated" in shown
    assert "13 words or 30 Han characters in a row" in shown
    written = json.loads((tmp_path / "out" / "tables.json").read_text())  # of which the report is made
    assert [each["title"] for each in written] == [
        "commonsense",
        "problem-solving",
        "chinese",
        "contamination",
        "all figures",
    ]
    assert next(line for line in written[3]["rows"] if line[0] == "arc_easy")[1:5] == ["8", "8", "3", "37.50"]


def test_what_was_found_stands_until_rows_or_corpus_change(tmp_path: Path) -> None:
    rows = write_benchmarks(tmp_path / "rows")
    run, search = corpus(tmp_path / "run", ["nothing at all"]), Search()
    first, _ = prepare(paper.select(["arc_easy"]), rows)
    both, _ = prepare(paper.select(["arc_easy", "bbh_fewshot_dyck_languages", "bbh_cot_fewshot_dyck_languages"]), rows)
    met_questions(run, first, search)
    known = met_questions(run, both, search)
    met_questions(run, both, search)
    assert search.calls == [8, 8]  # only what is new, and the two tasks of the same questions once
    assert len(known) == 3
    assert met_questions(run, [], search) == known
    fewer = write_benchmarks(tmp_path / "fewer", "arc_easy") / "arc_easy" / "test.jsonl"
    fewer.write_text("".join(fewer.read_text().splitlines(keepends=True)[:5]))
    changed = met_questions(run, prepare(paper.select(["arc_easy"]), tmp_path / "fewer")[0], search)
    assert search.calls == [8, 8, 5]
    assert {found.questions for (task, _), found in changed.items() if task == "arc_easy"} == {5}
    corpus(run, ["another corpus"])
    met_questions(run, first, search)
    assert search.calls == [8, 8, 5, 8]
    (run / "evaluations" / met.KEPT).write_text("{ damaged")
    met_questions(run, first, search)
    assert search.calls == [8, 8, 5, 8, 8]


def test_no_corpus_and_one_that_is_too_large(tmp_path: Path, monkeypatch, capsys) -> None:
    rows = write_benchmarks(tmp_path / "rows", "arc_easy")
    ready, search = prepare(paper.select(["arc_easy"]), rows)[0], Search()
    assert met_questions(tmp_path, ready, search) == {}
    monkeypatch.setattr(met, "LARGEST", 10)
    run = corpus(tmp_path / "run", ["nothing"])
    assert met_questions(run, ready, search) == {}
    assert "--contamination does so" in capsys.readouterr().err
    assert not search.calls
    assert len(met_questions(run, ready, search, anyway=True)) == 1
    assert len(met_questions(run, ready, search)) == 1  # what was found stands


def test_only_scored_questions_count(tokenizer, tmp_path: Path) -> None:
    ready, _ = prepare(paper.select(["arc_easy"]), write_benchmarks(tmp_path / "rows", "arc_easy"))
    subject = Subject(make_model(tokenizer.vocab_size, context=512), tokenizer, True, "tiny", None, {})
    score_tasks(subject, ready, [], tmp_path, limit=3)
    contents = read_results(tmp_path)
    digest = contents[0]["fingerprint"]["rows"]
    found = clean_scores(tmp_path, contents, {("arc_easy", digest): Met(8, 8, frozenset({"1", "6"}))})
    fields = found["arc_easy", "acc"]
    assert (fields["contaminated"], fields["searched"], fields["clean"]["items"]) == (1, None, 2)
    assert clean_scores(tmp_path, contents, {("arc_easy", "other rows"): Met(8, 8, frozenset({"1"}))}) == {}
    all_of_them = clean_scores(tmp_path, contents, {("arc_easy", digest): Met(8, 8, frozenset("012"))})
    assert all_of_them["arc_easy", "acc"]["clean"] == {"items": 0, "value": None, "stderr": None}


@pytest.mark.skipif(SHARED is None, reason="the shared benchmark rows are not here")
def test_real_rows_have_texts() -> None:
    assert SHARED is not None
    for prepared in prepare(paper.select(["paper"]), SHARED)[0]:
        texts = met._texts(prepared)
        assert all(text.strip() for text in texts), prepared.name
