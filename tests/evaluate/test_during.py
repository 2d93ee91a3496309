"""Scores during training: what is drawn, what is told, and that training does not notice."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TIMELESS, make_model

from xmodel.errors import UserError
from xmodel.evaluate.choices import ratio_and_error, score_choices
from xmodel.evaluate.during import fixed_subset, score_during, undisturbed
from xmodel.evaluate.questions import load_questions
from xmodel.pretrain.loop import pretrain
from xmodel.recipe.load import load_recipe
from xmodel.recipe.settings import Evaluate
from xmodel.tokenizer.codec import Tokenizer

KEYS = {"suite", "set", "language", "shots", "accuracy", "stderr", "chance", "items"}
KEYS |= {"accuracy_norm", "accuracy_norm_stderr", "gold_bpb", "gold_bpb_stderr"}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    for name in ("facts_en", "cloze_en", "facts_zh", "translation_en_zh"):
        language, rows = name[-2:], []
        for number in range(30):
            choices = ["北京", "旧港口", "小山村"] if language == "zh" else [" Paris", " Oslo", " the green hill"]
            prompt = f"第{number}题：小林去了" if language == "zh" else f"{number}. Mira went to"
            row = {"id": f"{name}/test/{number}", "set": name, "split": "test", "language": language}
            rows.append(row | {"prompt": prompt, "choices": choices, "answer": number % 3, "reference": "x"})
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def test_rows_are_those_of_the_whole_set_on_the_drawn_items(tokenizer, questions: Path) -> None:
    model = make_model(tokenizer.vocab_size)
    rows = score_during(tokenizer, questions, Evaluate(limit_during=12), bos=True)(model)
    assert [row["set"] for row in rows] == ["cloze_en", "facts_en", "facts_zh", "translation_en_zh"]
    assert [row["suite"] for row in rows] == ["sandbox"] * 3 + ["translation"]
    assert all(set(row) == KEYS and (row["shots"], row["items"]) == (0, 12) for row in rows)
    for whole, row in zip(load_questions(questions), rows, strict=True):
        drawn = fixed_subset([item.id for item in whole.test], 12)
        records = score_choices(model, tokenizer, whole, 0, tokenizer.bos_id)["items"]
        right = [records[place]["picked"] == records[place]["answer"] for place in drawn]
        assert row["accuracy"] == sum(right) / 12
        whole.test = [whole.test[place] for place in drawn]
        alone = {
            each["metric"]: each for each in score_choices(model, tokenizer, whole, 0, tokenizer.bos_id)["results"]
        }
        assert row["gold_bpb"] == pytest.approx(alone["gold_bpb"]["value"], rel=1e-6)
        assert row["gold_bpb_stderr"] == pytest.approx(alone["gold_bpb"]["stderr"], rel=1e-6)
        assert row["accuracy_norm"] == alone["acc_norm"]["value"]


def test_a_subset_is_fixed_nested_spread_and_without_order() -> None:
    names = [f"facts_en/test/{number}" for number in range(200)]
    taken = fixed_subset(names, 48)
    assert taken == sorted(taken)
    assert len(set(taken)) == 48
    assert set(fixed_subset(names, 20)) < set(taken)
    mixed = random.Random(0).sample(names, len(names))
    assert {mixed[place] for place in fixed_subset(mixed, 48)} == {names[place] for place in taken}
    assert all(6 <= count <= 18 for count in Counter(place // 50 for place in taken).values())  # of each quarter
    assert fixed_subset(names, 500) == list(range(200))
    assert taken[:4] == fixed_subset(names, 48)[:4] != [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("names", "sets"),
    [
        (["facts_zh"], ["facts_zh"]),
        (["sandbox"], ["cloze_en", "facts_en", "facts_zh"]),
        (["translation", "facts_en"], ["facts_en", "translation_en_zh"]),
        (["sandbox", "facts_en"], ["cloze_en", "facts_en", "facts_zh"]),
    ],
)
def test_names_are_suites_or_sets(tokenizer, questions: Path, names: list[str], sets: list[str]) -> None:
    rows = score_during(tokenizer, questions, Evaluate(during=names, limit_during=2), bos=True)(
        make_model(tokenizer.vocab_size)
    )
    assert [row["set"] for row in rows] == sets


def test_nothing_to_score_reads_nothing(tokenizer, tmp_path: Path) -> None:
    for settings in (Evaluate(limit_during=0), Evaluate(during=[])):
        assert score_during(tokenizer, tmp_path / "nowhere", settings, True)(make_model(tokenizer.vocab_size)) == []


def test_a_mistake_is_told_before_the_first_step(tokenizer, questions: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate\.during: .*'facts_fr'; did you mean facts_"):
        score_during(tokenizer, questions, Evaluate(during=["facts_fr"]), True)
    with pytest.raises(UserError, match="no question sets"):
        score_during(tokenizer, tmp_path, Evaluate(), True)


# ---- the harness's tasks ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows in the layout of --benchmarks, made up: three tasks of one kind each, and two subjects of MMLU."""
    folder = tmp_path_factory.mktemp("benchmarks")

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )

    texts = ["ice", "water from the long road", "a hill"]
    write("arc_easy/test.jsonl", [
        {"question": f"{n}. Which is it?", "choices": {"text": texts, "label": ["A", "B", "C"]}, "answerKey": "ABC"[n % 3]}
        for n in range(40)
    ])  # fmt: skip
    write("winogrande/validation.jsonl", [
        {"sentence": f"Tom liked apple {n} more than Mira because _ was glad.", "option1": "Tom", "option2": "Mira",
         "answer": "12"[n % 2]}
        for n in range(40)
    ])  # fmt: skip
    write("arc_zh/test.jsonl", [
        {"id": str(n), "instruction": f"第{n}题", "option_a": "冰", "option_b": "水", "option_c": "山", "option_d": "路",
         "answer": "ABCD"[n % 4]}
        for n in range(40)
    ])  # fmt: skip
    subjects = ("anatomy", "virology")
    row = {"question": "What is it?", "choices": ["one", "two", "three", "four"], "answer": 2}
    for split, count in (("test", 30), ("dev", 5)):
        rows = [row | {"subject": subject, "question": f"{subject} {n}?"} for subject in subjects for n in range(count)]
        write(f"mmlu/{split}.jsonl", rows)
    return folder


