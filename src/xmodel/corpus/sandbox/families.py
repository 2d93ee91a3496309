"""Families of exercises: what the question sets ask, and what the training text practises with other names and numbers.

A family is a function of a `Draw` that returns an `Item`. Training documents print prompt + answer of items drawn in
the train split; the question sets take items of the dev and test splits and add wrong choices from the item's pool.
Here are the parts that both languages share; `families_en` and `families_zh` hold the words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from xmodel.corpus.sandbox.draw import Draw
from xmodel.corpus.sandbox.lexicon import ANIMALS, with_article
from xmodel.corpus.sandbox.tables import Row


class Item(NamedTuple):
    """`prompt + answer` is the solved exercise, to the letter. `pool` holds the answer and everything that may stand
    beside it as a choice; with more than four of them, the wrong choices are drawn."""

    prompt: str
    answer: str
    pool: Sequence[str]


Family = Callable[[Draw], Item]


def association(rows: Sequence[Row], end: str, templates: Sequence[str]) -> Family:
    """Exercises on a table: value first (so that every value is the answer equally often), then one of its cues.

    Templates may use {n} {he} {him} {his} (a person), {o} (another person), {k} (a pet), {t} (an invented thing) and
    {c} (the cue). `end` turns a value into a choice: " {}." in English, "{}。" in Chinese.
    """
    cues: dict[str, list[str]] = {}
    for cue, value in rows:
        cues.setdefault(value, []).append(cue)
    values = list(cues)
    pool = tuple(end.format(value) for value in values)

    def family(draw: Draw) -> Item:
        at = draw.below(len(values))
        person, other = draw.people(2)
        prompt = draw.pick(templates).format(
            n=person.name, he=person.he, him=person.him, his=person.his, o=other.name, k=draw.pet(), t=draw.thing(),
            c=draw.pick(cues[values[at]]),
        )  # fmt: skip
        return Item(prompt, pool[at], pool)

    return family


def either(*families: Family) -> Family:
    return lambda draw: draw.pick(families)(draw)


def animal_rows(field: str, language: str) -> list[Row]:
    """(kind of animal, its sound, food, home or group), kinds without one left out."""
    at = ("en", "zh").index(language)
    rows = []
    for animal in ANIMALS:
        value = getattr(animal, field)[at]
        if value:
            rows.append(Row(with_article(animal.en) if language == "en" else f"一{animal.measure}{animal.zh}", value))
    return rows


def two_numbers(draw: Draw) -> tuple[int, int]:
    """Two different two-digit numbers of this split, in any order."""
    while True:
        a, b = draw.between(10, 99), draw.between(10, 99)
        if a != b and draw.admits("numbers", min(a, b), max(a, b)):
            return a, b


def two_addends(draw: Draw) -> tuple[int, int]:
    """Two numbers of 1 to 9 whose sum belongs to this split, in any order."""
    while True:
        a, b = draw.between(1, 9), draw.between(1, 9)
        if draw.admits("sum", min(a, b), max(a, b)):
            return a, b


def two_ranks(draw: Draw, scale: Sequence[str], name: str) -> tuple[int, int]:
    """Two different places on a scale (small to big, slow to fast) whose comparison belongs to this split."""
    while True:
        a, b = draw.below(len(scale)), draw.below(len(scale))
        if a != b and draw.admits(name, min(a, b), max(a, b)):
            return a, b


def a_shift(draw: Draw, cycle: Sequence[str], shifts: Sequence[int], events: Sequence[str]) -> tuple[int, int, str]:
    """A place in a cycle (of days or months), a number of steps and an event, as a combination of this split."""
    while True:
        at, shift, event = draw.below(len(cycle)), draw.pick(shifts), draw.below(len(events))
        if draw.admits("shift", len(cycle), at, shift, event):
            return at, shift, events[event]


def close_numbers(draw: Draw, answer: int) -> list[int]:
    """Four neighbouring numbers, the answer in any place among them, so that the middle is no better a guess."""
    first = max(0, answer - draw.below(4))
    return [first, first + 1, first + 2, first + 3]
