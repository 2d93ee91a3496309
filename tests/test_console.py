from __future__ import annotations

import pytest

from xmodel.console import clip, count, duration, progress, table, width


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (59.4, "59s"), (185, "3m05s"), (7_800, "2h10m"), (5_290_000, "61d 5h")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (950, "950"),
        (4_100, "4.1k"),
        (3_440_640, "3.44M"),
        (2.064e12, "2.06T"),
        (999_700, "1M"),
        (0.25, "0.25"),
    ],
)
def test_count(number: float, text: str) -> None:
    assert count(number) == text


def test_tables_align_wide_characters_and_numbers() -> None:
    lines = table(["名字", "n"], [["中文", "7"], ["abc", "123"]]).splitlines()
    assert lines[2].endswith("  7")
    assert width(lines[2]) == width(lines[3]) == 9


def test_clip_counts_columns() -> None:
    assert clip("中文abc", 5) == "中文a"
    assert clip("中文", 3) == "中"
    assert clip("abc", 10) == "abc"


def test_progress_is_plain_lines_when_it_is_not_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", 10, "documents") as shown:
        shown.advance(10)
    text = capsys.readouterr().err
    assert text.startswith("reading: 10/10 documents, ")
    assert "\r" not in text
    assert "\x1b" not in text
