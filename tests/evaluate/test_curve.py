"""Few-shot curves: equal to scoring each number of shots, paired differences, the sets that come along, the drawing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from xmodel.errors import UserError
from xmodel.evaluate.choices import mean_and_error, score_choices
from xmodel.evaluate.curve import (
    EVERYDAY,
    choose_sets,
    curve_table,
    draw_curve,
    everyday_questions,
    few_shot_curve,
)
from xmodel.evaluate.diff import exact_mcnemar
from xmodel.evaluate.questions import load_questions

HAN = range(0x4E00, 0xA000)


def test_the_everyday_sets_are_sound() -> None:
    for questions in everyday_questions(shots=(8,)):
        assert (len(questions.test), len(questions.dev)) == (60, 8)
        rows = [json.loads(line) for line in (EVERYDAY / f"{questions.name}.jsonl").read_text().splitlines()]
        kinds = Counter(row.get("kind") for row in rows if row["split"] == "test")
        assert kinds == {"physical sense": 20, "cause and effect": 20, "simple facts": 20} or set(kinds.values()) == {
            20
        }
        places = Counter((row.get("kind"), row["answer"]) for row in rows if row["split"] == "test")
        assert set(places.values()) == {5}  # balanced within every kind
        assert len({row["prompt"] for row in rows}) == len(rows) == len({row["id"] for row in rows})
        for item in questions.test + questions.dev:
            assert len(set(item.choices)) == 4
            assert any(ord(letter) in HAN for letter in item.prompt) == (questions.language == "zh")
        lengths = [sorted(item.choices, key=len).index(item.choices[item.answer]) for item in questions.test]
        assert sum(place == 3 for place in lengths) <= 20  # the longest choice is not the answer
        assert sum(place == 0 for place in lengths) <= 30


def test_a_curve_is_its_points_and_differences_are_paired(model, tokenizer) -> None:
    sets = everyday_questions(limit=12)
    result = few_shot_curve(model, tokenizer, True, sets, [2, 0])
    assert result["truncated"] > 0  # 64 tokens do not hold two examples
    for questions in sets:
        points = {}
        for shots in (0, 2):
            alone = score_choices(model, tokenizer, questions, shots, tokenizer.bos_id)
            own = [row for row in result["results"] if (row["set"], row["shots"]) == (questions.name, shots)]
            assert [(row["metric"], row["value"]) for row in own] == [
                (row["metric"], pytest.approx(row["value"])) for row in alone["results"]
            ]
            points[shots] = [item["picked"] == item["answer"] for item in alone["items"]]
        change = next(row for row in result["differences"] if row["set"] == questions.name and row["metric"] == "acc")
        changes = [int(after) - int(before) for before, after in zip(points[0], points[2], strict=True)]
        assert (change["value"], change["stderr"]) == pytest.approx(mean_and_error(changes))
        assert (change["won"], change["lost"]) == (changes.count(1), changes.count(-1))
        assert change["p"] == exact_mcnemar(changes.count(1), changes.count(-1))
        assert (change["shots"], change["against"], change["items"]) == (2, 0, 12)
    assert not any(row["set"].startswith("mean") for row in result["results"])  # one set a language has no mean
    shown = curve_table(result).splitlines()
    assert [line.split()[0] for line in shown[2:4]] == ["everyday_en", "everyday_zh"]
    assert "2 - 0" in shown[0]


def test_means_stand_where_a_language_has_several_sets(model, tokenizer, tmp_path: Path) -> None:
    first = everyday_questions(limit=4)[0]
    lines = (EVERYDAY / "everyday_en.jsonl").read_text().replace("everyday_en", "other_en")
    (tmp_path / "other.jsonl").write_text(lines)
    other = load_questions(tmp_path / "other.jsonl", limit=4)[0]
    result = few_shot_curve(model, tokenizer, True, [first, other], [0])
    mean = next(row for row in result["results"] if row["set"] == "mean_en" and row["metric"] == "acc")
    parts = [row["value"] for row in result["results"] if row["metric"] == "acc" and row["set"] != "mean_en"]
    assert mean["value"] == pytest.approx(sum(parts) / 2)
    assert result["differences"] == []
    assert "mean_en" in curve_table(result)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_drawing(model, tokenizer, tmp_path: Path, suffix: str) -> None:
    result = few_shot_curve(model, tokenizer, True, everyday_questions(limit=3), [0, 1])
    path = tmp_path / f"curve{suffix}"
    draw_curve(result, path, "tiny")
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(start)
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(UserError, match="cannot be drawn in this format"):
        draw_curve(result, tmp_path / "curve.bmp", "tiny")


def test_unknown_sets_and_too_few_examples() -> None:
    sets = everyday_questions()
    assert [one.name for one in choose_sets(sets, [])] == ["everyday_en", "everyday_zh"]
    assert [one.name for one in choose_sets(sets, ["everyday_zh"])] == ["everyday_zh"]
    with pytest.raises(UserError, match="no question set is called 'everyday_eng'; did you mean everyday_en"):
        choose_sets(sets, ["everyday_eng"])
    with pytest.raises(UserError, match="'x'; there are everyday_en, everyday_zh"):
        choose_sets(sets, ["x"])
    with pytest.raises(UserError, match="asks for 9 examples"):
        everyday_questions(shots=(9,))
