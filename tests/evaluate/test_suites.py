"""The suites over a small folder of questions and held-out text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import make_model, texts

from xmodel.errors import UserError
from xmodel.evaluate.questions import load_questions
from xmodel.evaluate.suites import results_table, run_suites, write_result
from xmodel.evaluate.translation import corpus_score, metrics, score_translation
from xmodel.recipe.settings import Evaluate

PAIRS = (
    ("Mira went to Oslo.", "小林去了北京。"),
    ("The road was long.", "路很长。"),
    ("Tom was glad.", "王明很高兴。"),
)


def question(name: str, split: str, number: int) -> dict:
    language = name[-2:]
    row = {"id": f"{name}/{split}/{number}", "set": name, "split": split, "language": language, "answer": number % 3}
    if name.startswith("translation"):
        pairs = [pair if language == "zh" else pair[::-1] for pair in PAIRS]
        source, reference = pairs[number % 3]
        row |= {"source": source, "reference": reference, "choices": [right for _, right in pairs]}
        return row | {"prompt": f"{source}\n{number}: "}
    if language == "zh":
        return row | {"prompt": f"第{number}题：小林去了", "choices": ["北京", "旧港口", "小山村"]}
    return row | {"prompt": f"{number}. Mira went to", "choices": [" Paris", " Oslo", " the green hill"]}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "questions").mkdir()
    (folder / "validation").mkdir()
    for name in ("facts_en", "cloze_en", "facts_zh", "translation_en_zh", "translation_zh_en"):
        rows = [question(name, split, number) for split, n in (("test", 7), ("dev", 4)) for number in range(n)]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / "questions" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    for language, documents in (("en", texts()[:8]), ("zh", texts()[95:103])):
        table = pa.table({"id": [f"{n}" for n in range(8)], "text": documents})
        pq.write_table(table, folder / "validation" / f"{language}.parquet")
    return folder


def test_all_suites(model, tokenizer, corpus: Path, tmp_path: Path) -> None:
    settings = Evaluate(shots=[0, 2], limit=5)
    results = run_suites(model, tokenizer, corpus, settings, bos=True, perplexity_tokens=200)
    assert list(results) == ["perplexity", "sandbox", "translation"]

    sandbox = results["sandbox"]["results"]
    assert {row["set"] for row in sandbox} == {"facts_en", "cloze_en", "facts_zh", "mean_en", "mean_zh"}
    assert len(sandbox) == 2 * 3 * 5
    gold = [row for row in sandbox if row["metric"] == "gold_bpb"]
    assert len(gold) == 2 * 5
    assert all(row["value"] > 0 and row["chance"] is None for row in gold)
    shares = [row for row in sandbox if row not in gold]
    assert all(0 <= row["value"] <= 1 and row["chance"] == pytest.approx(1 / 3) for row in shares)
    assert {row["items"] for row in sandbox} == {5, 10}
    assert len(results["sandbox"]["items"]) == 3 * 2 * 5

    translation = results["translation"]["results"]
    assert {(row["set"], row["shots"], row["metric"]) for row in translation} == {
        (f"translation_{pair}", shots, metric)
        for pair in ("en_zh", "zh_en")
        for shots in (0, 2)
        for metric in ("acc", "chrf", "bleu")
    }
    sample = results["translation"]["samples"][0]
    assert {"source", "reference", "output"} <= set(sample)
    assert all("\n" not in record["output"] for record in results["translation"]["outputs"])

    for suite, result in results.items():
        write_result(tmp_path / f"{suite}.json", suite, 40, result)
        text = (tmp_path / f"{suite}.json").read_text(encoding="utf-8")
        assert json.loads(text) == {"suite": suite, "step": 40} | result
        assert max(map(len, text.splitlines())) < 600  # a line a record

    rows = [{"suite": suite} | row for suite, result in results.items() for row in result["results"]]
    printed = results_table(rows).splitlines()
    assert len(printed) == 2 + len(rows)
    assert any("mean_en" in line and "33.3" in line for line in printed)
    again = run_suites(model, tokenizer, corpus, Evaluate(suites=["sandbox"], shots=[0, 2], limit=5), True)
    assert again["sandbox"]["items"] == results["sandbox"]["items"]


def test_chrf_is_sacrebleus_and_its_error_that_of_the_bootstrap() -> None:
    from sacrebleu.metrics.chrf import CHRF

    def chrf(outputs: list[str], references: list[str]) -> tuple[float, float | None]:
        return corpus_score(metrics("en")["chrf"], outputs, references)

    references = [right for _, right in PAIRS] * 9
    assert chrf(references, references) == (pytest.approx(100.0), pytest.approx(0.0, abs=1e-6))
    assert chrf([""] * 4, ["a"] * 4) == (0.0, 0.0)
    assert chrf(["a"], ["a"])[1] is None

    rng = random.Random(0)
    references = [" ".join(rng.choices(texts()[0].split(), k=8)) for _ in range(80)]
    outputs = [" ".join(reference.split()[: rng.randrange(1, 9)]) for reference in references]
    value, stderr = chrf(outputs, references)
    theirs = CHRF().corpus_score(outputs, [references], n_bootstrap=500)
    assert value == pytest.approx(theirs.score)
    assert stderr == pytest.approx(theirs._ci / 1.96, rel=0.35)


def test_translations_stop_at_a_newline_and_have_a_chance_level(model, tokenizer, corpus: Path) -> None:
    questions = next(one for one in load_questions(corpus / "questions") if one.name == "translation_en_zh")
    row = score_translation(model, tokenizer, questions, 0, bos=True)["results"][0]
    references = [PAIRS[number % 3][1] for number in range(7)]
    assert row["chance"] == corpus_score(metrics("zh")["chrf"], references[1:] + references[:1], references)[0]
    assert (row["metric"], row["items"]) == ("chrf", 7)


@pytest.mark.parametrize(
    ("suites", "message"),
    [(["sandbax"], "no suite is called 'sandbax'; did you mean sandbox"), (["x"], "there are perplexity, sandbox")],
)
def test_unknown_suites(model, tokenizer, corpus: Path, suites: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_suites(model, tokenizer, corpus, Evaluate(suites=suites), True)


def test_missing_questions_and_a_tokenizer_of_another_model(model, tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no question sets"):
        run_suites(model, tokenizer, tmp_path, Evaluate(suites=["sandbox"]), True)
    with pytest.raises(UserError, match="do not belong together"):
        run_suites(make_model(tokenizer.vocab_size - 1), tokenizer, tmp_path, Evaluate(), True)
