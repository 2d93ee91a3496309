"""The embedded sandbox corpus: a little world, described in English and in Chinese, with questions about it.

Real facts (countries, elements, planets, calendar, units, animals, everyday knowledge) and invented people, pets, towns
and things; exercises in the very formats of the question sets; parallel sentences; Python snippets. All of it is written
here, needs the standard library only, and is a pure function of (part, seed, index), so that any amount can be streamed.

    draw.py                              chance, names, and the split that keeps questions out of training text
    tables.py  lexicon.py  atlas.py      what is known in this world, in both languages
    families.py  families_en/_zh.py      exercises: the questions that are asked and practised
    prose_en/_zh.py  snippets.py         articles, stories, dialogues, how-tos, worked numbers, programs
    parallel.py                          translations
    compose.py  questions.py  dirt.py    documents, question sets, labelled dirt
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from xmodel.corpus.sandbox.compose import PARTS, train_draw, write
from xmodel.corpus.sandbox.dirt import DIRT_CLASSES, class_of, soil
from xmodel.corpus.sandbox.questions import SETS, question_sets

__all__ = ["DIRT_CLASSES", "PARTS", "SETS", "Document", "documents", "question_sets"]

_MILLION = 1_000_000


class Document(NamedTuple):
    """`label` is "clean" or the class of dirt; `origin` the id of the document that a copy was made from, or ""."""

    id: str
    text: str
    label: str
    origin: str


def documents(part: str, count: int, seed: int, dirt: float = 0.0, first: int = 0) -> Iterator[Document]:
    """Documents `first` to `count` of a part, of 200 to 1,200 characters each where they are clean.

    `dirt` (in [0, 1)) is the share of documents that are dirt instead, spread evenly, in the shares of `DIRT_CLASSES`.
    Document i is a pure function of (part, seed, dirt, i); a document that is clean at two levels of dirt is the same.
    """
    stream = PARTS.index(part)
    level = round(dirt * _MILLION)
    assert 0 <= level < _MILLION, f"dirt must be in [0, 1), not {dirt}"
    draw = train_draw(part)

    def clean(i: int) -> str:
        draw.restart(seed, stream, i)
        return write(draw, part)

    def is_dirt(i: int) -> bool:
        return (i + 1) * level // _MILLION > i * level // _MILLION

    for i in range(first, count):
        if not is_dirt(i):
            yield Document(f"{part}-{i}", clean(i), "clean", "")
            continue
        label = class_of(i * level // _MILLION)
        origin = ""
        original = ""
        if "duplicate" in label:
            draw.restart(seed, stream + len(PARTS), i)
            source = draw.below(i)
            while is_dirt(source):
                source = draw.below(i)
            origin, original = f"{part}-{source}", clean(source)
        draw.restart(seed, stream + 2 * len(PARTS), i)
        yield Document(f"{part}-{i}", soil(draw, label, part, seed, original), label, origin)