def test_the_harness_tasks_by_name(tokenizer, tmp_path: Path, benchmarks: Path) -> None:
    pytest.importorskip("lm_eval")
    settings = Evaluate(
        during=["arc_easy", "winogrande", "chinese", "mmlu"], limit_during=10, benchmarks=str(benchmarks)
    )
    score = score_during(tokenizer, tmp_path / "no questions", settings, bos=True)
    model = make_model(tokenizer.vocab_size, context=512).train()
    rows = score(model)
    assert [(row["suite"], row["set"], row["language"], row["shots"], row["items"]) for row in rows] == [
        ("commonsense", "arc_easy", "en", 0, 10),
        ("commonsense", "winogrande", "en", 0, 10),
        ("problem-solving", "mmlu", "en", 5, 10),  # ten of both subjects together
        ("chinese", "arc_zh", "zh", 0, 10),  # of the suite what is there
    ]
    assert score(model) == rows  # the same questions behind the same examples
    assert model.training
    arc, winogrande = rows[:2]
    assert {"accuracy_norm", "gold_bpb", "gold_bpb_stderr"} <= set(arc)
    assert "accuracy_norm" not in winogrande
    assert winogrande["gold_bpb"] > 0


def test_bits_of_the_harness_answers_are_those_of_its_log_likelihoods(tokenizer, benchmarks: Path) -> None:
    pytest.importorskip("lm_eval")
    from xmodel.evaluate.harness import SubjectLM, score_task
    from xmodel.evaluate.suites import prepare_suites
    from xmodel.evaluate.tasks import open_task
    from xmodel.inference.subjects import Subject

    lm = SubjectLM(Subject(make_model(tokenizer.vocab_size), tokenizer, True, "run", None, {}))
    (prepared,), _ = prepare_suites(["arc_easy"], benchmarks)
    result = score_task(lm, prepared, open_task(prepared), limit=9)
    (gold,) = [row for row in result["results"] if row["metric"] == "gold_bpb"]
    texts = [" ice", " water from the long road", " a hill"]
    bits = [-record["logprobs"][record["answer"]] / math.log(2) for record in result["items"]]
    sizes = [len(texts[record["answer"]]) for record in result["items"]]
    assert gold["value"] == pytest.approx(sum(bits) / sum(sizes), rel=1e-4)
    assert gold["stderr"] == pytest.approx(ratio_and_error(bits, sizes)[1], rel=1e-3)
    for record, nats, size in zip(result["items"], bits, sizes, strict=True):
        assert record["gold_bpb"] == pytest.approx(nats / size, abs=1e-3)


