"""Filters: the counts against a slow reading of the same definitions, every rule by an example, real text kept."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xmodel.corpus import filters
from xmodel.corpus.batches import raw_batch
from xmodel.corpus.folding import folding
from xmodel.corpus.measures import COMMON, GBK_DAMAGE, Measure, measure
from xmodel.corpus.sources import read
from xmodel.recipe.settings import Filters, Source

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
    seen = set()
    for line in text.split("\n"):
        visible = "".join(line.split())
        if not visible:
            continue
        counts["LINES"] += 1
        han = sum(map(_is_han, visible))
        item = len(line.split()) <= 4 and len(visible) + 3 * han <= 24 and visible[-1] not in COMMON
        counts["ITEM_LINES"] += item
        counts["REPEATED_LINES"] += visible in seen
        counts["REPEATED_CHARACTERS"] += len(visible) if visible in seen else 0
        seen.add(visible)
    return counts


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
    ]
)


@settings(max_examples=200, deadline=None)
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


def test_a_row_of_the_table_for_each_threshold():
    thresholds = {field.name for field in dataclasses.fields(Filters)} - {"chinese_share"}
    assert {rule.setting for rule in filters.RULES} == thresholds
    off = {name: 0 if name.startswith("min_") else 10**9 if name == "max_characters" else 1 for name in thresholds}
    assert {reason for texts in BAD.values() for reason in verdicts(texts, **off)[0]} == {None}


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
