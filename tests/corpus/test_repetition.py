"""Repeated n-grams and function words: against a slow reading of the definitions, and against datatrove's figures."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodel.corpus import repetition as module
from xmodel.corpus.languages import ENGLISH, LANGUAGES, OTHERS, STOP_WORDS
from xmodel.corpus.measures import Measure, class_table, measure
from xmodel.corpus.repetition import Repetition, repetition

KINDS = {Measure.LATIN: "a", Measure.KANA: "a", Measure.FOREIGN: "a", Measure.DIGITS: "a", Measure.HAN: "h"}


def units_of(text: str) -> list[str]:
    marks = "".join(
        "_" if character == "_" else KINDS.get(Measure(class_table()[ord(character)] & 15), " ") for character in text
    )
    small = "".join(character.lower() if character.isascii() else character for character in text)
    return [small[found.start() : found.end()] for found in re.finditer("h|a[a_]*", marks)]


def slow_repetition(text: str) -> dict[str, int]:
    units = units_of(text)
    counts = dict.fromkeys((name.name for name in Repetition), 0)
    counts["UNITS"], counts["UNIT_CHARACTERS"] = len(units), sum(map(len, units))
    for n in (2, 3, 4):
        found = Counter(tuple(units[start : start + n]) for start in range(len(units) - n + 1))
        most, length = max(((number, sum(map(len, ngram))) for ngram, number in found.items()), default=(0, 0))
        counts[f"TOP_{n}"] = most * length if most > 1 else 0
    for n in range(5, 11):
        seen, start = set(), 0
        while start <= len(units) - n:
            ngram = tuple(units[start : start + n])
            counts[f"DUPLICATE_{n}"] += sum(map(len, ngram)) if ngram in seen else 0
            start += n if ngram in seen else 1
            seen.add(ngram)
    english = set(ENGLISH.split())
    counts["ENGLISH_WORDS"] = sum(unit in english for unit in units)
    counts["OTHER_WORDS"] = max(
        sum(unit in set(words.split()) - english for unit in units) for words in OTHERS.values()
    )
    counts["STOP_WORDS_EN"] = len(set(units) & set(STOP_WORDS["en"].split()))
    counts["STOP_WORDS_ZH"] = len(set(units) & set(STOP_WORDS["zh"].split()))
    return counts


PIECES = st.sampled_from(
    [*"abAZ12", " ", " ", "的", "是", "中", "_", "é", "か", "，", ". ", "\n", "the ", "que ", "x_1 "]
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(PIECES, max_size=60).map("".join), min_size=1, max_size=4))
def test_counts_equal_the_definitions(texts):
    texts = ["前 front front front", *texts]
    expected = np.array([[slow_repetition(text)[name.name] for name in Repetition] for text in texts])
    np.testing.assert_array_equal(repetition(pa.array(texts)), expected)
    np.testing.assert_array_equal(repetition(pa.array(texts)[1:]), expected[1:])


# What datatrove 0.10.1 says of these documents of ../shared/text (file, number): DocStats, LineStats(ignore_empty_lines)
# for bullets, find_duplicates of lines and paragraphs without their white space, find_top_duplicate of n-grams joined
# without a space and find_all_duplicate, both of the units as defined here, in small letters. Documents where two
# different n-grams have the same letters were not taken: datatrove calls these equal.
DATATROVE = {
    ("en-peps", 60): ((13471, 567, 106, 41, 529, 5, 75), (12545, 66825), (618, 312, 240), (3070, 1569, 964, 472, 259, 252)),
    ("en-peps", 120): ((1506, 75, 6, 2, 39, 0, 0), (1385, 6963), (154, 42, 48), (288, 274, 205, 206, 140, 129)),
    ("en-cpp-docs", 40): ((71, 8, 2, 1, 3, 0, 0), (92, 471), (54, 48, 38), (0, 0, 0, 0, 0, 0)),
    ("zh-modern", 7): ((426, 0, 0, 0, 0, 0, 0), (12443, 12443), (118, 48, 44), (535, 270, 140, 64, 36, 20)),
    ("zh-iotdb-docs", 5): ((490, 109, 1, 1, 27, 0, 0), (2581, 4393), (138, 81, 108), (1153, 968, 722, 740, 700, 675)),
}  # fmt: skip
LINES = ("SPACES", "DIGITS", "BULLET_LINES", "REPEATED_LINES", "REPEATED_CHARACTERS", "REPEATED_PARAGRAPHS")
LINES = (*LINES, "REPEATED_PARAGRAPH_CHARACTERS")


@pytest.mark.parametrize(("name", "number"), DATATROVE)
def test_counts_equal_those_of_datatrove(name, number):
    path = Path(__file__).parents[2] / f"../shared/text/{name}.jsonl.gz"
    if not path.exists():
        pytest.skip("../shared/text is not here")
    with gzip.open(path, "rt") as stream:
        text = pa.array([json.loads(line)["text"] for line, _ in zip(stream, range(number + 1), strict=False)][-1:])
    lines, units, top, duplicate = DATATROVE[name, number]
    assert tuple(measure(text)[0, [Measure[kind] for kind in LINES]]) == lines
    counts = repetition(text)[0]
    assert tuple(counts[[Repetition.UNITS, Repetition.UNIT_CHARACTERS]]) == units
    assert tuple(counts[Repetition.TOP_2 : Repetition.TOP_4 + 1]) == top
    assert tuple(counts[Repetition.DUPLICATE_5 : Repetition.DUPLICATE_10 + 1]) == duplicate


def test_of_a_very_long_document_the_beginning_is_looked_at():
    long = "one two three four five six seven " * 200_000
    counts = repetition(pa.array(["a b", long]))[1]
    assert counts[Repetition.UNITS] == module.MOST_UNITS
    assert counts[Repetition.DUPLICATE_10] > 0.99 * counts[Repetition.UNIT_CHARACTERS]


def test_nothing_in_nothing():
    assert repetition(pa.array([], pa.string())).shape == (0, len(Repetition))
    assert not repetition(pa.array(["", "...", "\n"])).any()


def test_lists_of_function_words_are_as_they_say():
    """Lower case, in one normal form, no word twice, no variables of code; a bit for each language."""
    assert len(LANGUAGES) == len(set(LANGUAGES)) <= 32
    for words in (ENGLISH, *OTHERS.values()):
        listed = words.split()
        assert len(listed) == len(set(listed)) > 30, [word for word in listed if listed.count(word) > 1]
        assert all(word == unicodedata.normalize("NFC", word.lower()) for word in listed)
    assert not any(len(word) == 1 and word.isascii() for words in OTHERS.values() for word in words.split())