def test_names_of_the_harness_are_looked_up_at_once(
    tokenizer, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(UserError, match=r"evaluate\.during: .*'commonsence'; did you mean commonsense"):
        score_during(tokenizer, questions, Evaluate(during=["commonsence"]), True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"'commonsense'; .*pip install 'xmodel\[harness\]'"):
        score_during(tokenizer, questions, Evaluate(during=["commonsense"]), True)


# ---- training does not notice -----------------------------------------------------------------------------------------


def test_undisturbed_puts_back_what_scoring_may_change(tokenizer) -> None:
    model = make_model(tokenizer.vocab_size).train()
    model.model.norm.eval()  # a mode of its own comes back too
    modes = [module.training for module in model.modules()]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    with pytest.raises(ZeroDivisionError), undisturbed(model):  # whatever happens inside
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in model.modules())
        assert random.random() + np.random.rand() + torch.rand(3).sum() > 0
        torch.set_default_dtype(torch.bfloat16)
        raise ZeroDivisionError
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_scoring_compiles_nothing(tokenizer, questions: Path) -> None:
    def refuse(graph: object, inputs: object) -> None:
        raise AssertionError("scoring compiles nothing")

    model = make_model(tokenizer.vocab_size).train()
    for block in model.model.layers:
        block.compile(backend=refuse)
    assert score_during(tokenizer, questions, Evaluate(limit_during=2), True)(model)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_weights_are_bit_equal_with_scores_and_without(finished_run: Path, tmp_path: Path, benchmarks: Path) -> None:
    names = "[sandbox,translation,arc_easy]" if importlib.util.find_spec("lm_eval") else "[sandbox,translation]"
    scores = (f"evaluate.during={names}", f"evaluate.benchmarks={benchmarks}", "evaluate.limit_during=4")

    def train(name: str, *changes: str) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
        folder = tmp_path / name
        shutil.copytree(finished_run / "tokens", folder / "tokens")
        options = ["pretrain.steps=12", "pretrain.eval_every=3", "pretrain.save_every=12", "pretrain.trackers=[]"]
        recipe = load_recipe(finished_run / "recipe.yaml", [*options, *changes])
        tokenizer = Tokenizer.load(finished_run / "tokenizer")
        score = score_during(tokenizer, finished_run / "corpus" / "questions", recipe.evaluate, recipe.tokens.bos)
        pretrain(recipe, folder / "tokens", folder, score)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        checkpoint = folder / "checkpoints" / "step-000000012"
        files = {str(path.relative_to(checkpoint)): path for path in checkpoint.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in files.items()}, rows

    def steps(rows: list[dict[str, Any]], kind: str) -> list[Any]:
        return [
            {key: row[key] for key in row if key not in TIMELESS} for row in rows if row["kind"] == kind
        ]  # fmt: skip

    bare, rows = train("bare", "evaluate.limit_during=0")
    scored, scored_rows = train("scored", *scores)
    rarely, rare_rows = train("rarely", *scores, "evaluate.during_every=9")
    assert bare == scored == rarely
    for kind in ("train", "validation"):
        assert steps(rows, kind) == steps(scored_rows, kind) == steps(rare_rows, kind)
    assert steps(rows, "score") == []
    assert sorted({row["step"] for row in steps(scored_rows, "score")}) == [0, 3, 6, 9, 12]
    assert sorted({row["step"] for row in steps(rare_rows, "score")}) == [0, 9, 12]
    at = [row for row in steps(scored_rows, "score") if row["step"] in (0, 9, 12)]
    assert at == steps(rare_rows, "score")
