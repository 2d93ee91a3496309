"""Filters: the counts against a slow reading of the same definitions, every rule by an example, real text kept."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xmodel.corpus import filters
from xmodel.corpus.batches import raw_batch
from xmodel.corpus.folding import folding
from xmodel.corpus.funnel import MEANT_FOR, Counts, score_dirt
from xmodel.corpus.lines import cleaning
from xmodel.corpus.measures import BULLETS, COMMON, ENDINGS, GBK_DAMAGE, Measure, measure
from xmodel.corpus.sources import read
from xmodel.recipe.settings import ChineseFilters, EnglishFilters, Filters, Source

ENGLISH = "The lighthouse keeper climbed the stairs every evening and lit the lamp, because ships were still at sea. "
CHINESE = "每天傍晚，守塔人都会爬上楼梯，点亮灯火，因为海上还有船只没有回来。孩子们在沙滩上看着灯光，"


def slow_measure(text: str) -> dict[str, int]:
    """The definitions of `Measure`, character by character, with regular expressions where the kernel has states."""
    counts = dict.fromkeys((measure.name for measure in Measure), 0)
    for character in text:
        category, name = unicodedata.category(character), unicodedata.name(character, "")
        if ord(character) >= 0x10000:
            kind = "HAN" if _is_han(character) else "SYMBOLS"
        elif character.isspace():
            kind = "SPACES"
        elif category == "Cc" or character == "\ufffd" or character in GBK_DAMAGE:
            kind = "DAMAGED"
        elif category == "Nd":
            kind = "DIGITS"
        elif character in COMMON:
            kind = "PUNCTUATION"
        elif _is_han(character):
            kind = "HAN"
        elif category[0] in "LM":
            kana = "KATAKANA" in name or "HIRAGANA" in name
            kind = "KANA" if kana else "LATIN" if "LATIN" in name or category == "Mn" else "FOREIGN"
        else:
            kind = "SYMBOLS"
        counts[kind] += 1
    images = "".join(bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0xC0))
    tail = f"[\x80-\xbf{re.escape(images)}]"
    misread = re.findall(f"[\xc2-\xdf]{tail}|[\xe0-\xef]{tail}{{2}}|[\xf0-\xf4]{tail}{{3}}", text)
    counts["MISREAD"] = sum(map(len, misread))
    for word in "".join(" " if _is_han(character) else character for character in text).split():
        counts["WORDS"] += any(character not in COMMON for character in word)
        counts["ALPHABETIC_WORDS"] += any(_is_letter(character) for character in word)
    counts["HASHES"] = text.count("#")
    seen: set[str] = set()
    paragraphs: list[str] = [""]
    for line in text.split("\n"):
        visible = "".join(line.split())
        if not visible:
            paragraphs.append("")
            continue
        paragraphs[-1] += "\n" + visible
        counts["LINES"] += 1
        han = sum(map(_is_han, visible))
        item = len(line.split()) <= 4 and len(visible) + 3 * han <= 24 and visible[-1] not in COMMON
        counts["ITEM_LINES"] += item
        counts["BULLET_LINES"] += visible[0] in BULLETS
        counts["ENDED_LINES"] += visible[-1] in ENDINGS
        counts["ELLIPSIS_LINES"] += re.search(r"(…\.*|\.{3})$", visible) is not None
        counts["SHORT_LINES"] += len(visible) + han <= 30
        runs = re.findall(r"…|(?<![.…])\.{3}", visible)
        counts["ELLIPSES"] += len(runs)
        counts["REPEATED_LINES"] += visible in seen
        counts["REPEATED_CHARACTERS"] += len(visible) if visible in seen else 0
        seen.add(visible)
    met: set[str] = set()
    for paragraph in filter(None, paragraphs):
        counts["PARAGRAPHS"] += 1
        counts["REPEATED_PARAGRAPHS"] += paragraph in met
        counts["REPEATED_PARAGRAPH_CHARACTERS"] += len(paragraph.replace("\n", "")) if paragraph in met else 0
        met.add(paragraph)
    return counts


def _is_letter(character: str) -> bool:
    if character in GBK_DAMAGE | COMMON:
        return False
    return _is_han(character) or (ord(character) < 0x10000 and unicodedata.category(character)[0] in "LM")


def _is_han(character: str) -> bool:
    if ord(character) >= 0x10000:
        return 0x20000 <= ord(character) < 0x40000
    named = unicodedata.name(character, "").startswith("CJK") and unicodedata.category(character) == "Lo"
    return (named or character in "〇々") and character not in GBK_DAMAGE


PIECES = st.sampled_from(
    [
        *"aZé中文かカЖ0٣,.。！|+😀𠀀\u3000\n\n\n\t \ufffd\x00锛〇々-•",
        "Ã©",
        "â€™",
        "ä¸\xad",
        "ab cd",
        "同一行\n",
        "a b c d e\n",
        "...",
        "…",
        "\n\n",
        "# x。",
        "A paragraph of more than thirty characters.\n\n",
    ]
)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.lists(PIECES, max_size=40).map("".join), min_size=1, max_size=4))
@example(["", "\n", "Ã", "Ã©", "ÃÃ©", "â€", "ðŸ˜€"])
def test_counts_equal_the_definitions(texts):
    # A slice, so that the offsets of the Arrow buffers do not begin at zero.
    column = pa.array(["前 front", *texts])[1:]
    expected = np.array([[slow_measure(text)[kind.name] for kind in Measure] for text in texts])
    np.testing.assert_array_equal(measure(column), expected)


def verdicts(texts: list[str], stated="auto", **changed) -> tuple[list[str | None], list[str]]:
    batch = folding(raw_batch([str(number) for number in range(len(texts))], texts))
    batch = filters.filtering(batch, dataclasses.replace(Filters(), **changed), stated)
    return batch["reason"].to_pylist(), batch["language"].to_pylist()


BAD = {
    "too_short": ["", "ok", "见上图", "Click here to read more."],
    "mojibake": [CHINESE.encode().decode("latin-1"), CHINESE.encode().decode("gb18030", "replace"), ENGLISH.replace("e", "\ufffd")],
    "symbols": ["#$%^&*~`{}|\\<>" * 20, "★☆◆◇■□ → ← " * 10],
    "digits": ["138 0013 8000, 139 1234 5678, 2024-01-02 " * 5 + "tel"],
    "few_letters": [". . . , , , - - - 1 2 3 " * 10],
    "wrong_script": ["Маленькая кошка спит под столом. " * 5, "ねこがいすのそばでねています。" * 5, "작은 고양이가 자고 있습니다. " * 5],
    "repeated_lines": ["\n".join([ENGLISH.strip()] * 8), "\n".join([CHINESE] * 8)],
    "list": ["\n".join(f"- {word} {number}" for number, word in enumerate(["apple", "boat", "cup", "door", "egg", "fish", "gate", "hat", "ink", "jar"]))],
    "boilerplate": [
        "Home | About us | Contact us | Log in | Sign up | Terms of use\nWe use cookies. Privacy policy. All rights reserved.",
        "首页 | 关于我们 | 联系我们 | 网站地图 | 隐私政策 | 免责声明\n版权所有，未经许可不得转载。",
    ],
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD)
def test_each_rule_drops_what_it_is_for(reason):
    assert set(verdicts(BAD[reason])[0]) == {reason}


def test_too_long_and_stated_language():
    assert verdicts([ENGLISH], max_characters=50)[0] == ["too_long"]
    assert verdicts([ENGLISH, CHINESE], stated="en") == ([None, "wrong_language"], ["en", "en"])
    assert verdicts([ENGLISH, CHINESE], stated="zh") == (["wrong_language", None], ["zh", "zh"])


def test_auto_decides_by_the_share_of_han():
    mixed = "English: She reads a book in the garden.\nChinese: 她在花园里看书。"
    assert verdicts([ENGLISH, CHINESE, mixed, ENGLISH + "(灯塔)"]) == ([None] * 4, ["en", "zh", "zh", "en"])


GOOD = [
    ENGLISH, CHINESE, "床前明月光，\n疑是地上霜。\n举头望明月，\n低头思故乡。", "She said “naïve café”, déjà vu – and left…  That was it.",
    "def add(a, b):\n    if a is None:\n        return b\n    return {**a, **b}\n", "| a | b |\n|---|---|\n| one | 1 |\n| two | 2 |\nA table of names and numbers.",
    "∀ε>0 ∃δ>0: |x−a|<δ ⇒ |f(x)−f(a)|<ε. This is the definition of continuity at a.",
    "庞涓自以为能力不及孙膑，于是暗中派人把孙膑找来。", "Buy milk\nCall Tom\nFix the lamp\n",
]  # fmt: skip


def test_what_a_person_would_keep_is_kept():
    assert verdicts(GOOD)[0] == [None] * len(GOOD)


PARTS = {"en": EnglishFilters, "zh": ChineseFilters}


def names_of(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def off(cls: type) -> dict[str, float]:
    """Values that nothing fails, as the reference of the settings has it."""
    return {
        name: 0 if name.startswith("min_") else 10**9 for name in names_of(cls) if name.startswith(("min_", "max_"))
    }


def test_a_row_of_the_table_for_each_threshold():
    shared = names_of(Filters) - {"chinese_share", "en", "zh", "lines"}
    assert {rule.setting for rule in filters.RULES} == shared | names_of(EnglishFilters) | names_of(ChineseFilters)
    assert len({rule.setting for rule in filters.RULES}) == len(filters.RULES)
    assert filters.threshold(Filters(), "min_mean_word_length", "zh") is None
    quiet = off(Filters) | {language: cls(**off(cls)) for language, cls in PARTS.items()}
    everything = [text for group in (*BAD.values(), *(texts for texts, _ in STRICT.values())) for text in group]
    assert set(verdicts(everything, **quiet)[0]) == {None}


WORDS = [
    "the",
    "lighthouse",
    "keeper",
    "of",
    "that",
    "little",
    "town",
    "climbed",
    "and",
    "lit",
    "a",
    "lamp",
    "to",
    "be",
    "seen",
    "with",
    "all",
    "have",
]
SALAD = " ".join(f"{word}{number}" for number in range(12) for word in WORDS)
PAGE = "\n\n".join(
    f"Paragraph {word} is about one of the things that the keeper of the lamp has seen." for word in WORDS[:12]
)

# For each rule that is set per language: texts that fail it at the value given, with all other rules off.
STRICT = {
    "min_words": (["The lamp was lit"], 5),
    "min_mean_word_length": ([" ".join("abcdefgh" * 9)], 2),
    "max_mean_word_length": (["https://example.org/" + "abcdefghij" * 9], 50),
    "min_alphabetic_share": (["12 13 14 15 a 16 17 " * 5], 0.3),
    "min_stop_words": (["lamp keeper tower " * 40, "灯塔守卫" * 40], 1),
    "max_hash_share": (["#lamp #sea # # " * 40], 0.9),
    "max_ellipsis_share": (["Read ... more … " * 80], 0.2),
    "max_ellipsis_lines": (["\n".join(f"News {word} …" for word in WORDS)], 0.4),
    "max_bullet_lines": (["\n".join(f"• {word} of the day" for word in WORDS)], 0.95),
    "min_ended_lines": (["\n".join(f"The {word} without end" for word in WORDS)], 0.12),
    "max_short_lines": (["\n".join(f"Short {word}." for word in WORDS)], 0.67),
    "min_mean_line_length": (["\n".join("abcdefghijkl"), "\n".join("灯塔守卫每天都上楼点灯")], 4),
    "min_mean_paragraph_length": (["\n\n".join(f"{word}." for word in WORDS)], 10),
    "min_punctuation_share": ([SALAD, "灯塔守卫" * 40], 0.01),
    "max_punctuation_share": (["lamp ------ lit ....... sea ,,,,,,,,,,"], 0.5),
    **{f"max_top_{n}gram_share": (["one lamp and a sea " * 40, "灯塔的灯光" * 40], 0.3) for n in (2, 3, 4)},
    **{f"max_duplicate_{n}gram_share": ([f"{ENGLISH} " * 40, CHINESE * 40], 0.95) for n in range(5, 11)},
}  # fmt: skip


@pytest.mark.parametrize("name", STRICT)
def test_each_rule_set_per_language_drops_what_it_is_for(name):
    assert set(STRICT) == names_of(EnglishFilters) | names_of(ChineseFilters)
    texts, value = STRICT[name]
    parts = {
        language: cls(**off(cls) | ({name: value} if name in names_of(cls) else {})) for language, cls in PARTS.items()
    }
    reason = next(rule.reason for rule in filters.RULES if rule.setting == name)
    assert verdicts([*texts, PAGE], **off(Filters) | parts)[0] == [reason] * len(texts) + [None]


def test_thresholds_go_by_the_language_of_the_document():
    english, chinese = EnglishFilters(min_words=1000), ChineseFilters(min_words=1000)
    assert verdicts([ENGLISH, CHINESE], en=english)[0] == ["few_words", None]
    assert verdicts([ENGLISH, CHINESE], zh=chinese)[0] == [None, "few_words"]
    # English in a Chinese source is judged by the thresholds for Chinese, which is what its source is stated to be.
    assert verdicts([ENGLISH], "zh", min_han_share=0, en=english)[0] == [None]


FOREIGN = {
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y conciencia.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di coscienza.",
    "nl": "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn begiftigd met verstand en geweten.",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền. Mọi người đều được phú cho lý trí và",
}  # fmt: skip


def test_other_languages_in_latin_script_are_told_from_english():
    """Article 1 of the Universal Declaration of Human Rights."""
    english = (
        "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience."
    )
    assert verdicts(list(FOREIGN.values()))[0] == ["wrong_language"] * len(FOREIGN)
    quoting = [
        f"{english} In French this is: {FOREIGN['fr'][:70]}. The same has been said in many languages of the world."
    ]
    code = [
        "def pairs(en, de):\n    for left, right in zip(en, de):\n        if left is not None:\n            yield left, right\n"
    ]
    assert verdicts([english, *quoting, *code, CHINESE])[0] == [None] * 4


def test_earlier_reasons_stand():
    batch = raw_batch(["0"], ["ok"])
    batch = batch.set_column(batch.schema.get_field_index("reason"), "reason", pa.array(["before"]))
    assert filters.filtering(folding(batch), Filters(), "auto")["reason"].to_pylist() == ["before"]


def test_real_text_is_kept():
    folder = Path(__file__).parents[2] / "../shared/text"
    if not folder.exists():
        pytest.skip("../shared/text is not here")
    for path in sorted(folder.glob("*.jsonl.gz")):
        for batch in read(Source(name="s", paths=[str(path)]), "", seed=0):
            batch = filters.filtering(folding(batch), Filters(), "auto")
            assert batch["reason"].null_count == len(batch), path
            if "zh-iotdb" not in path.name:  # English licence headers and untranslated pages among them
                assert set(batch["language"].to_pylist()) == {path.name[:2]}


def test_labelled_dirt_is_told_from_clean_text():
    """Precision and recall of each class of the sandbox's dirt that filters can know; the rest is for other stages."""
    counts = Counts()
    for part, stated in (("en", "en"), ("zh", "zh"), ("parallel", "auto")):
        source = Source(name=part, reader="sandbox", paths=[part], documents=1500)
        for batch in read(source, "", seed=1, dirt=0.2):
            batch = filters.filtering(cleaning(folding(batch), Filters().lines), Filters(), stated)
            counts.add_read(batch)
            counts.add(batch, np.zeros(len(batch), np.bool_))
    scores = score_dirt(counts)
    judged = {label for label in MEANT_FOR if "duplicate" not in label} - {"leaked_question"}
    for label in judged:
        assert scores["dirt"][label]["recall"] >= 0.95, label
        assert scores["dirt"][label]["precision"] >= 0.95, label
    assert scores["clean"]["dropped"] <= 0.001 * scores["clean"]["made"]


def test_the_page_about_the_filters_is_true():
    page = (Path(__file__).parents[2] / "docs" / "corpus-filters.md").read_text()
    assert filters.rules_table() in page, "put the output of xmodel.corpus.filters.rules_table() into the page"
    assert filters.published_recipe() in page, (
        "put the output of xmodel.corpus.filters.published_recipe() into the page"
    )


def test_the_published_values_are_a_recipe():
    tree = yaml.safe_load(filters.published_recipe())["corpus"]["filters"]
    parts = {language: cls(**tree.pop(language)) for language, cls in PARTS.items()}
    assert verdicts([f"{ENGLISH}\n" * 9, PAGE, GOOD[0]], **off(Filters), **parts)[0] == ["repeated_ngrams"] * 2 + [
        "few_words"
    ]
    assert verdicts([f"{ENGLISH}\n" * 9], **(off(Filters) | tree))[0] == ["repeated_lines"]
