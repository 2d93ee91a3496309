"""Translation: sacrebleu's scores and signatures, errors against its bootstrap, pairs and distractors, bad input."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from sacrebleu import corpus_bleu, corpus_chrf, sentence_chrf
from tiny import texts

from xmodel.errors import UserError
from xmodel.evaluate.questions import TRANSLATION
from xmodel.evaluate.translation import (
    DISTRACTORS,
    corpus_score,
    metrics,
    pair_sets,
    read_pairs,
    score_translation,
)
from xmodel.inference.generate import generate


def noisy(language: str, count: int = 80) -> tuple[list[str], list[str]]:
    """Outputs that hold a beginning of their reference."""
    rng = random.Random(0)
    words = list("路很长可是小林高兴去北京苹果") if language == "zh" else texts()[0].split()
    glue = "" if language == "zh" else " "
    references = [rng.choices(words, k=10) for _ in range(count)]
    outputs = [[*reference[: rng.randrange(3, 11)], rng.choice(words)] for reference in references]
    return [glue.join(row) for row in outputs], [glue.join(row) for row in references]


@pytest.mark.parametrize(("language", "tokenize"), [("zh", "zh"), ("en", "13a")])
def test_scores_are_sacrebleus_and_errors_those_of_its_bootstrap(language: str, tokenize: str) -> None:
    outputs, references = noisy(language)
    own = metrics(language)
    value, stderr = corpus_score(own["bleu"], outputs, references)
    theirs = corpus_bleu(outputs, [references], tokenize=tokenize)
    assert value == pytest.approx(theirs.score)
    assert 5 < value < 95
    resampled = own["bleu"].corpus_score(outputs, [references], n_bootstrap=500)
    assert stderr == pytest.approx(resampled._ci / 1.96, rel=0.4)
    assert f"tok:{tokenize}" in str(own["bleu"].get_signature())
    assert corpus_score(own["chrf"], outputs, references)[0] == pytest.approx(corpus_chrf(outputs, [references]).score)


def test_a_perfect_and_an_empty_translation() -> None:
    for language in ("zh", "en"):
        _, references = noisy(language)
        for metric in metrics(language).values():
            assert corpus_score(metric, references, references)[0] == pytest.approx(100.0)
            assert corpus_score(metric, [""] * len(references), references)[0] < 1e-6


def test_both_directions_of_pairs_and_their_distractors() -> None:
    pairs = read_pairs()
    assert len(pairs) == 68
    assert len({pair["zh"] for pair in pairs}) == len({pair["en"] for pair in pairs}) == 68
    sets = pair_sets(pairs, shots=8)
    assert [(one.name, one.language) for one in sets] == [("translation_en_zh", "zh"), ("translation_zh_en", "en")]
    for questions in sets:
        assert questions.name.startswith(TRANSLATION)
        assert (len(questions.test), len(questions.dev)) == (60, 8)
        examples = {item.reference for item in questions.dev}
        for item in questions.test:
            assert item.choices[item.answer] == f" {item.reference}"
            assert len(set(item.choices)) == DISTRACTORS + 1
            assert item.prompt.endswith(("\nChinese:", "\nEnglish:"))
            assert not examples & {choice.strip() for choice in item.choices}
        longest = [max(range(4), key=lambda n: len(item.choices[n])) == item.answer for item in questions.test]
        assert sum(longest) < 30  # length does not give the answer away
        places = [item.answer for item in questions.test]
        assert [places.count(place) for place in range(4)] == [15] * 4
    assert [item.id for item in pair_sets(pairs, 0, limit=3)[0].test] == [
        f"translation_en_zh/test/{n}" for n in range(3)
    ]


def test_without_a_dev_part_the_first_pairs_are_examples() -> None:
    pairs = [{"zh": f"第{n}个", "en": f"number {n}"} for n in range(10)]
    questions = pair_sets(pairs, shots=3)[0]
    assert [item.source for item in questions.dev] == ["number 0", "number 1", "number 2"]
    assert [item.source for item in questions.test] == [f"number {n}" for n in range(3, 10)]
    with pytest.raises(UserError, match=r"10 pairs are too few: 7 shots .* ranking needs 4 pairs to score, of which 3"):
        pair_sets(pairs, shots=7)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"zh": "路", "en"', "line 2: not JSON"),
        ('{"zh": "路"}', 'line 2: a pair needs a text in the field "en"'),
        ('{"zh": " ", "en": "a"}', 'line 2: a pair needs a text in the field "zh"'),
        ('["a"]', 'line 2: a pair needs a text in the field "zh"'),
        ('{"zh": "路", "en": "a", "split": "train"}', "line 2: split 'train' is neither"),
    ],
)
def test_lines_that_are_no_pairs(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"zh": "路", "en": "road"}) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_pairs(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no pair"):
        read_pairs(path)
    with pytest.raises(UserError, match="no such file; give JSON lines with the fields zh and en"):
        read_pairs(tmp_path / "nowhere.jsonl")


def test_rows_and_records(model, tokenizer) -> None:
    questions = pair_sets(read_pairs(), 1, limit=6)[0]
    result = score_translation(model, tokenizer, questions, 1, bos=True)
    assert [row["metric"] for row in result["results"]] == ["chrf", "bleu"]
    references = [item.reference for item in questions.test]
    unrelated = references[1:] + references[:1]
    for row, metric in zip(result["results"], metrics("zh").values(), strict=True):
        assert row["chance"] == corpus_score(metric, unrelated, references)[0]
        assert row["signature"] == str(metric.get_signature())
        assert (row["items"], row["shots"]) == (6, 1)
    for record, reference in zip(result["items"], references, strict=True):
        assert record["sentence_chrf"] == pytest.approx(sentence_chrf(record["output"], [reference]).score, abs=0.01)


def test_an_answer_ends_at_a_newline_and_keeps_the_full_stop_before_it(model, tokenizer) -> None:
    """Equal to `generate` with nothing but </s> to stop at, cut at the newline, whatever pieces the newline shares."""
    questions = pair_sets(read_pairs(), 0, limit=5)[1]
    outputs = [record["output"] for record in score_translation(model, tokenizer, questions, 0, bos=True)["items"]]
    longest = max(len(ids) for ids in tokenizer.encode_batch([item.reference for item in questions.test]))
    room = min(longest * 3 // 2 + 8, 32)
    for item, output in zip(questions.test, outputs, strict=True):
        prompt = [tokenizer.bos_id, *tokenizer.encode(item.prompt)][-(64 - room) :]
        ids = list(generate(model, prompt, max_new_tokens=room, stop_ids=(tokenizer.eos_id,)))
        assert output == tokenizer.decode(ids).split("\n")[0].strip()
