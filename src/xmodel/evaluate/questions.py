"""Question sets: multiple-choice items, a JSON object a line, in two splits: `test` is scored, `dev` gives examples."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xmodel.errors import UserError

TRANSLATION = "translation_"  # sets whose names start so carry a reference translation for generation


@dataclass(frozen=True)
class Item:
    """One question. What is scored is `prompt + choice`, joined exactly as they are."""

    id: str
    prompt: str
    choices: tuple[str, ...]
    answer: int  # index of the right choice
    source: str = ""  # of a translation: the text to translate
    reference: str = ""  # of a translation: a right translation

    @property
    def solved(self) -> str:
        """The item with its answer, as an example in front of another prompt (few-shot)."""
        return self.prompt + self.choices[self.answer] + "\n\n"


@dataclass
class QuestionSet:
    """The items of one set."""

    name: str
    language: str
    test: list[Item] = field(default_factory=list)
    dev: list[Item] = field(default_factory=list)

    def prompt(self, item: Item, shots: int) -> str:
        """The item's prompt behind `shots` solved dev items.

        Which ones depends on the item alone (not on its place or on `limit`), and the examples of k shots are among
        those of k + 1, so that a curve over shots compares like with like.
        """
        examples = list(self.dev)
        random.Random(item.id).shuffle(examples)
        return "".join(example.solved for example in reversed(examples[:shots])) + item.prompt


def chance(items: Sequence[Item]) -> float:
    """Expected accuracy of guessing uniformly."""
    return sum(1 / len(item.choices) for item in items) / len(items)


def load_questions(folder: Path, shots: Sequence[int] = (0,), limit: int | None = None) -> list[QuestionSet]:
    """All question sets of a folder of `*.jsonl` files, or of one such file, sorted by name.

    Args:
        shots: numbers of examples that will be asked for; every set must have enough dev items.
        limit: keep only the first `limit` test items of each set.

    Raises:
        UserError: no question files, a line that is not a question (file and line are named), or too few dev items.
    """
    paths = [folder] if folder.is_file() else sorted(folder.glob("*.jsonl"))
    if not paths:
        raise UserError(f"{folder}: no question sets (*.jsonl); the corpus stage writes them")
    sets: dict[str, QuestionSet] = {}
    for path in paths:
        with open(path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    _add(sets, line, f"{path}, line {number}")
    for questions in sets.values():
        if not questions.test:
            raise UserError(f'{folder}: set {questions.name} has no item with split "test"')
        if max(shots, default=0) > len(questions.dev):
            raise UserError(
                f"evaluate.shots asks for {max(shots)} examples, but set {questions.name} has only "
                f'{len(questions.dev)} items with split "dev" in {folder}'
            )
        questions.test = questions.test[:limit]
    return [sets[name] for name in sorted(sets)]


def _add(sets: dict[str, QuestionSet], line: str, where: str) -> None:
    try:
        row: dict[str, Any] = json.loads(line)
        item = Item(
            id=row["id"],
            prompt=row["prompt"],
            choices=tuple(row["choices"]),
            answer=row["answer"],
            source=row.get("source", ""),
            reference=row.get("reference", ""),
        )
        name, language, split = row["set"], row["language"], row["split"]
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    except KeyError as error:
        raise UserError(f"{where}: a question needs the field {error}") from None
    except TypeError:
        raise UserError(f"{where}: a question is an object with a list of choices") from None
    texts = (item.id, item.prompt, item.source, item.reference, name, language, *item.choices)
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: id, set, language, prompt, choices, source and reference have to be strings")
    if len(item.choices) < 2 or not all(item.choices):
        raise UserError(f"{where}: a question needs two choices or more, none of them empty")
    if not isinstance(item.answer, int) or not 0 <= item.answer < len(item.choices):
        raise UserError(f"{where}: answer {item.answer!r} is not an index into {len(item.choices)} choices")
    if split not in ("test", "dev"):
        raise UserError(f'{where}: split {split!r} is neither "test" nor "dev"')
    if name.startswith(TRANSLATION) and not item.reference:
        raise UserError(f"{where}: an item of set {name} needs a reference translation")
    questions = sets.setdefault(name, QuestionSet(name, language))
    if questions.language != language:
        raise UserError(f"{where}: set {name} is in {questions.language}, this item in {language}")
    (questions.test if split == "test" else questions.dev).append(item)
