"""Held-out question sets of the same world: the ruler. Nothing here depends on how the training text is composed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from xmodel.corpus.sandbox import parallel
from xmodel.corpus.sandbox.compose import QUESTION_FAMILIES
from xmodel.corpus.sandbox.draw import Draw
from xmodel.corpus.sandbox.families import Family

SETS = (
    "commonsense_en",
    "commonsense_zh",
    "facts_en",
    "facts_zh",
    "cloze_en",
    "cloze_zh",
    "translation_en_zh",
    "translation_zh_en",
)
CHOICES = 4
_STREAM = 16  # question sets draw from streams 16 and up; documents from those below


class Question(NamedTuple):
    """A question before its choices are put in order; `extra` holds further fields of the set."""

    prompt: str
    right: str
    wrong: list[str]
    extra: dict[str, str]


Maker = Callable[[Draw], Question]


def _multiple_choice(family: Family) -> Maker:
    def make(draw: Draw) -> Question:
        item = family(draw)
        wrong = [choice for choice in item.pool if choice != item.answer]
        return Question(item.prompt, item.answer, draw.sample(wrong, min(CHOICES - 1, len(wrong))), {})

    return make


def _translation(to: str) -> Maker:
    def make(draw: Draw) -> Question:
        at, grid = parallel.alternatives(draw)
        pairs = [parallel.render(at, fillings) for fillings in grid]
        source, reference = (pairs[0].en, pairs[0].zh) if to == "zh" else (pairs[0].zh, pairs[0].en)
        prompt, right = parallel.prompt(pairs[0], to)
        wrong = draw.shuffled([parallel.prompt(pair, to)[1] for pair in pairs[1:]])
        return Question(prompt, right, wrong, {"source": source, "reference": reference})

    return make


def _makers(name: str) -> tuple[str, list[Maker]]:
    """The language of a set's answers, and what makes its items, each in its turn."""
    if name.startswith("translation_"):
        to = name[-2:]
        return to, [_translation(to)]
    kind, language = name.split("_")
    return language, [_multiple_choice(family) for family in QUESTION_FAMILIES[language][kind].values()]


@cache
def _items(name: str, split: str, count: int, seed: int) -> tuple[dict, ...]:
    """The first `count` items: item i does not depend on how many are asked for.

    The families of the set take turns. The place of the right answer is uniform in every twelve turns of a family.
    """
    language, makers = _makers(name)
    draw = Draw(split, language)
    stream = _STREAM + 4 * SETS.index(name) + 2 * (split == "dev")
    seen: set[str] = set()
    items: list[dict] = []
    attempt = 0
    while len(items) < count:
        turn, family = divmod(len(items), len(makers))
        draw.restart(seed, stream, attempt)
        attempt += 1
        question = makers[family](draw)
        choices = list(question.wrong)
        if question.prompt in seen or question.right in choices or len(set(choices)) < len(choices):
            continue
        seen.add(question.prompt)
        draw.restart(seed, stream + 1, turn // 12 * len(makers) + family)
        answer = draw.shuffled(range(12))[turn % 12] % (len(choices) + 1)
        choices.insert(answer, question.right)
        items.append(
            {
                "id": f"{name}/{split}/{len(items)}",
                "set": name,
                "split": split,
                "language": language,
                "prompt": question.prompt,
            }
            | {"choices": choices, "answer": answer}
            | question.extra
        )
    return tuple(items)


def question_sets(seed: int, test: int = 200, dev: int = 32) -> dict[str, list[dict]]:
    """Multiple-choice items of every set in `SETS`, the test items first.

    Fields: id, set, split ("test" or "dev": few-shot examples), language ("en" or "zh"), prompt, choices (strings that
    continue the prompt exactly as they are), answer (index); translations also have source and reference. The names and
    combinations of test items occur neither in dev items nor in any clean document, whatever the seeds.
    """
    return {
        name: [dict(item) for item in _items(name, "test", test, seed) + _items(name, "dev", dev, seed)]
        for name in SETS
    }


@cache
def leakable(seed: int, part: str) -> tuple[str, ...]:
    """Solved test items that a leak into `part` gives away."""
    names = [
        name
        for name in SETS
        if name.startswith("translation") == (part == "parallel") and (part == "parallel" or name.endswith(part))
    ]
    return tuple(
        item["prompt"] + item["choices"][item["answer"]] for name in names for item in _items(name, "test", 200, seed)
    )
