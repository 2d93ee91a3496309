"""Result files and tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="the extra `harness`")

from test_paper import row

from xmodel.errors import MachineError
from xmodel.evaluate.paper import MEANS, summarise
from xmodel.evaluate.results import (
    ITEMS,
    as_html,
    as_markdown,
    as_text,
    read_items,
    read_results,
    standing,
    tables,
    write_task,
)

FINGERPRINT = {"weights": "abc", "rows": "def", "limit": None}
CONTENT = {"task": "piqa", "suite": "commonsense", "fingerprint": FINGERPRINT, "results": [row("piqa", 0.5)]}
RECORDS = [{"id": 0, "answer": 1, "picked": 1, "right": 1.0, "logprobs": [-1.5, -0.5]}, {"id": 1, "output": "北京\n"}]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_task(tmp_path, "piqa", CONTENT, RECORDS)
    (tmp_path / "other.json").write_text('{"suite": "sandbox", "results": []}')
    assert read_results(tmp_path) == [CONTENT]
    assert read_items(tmp_path, "piqa") == RECORDS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.json", "piqa" + ITEMS, "piqa.json"]
    assert (tmp_path / ("piqa" + ITEMS)).read_bytes()[:4] == bytes.fromhex("28b52ffd")  # a zstd frame
    with pytest.raises(MachineError, match="missing"):
        read_items(tmp_path, "boolq")
    (tmp_path / ("piqa" + ITEMS)).write_bytes(b"not zstd")
    with pytest.raises(MachineError, match="damaged"):
        read_items(tmp_path, "piqa")


def test_only_the_same_evaluation_stands(tmp_path: Path) -> None:
    assert standing(tmp_path, "piqa", FINGERPRINT) is None
    write_task(tmp_path, "piqa", CONTENT, RECORDS)
    assert standing(tmp_path, "piqa", FINGERPRINT) == CONTENT
    assert standing(tmp_path, "piqa", FINGERPRINT | {"limit": 5}) is None
    assert standing(tmp_path, "piqa", FINGERPRINT | {"weights": None}) is None  # unknown weights never stand
    (tmp_path / ("piqa" + ITEMS)).unlink()
    assert standing(tmp_path, "piqa", FINGERPRINT) is None
    write_task(tmp_path, "piqa", CONTENT, RECORDS)
    (tmp_path / "piqa.json").write_text("{")
    assert standing(tmp_path, "piqa", FINGERPRINT) is None


def test_tables_have_ours_beside_what_was_published() -> None:
    names = MEANS["commonsense"]["mean"]
    rows = summarise([row(name, 0.5 + 0.01 * number) for number, name in enumerate(names)])
    found = tables(rows, "mine")
    text = as_text(found)
    assert re.search(r"^mine +50\.00 +51\.00 .* 54\.00$", text, re.MULTILINE)
    assert re.search(r"± standard error +1\.00 +1\.00 .* 0\.33$", text, re.MULTILINE)
    assert re.search(r"^Pythia-1\.4B .* 47\.00\*$", text, re.MULTILINE)
    assert "* as printed for Pythia-1.4B; the mean of its row is 46.78." in text
    assert "the mean of its row is 49.49." in text
    assert text.count("51.41") == 1
    assert "†" not in text

    partial = as_text(tables(summarise([row("arc_zh", 0.25)]), "mine"))
    assert re.search(r"^mine +25\.00 +– +– +25\.00†$", partial, re.MULTILINE)
    assert "compares with nothing published" in partial

    markdown = as_markdown(found, "Scores")
    widths = {line.count("|") - line.count("\\|") for line in markdown.splitlines() if line.startswith("|")}
    assert widths == {12, 9}  # eleven columns, eight
    assert "47.00\\*" in markdown

    page = as_html(tables(rows, "<mine>"), "Scores of <mine>")
    assert "<mine>" not in page
    assert "&lt;mine&gt;" in page
    assert "http" not in page
    assert "src=" not in page
