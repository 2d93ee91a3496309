"""Question files: what is refused, and which examples an item gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xmodel.errors import UserError
from xmodel.evaluate.questions import chance, load_questions


def row(number: int, split: str = "test", **changes: Any) -> dict[str, Any]:
    fields = {
        "id": f"facts_en/{split}/{number}",
        "set": "facts_en",
        "split": split,
        "language": "en",
        "prompt": f"Question {number}:",
        "choices": [" a", " b", " c", " d"],
        "answer": number % 4,
    }
    return fields | changes


def write(folder: Path, *rows: Any) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in rows]
    (folder / "facts_en.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_sets_splits_and_limit(tmp_path: Path) -> None:
    folder = write(tmp_path / "q", *(row(n) for n in range(5)), *(row(n, "dev") for n in range(3)))
    (folder / "cloze_zh.jsonl").write_text(
        json.dumps(row(0, set="cloze_zh", language="zh", choices=["是", "否"], answer=1)) + "\n"
    )
    cloze, facts = load_questions(folder, limit=2)
    assert (cloze.name, cloze.language, facts.name) == ("cloze_zh", "zh", "facts_en")
    assert [item.id for item in facts.test] == ["facts_en/test/0", "facts_en/test/1"]
    assert len(facts.dev) == 3
    assert chance(facts.test) == 0.25
    assert chance([*facts.test, *cloze.test, *cloze.test]) == pytest.approx(0.375)


def test_examples_depend_on_the_item_alone_and_are_nested(tmp_path: Path) -> None:
    many = load_questions(write(tmp_path / "a", *(row(n) for n in range(9)), *(row(n, "dev") for n in range(8))), (5,))[
        0
    ]
    few = load_questions(write(tmp_path / "b", row(4), *(row(n, "dev") for n in range(8))), (5,))[0]
    assert many.prompt(many.test[4], 3) == few.prompt(few.test[0], 3)
    assert many.prompt(many.test[4], 0) == "Question 4:"
    three = many.prompt(many.test[4], 3)
    assert many.prompt(many.test[4], 4).endswith(three)
    parts = three.split("\n\n")
    assert len(parts) == 4
    assert parts[-1] == "Question 4:"
    solved = [f"Question {n}:{' ' + 'abcd'[n % 4]}" for n in range(8)]
    assert set(parts[:3]) <= set(solved)
    assert len({many.prompt(item, 3).rsplit("\n\n", 1)[0] for item in many.test}) > 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{not json", r"facts_en.jsonl, line 2: not JSON"),
        ({"id": "x"}, r"line 2: a question needs the field 'prompt'"),
        ("[1]", r"line 2: a question is an object"),
        (row(1, answer=4), r"answer 4 is not an index into 4 choices"),
        (row(1, answer="1"), r"answer '1' is not an index"),
        (row(1, answer=-1), r"answer -1 is not an index"),
        (row(1, choices=[" a"]), r"two choices or more"),
        (row(1, choices=[" a", ""]), r"none of them empty"),
        (row(1, choices=[" a", 3]), r"have to be strings"),
        (row(1, choices=None), r"a list of choices"),
        (row(1, split="train"), r"split 'train' is neither"),
        (row(1, language="zh"), r"set facts_en is in en, this item in zh"),
        (row(1, set="translation_en_zh"), r"needs a reference translation"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, bad: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_questions(write(tmp_path / "q", row(0), bad))


def test_missing_files_and_examples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no question sets"):
        load_questions(tmp_path / "nothing")
    with pytest.raises(UserError, match=r'facts_en has no item with split "test"'):
        load_questions(write(tmp_path / "a", row(0, "dev")))
    with pytest.raises(UserError, match=r"evaluate.shots asks for 3 examples, but set facts_en has only 1"):
        load_questions(write(tmp_path / "b", row(0), row(0, "dev")), (0, 3))
