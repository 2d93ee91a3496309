"""Lines of the terminal's width, whatever pieces the text comes in."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xmodel.chat.wrap import CLOSING, OPENING, Wrapper, shown, wrap
from xmodel.console import width

SOFT = "\x00"  # never in what is shown
MIXED = st.text(
    st.one_of(
        st.sampled_from("ab c \n中文，。（）《》“”—…\t\x1b\u200d\u0301👨🇨🇳\u00a0"),
        st.characters(exclude_categories=["Cs"]),
    )
)
WORDS = st.lists(st.sampled_from(["a", "word", "longer", "x" * 19]), min_size=1).map(" ".join)


def pieces(data: st.DataObject, text: str) -> list[str]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


@given(MIXED, st.integers(4, 30), st.data())
@example("中" * 9 + "\u0301", 4, None)
@example("a  b" + " " * 40 + "c", 7, None)
@example("（" * 30 + "。" * 30, 10, None)
def test_no_line_is_wider_and_nothing_is_lost(text: str, columns: int, data: st.DataObject | None) -> None:
    wrapper = Wrapper(lambda: columns, SOFT)
    out = "".join(wrapper.push(piece) for piece in (pieces(data, text) if data else text)) + wrapper.finish()
    assert out.replace(SOFT, "") == shown(text)
    lines = [line for part in out.split("\n") for line in part.split(SOFT)]
    assert max(map(width, lines)) <= columns
    assert wrapper.column == width(lines[-1])
    assert out.replace(SOFT, "\n") == wrap(text, columns)  # in one piece: the same lines


@given(WORDS, st.integers(21, 40))
def test_words_stay_whole_and_lines_are_full(text: str, columns: int) -> None:
    lines = wrap(text, columns).split("\n")
    assert " ".join(line.removesuffix(" ") for line in lines) == text
    for line, following in pairwise(lines):
        assert len(line) + len(following.split(" ")[0]) > columns - 1  # the next word had no room


@given(st.text(st.sampled_from("中文字，。！？、（）《》“”")), st.integers(20, 40))
def test_chinese_marks_stay_with_their_characters(text: str, columns: int) -> None:
    place = 0
    for line in wrap(text, columns).split("\n")[:-1]:
        place += len(line)
        start = end = place  # the marks around the break, with the characters that they cling to
        while start > 0 and (text[start] in CLOSING or text[start - 1] in OPENING):
            start -= 1
        while end < len(text) and (text[end] in CLOSING or text[end - 1] in OPENING):
            end += 1
        assert start == place or width(text[start:end]) > columns - 1  # such a heap cannot stay together


@pytest.mark.parametrize(
    ("text", "columns", "lines"),
    [
        ("The capital of France is Paris.", 13, ["The capital ", "of France is ", "Paris."]),
        ("中国的首都是北京。", 9, ["中国的首", "都是北", "京。"]),
        ("他说：“你好，世界”。", 9, ["他说：", "“你好，", "世界”。"]),
        ("用 PyTorch 训练模型", 12, ["用 PyTorch ", "训练模型"]),
        ("一" * 3 + "（二）", 9, ["一一一", "（二）"]),
        ("https://example.org/a/b/c", 11, ["https://ex", "ample.org/", "a/b/c"]),
        ("ab 👨‍👩‍👧 e\u0301e\u0301", 8, ["ab ", "👨‍👩‍👧 ", "e\u0301e\u0301"]),
    ],
)
def test_lines(text: str, columns: int, lines: list[str]) -> None:
    assert wrap(text, columns).split("\n") == lines


def test_a_word_is_shown_when_it_is_whole() -> None:
    wrapper = Wrapper(lambda: 14)
    assert [wrapper.push(piece) for piece in ("Hel", "lo", " wor", "ld!", "\n", "中", "文")] == [
        "", "", "Hello ", "", "world!\n", "", "中"
    ]  # fmt: skip
    assert wrapper.finish() == "文"


def test_what_would_steer_the_terminal_is_shown_instead() -> None:
    text = shown("\x1b]0;title\x07\r\tx\x9b2J\u202eabc\x7f")
    assert not [character for character in text if unicodedata.category(character) == "Cc"]
    assert text == "␛]0;title␇␍    x\ufffd2J\ufffdabc␡"
