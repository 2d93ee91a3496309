"""Clean documents: which kinds of text a part has, in which shares, and how paragraphs become a document."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from xmodel.corpus.sandbox import families_en, families_zh, parallel, prose_en, prose_zh
from xmodel.corpus.sandbox.draw import Draw
from xmodel.corpus.sandbox.families import Family, Item
from xmodel.corpus.sandbox.snippets import snippet

PARTS = ("en", "zh", "parallel")
LONGEST = 1200
_TARGETS = {"en": (230, 800), "zh": (205, 420), "parallel": (230, 620)}  # characters at which a document ends

Writer = Callable[[Draw], str]
QUESTION_FAMILIES: dict[str, dict[str, dict[str, Family]]] = {
    "en": {"facts": families_en.FACTS, "commonsense": families_en.COMMONSENSE, "cloze": families_en.CLOZE},
    "zh": {"facts": families_zh.FACTS, "commonsense": families_zh.COMMONSENSE, "cloze": families_zh.CLOZE},
}


def _solve(item: Item) -> str:
    return item.prompt + item.answer


def _exercises(language: str) -> tuple[Writer, Writer, Writer]:
    """Exercises of all families mixed, several of one family, and reading alone; a blank line between two.

    Reading is practised with short passages too: what one learns from two facts helps with four.
    """
    every = [family for families in QUESTION_FAMILIES[language].values() for family in families.values()]
    reading = (families_en if language == "en" else families_zh).READING

    def mixed(draw: Draw) -> str:
        return "\n\n".join(_solve(family(draw)) for family in draw.sample(every, 4))

    def alike(draw: Draw) -> str:
        family = draw.pick(every)
        return "\n\n".join(_solve(family(draw)) for _ in range(3))

    def read(draw: Draw) -> str:
        family = draw.pick(reading)
        return "\n\n".join(_solve(family(draw, draw.between(2, 4))) for _ in range(3))

    return mixed, alike, read


def _writers(language: str) -> list[tuple[float, Writer]]:
    prose = prose_en if language == "en" else prose_zh
    mixed, alike, read = _exercises(language)
    return [
        (0.28, mixed), (0.06, alike), (0.14, read), (0.06, prose.animal), (0.06, prose.country), (0.02, prose.science), (0.03, prose.calendar),
        (0.10, prose.knowledge), (0.09, prose.story), (0.05, prose.dialogue), (0.02, prose.howto), (0.04, prose.numbers), (0.03, prose.portrait),
        (0.02, snippet),
    ]  # fmt: skip


def _cumulative(writers: list[tuple[float, Writer]]) -> list[tuple[float, Writer]]:
    total = sum(weight for weight, _ in writers)
    reached, table = 0.0, []
    for weight, writer in writers:
        reached += weight / total
        table.append((reached, writer))
    return table


_WRITERS = {
    "en": _cumulative(_writers("en")),
    "zh": _cumulative(_writers("zh")),
    "parallel": _cumulative([(0.86, parallel.translations), (0.07, parallel.glossary), (0.07, parallel.atlas)]),
}


def train_draw(part: str) -> Draw:
    return Draw("train", "zh" if part == "zh" else "en")


def write(draw: Draw, part: str) -> str:
    """One clean document of 200 to 1,200 characters: paragraphs of one kind until the length drawn is reached."""
    kind = draw.random()
    writer = next(writer for share, writer in _WRITERS[part] if kind < share or share > 0.999999)
    low, high = _TARGETS[part]
    target = draw.between(low, high)
    text = writer(draw)
    while len(text) < target:
        longer = f"{text}\n\n{writer(draw)}"
        if len(longer) > LONGEST:
            break
        text = longer
    return text


def clean(part: str, seed: int, start: int = 0) -> Iterator[str]:
    """The endless stream of clean documents of a part."""
    draw, stream, i = train_draw(part), PARTS.index(part), start
    while True:
        draw.restart(seed, stream, i)
        yield write(draw, part)
        i += 1
