"""Held-out questions in training text: the search against a naive one, the rule, and the sandbox's leaks."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodel.corpus import sandbox
from xmodel.corpus.batches import raw_batch
from xmodel.corpus.decontaminate import decontamination
from xmodel.corpus.folding import folding
from xmodel.corpus.search import find, index_phrases

SMALL = st.text("ab1 中", min_size=1, max_size=30).map(str.encode)


def naive(document: bytes, phrase: bytes) -> int:
    def is_word(byte: int) -> bool:
        return chr(byte) in "abcdefghijklmnopqrstuvwxyz0123456789"

    found = 0
    for first in range(len(document) - len(phrase) + 1):
        last = first + len(phrase)
        if document[first:last] != phrase:
            continue
        inside = first > 0 and is_word(document[first]) and is_word(document[first - 1])
        inside |= last < len(document) and is_word(document[last - 1]) and is_word(document[last])
        found += not inside
    return found


@settings(max_examples=300, deadline=None)
@given(
    st.lists(SMALL, min_size=1, max_size=6, unique=True), st.lists(st.lists(SMALL, max_size=4), min_size=1, max_size=4)
)
def test_search_finds_what_a_naive_search_finds(phrases, pieces):
    documents = [b"".join(part) + phrases[0] + b"".join(part) for part in pieces]
    covered, firsts = find(pa.array([b"a front", *documents], pa.binary())[1:], index_phrases(phrases))
    for document, bytes_covered, first in zip(documents, covered, firsts, strict=True):
        assert bytes_covered == sum(naive(document, phrase) * len(phrase) for phrase in phrases)
        assert (first >= 0) == (bytes_covered > 0)
        assert first < 0 or naive(document, phrases[first])


QUESTION = {
    "split": "test",
    "prompt": "Question: Konia wants to write a letter. What does she need?\nAnswer:",
    "choices": [" a comb.", " a pen."],
    "answer": 1,
}
SHORT = {"split": "test", "prompt": "17 + 25 =", "choices": [" 42", " 41"], "answer": 0}
CHINESE = {
    "split": "test",
    "prompt": "问题：何亮想扫地。他需要什么？\n答案：",
    "choices": ["水壶。", "扫帚。"],
    "answer": 1,
}
EXAMPLE = QUESTION | {
    "split": "dev",
    "prompt": "Question: Bela wants to cut the long red paper. What does she need?\nAnswer:",
}


def contaminated(texts: list[str]) -> list[bool]:
    batch = folding(raw_batch([str(number) for number in range(len(texts))], texts))
    stage = decontamination([QUESTION, SHORT, CHINESE, EXAMPLE])
    return [reason == "contaminated" for reason in stage(batch)["reason"].to_pylist()]


def test_the_whole_prompt_in_any_spelling_is_caught():
    assert all(
        contaminated(
            [
                "A text.\n\nQuestion: Konia wants to write a letter. What does she need?\nAnswer: a pen.\n\nMore.",
                "QUESTION:  konia wants\nto write a letter. What does she need? Answer: a comb",
                "前面的话问题:何亮想扫地。他需要什么?\n\n答案:扫帚。",
                "So 17 + 25 = 42, of course.",
            ]
        )
    )


def test_parts_and_examples_and_short_prompts_alone_are_not():
    texts = [
        "Konia wants to write a letter. What does she need?",
        "Question: Konia wants to write a letter.",
        EXAMPLE["prompt"] + EXAMPLE["choices"][1],
        "What is 17 + 25 = ? Not 41.",
        "117 + 25 = 42 is wrong, and so is 17 + 25 = 421.",
        "",
    ]
    assert contaminated(texts) == [False] * len(texts)


def test_without_questions_nothing_happens():
    batch = folding(raw_batch(["0"], ["text"]))
    assert decontamination([EXAMPLE])(batch) is batch


@pytest.mark.parametrize("part", ["en", "zh", "parallel"])
def test_every_leak_of_the_sandbox_is_caught_and_nothing_else(part):
    questions = [item for items in sandbox.question_sets(5).values() for item in items]
    made = list(sandbox.documents(part, 3000, 5, dirt=0.3))
    batch = folding(raw_batch([document.id for document in made], [document.text for document in made]))
    dropped = [reason is not None for reason in decontamination(questions)(batch)["reason"].to_pylist()]
    leaked = [document.label == "leaked_question" for document in made]
    assert sum(leaked) > 40
    assert dropped == leaked
