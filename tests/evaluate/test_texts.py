"""Texts from files of every kind, their language and source, and what is wrong with them said by file and line."""

from __future__ import annotations

import gzip
import json
import os
import resource
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xmodel.errors import UserError
from xmodel.evaluate.texts import OPEN_FILES, read_texts, text_files

ROWS = [
    {"text": "Mira went to Oslo.", "id": "a", "language": "no", "source": "letters"},
    {"text": "路很长，可是小林很高兴。"},
    {"text": "  \n"},
    {"text": "The road was long."},
]


def lines(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def write_all_kinds(folder: Path) -> list[Path]:
    (folder / "deep").mkdir(parents=True)
    paths = [folder / name for name in ("a.jsonl", "b.jsonl.gz", "deep/c.jsonl.zst", "d.parquet")]
    paths[0].write_bytes(b"\xef\xbb\xbf" + lines(ROWS) + b"\n")
    paths[1].write_bytes(gzip.compress(lines(ROWS[:2])) + gzip.compress(lines(ROWS[2:])))  # two members, as appended
    paths[2].write_bytes(pa.compress(lines(ROWS), "zstd", asbytes=True))
    columns = {name: [row.get(name) for row in ROWS] for name in ("text", "id", "language", "source")}
    pq.write_table(pa.table(columns), paths[3], row_group_size=3)
    return paths


@pytest.mark.parametrize("spread", [False, True])
def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path, spread: bool) -> None:
    for path in write_all_kinds(tmp_path):
        found = sorted(read_texts(text_files([str(path)]), spread=spread), key=lambda text: text.place)
        stem = path.name.split(".")[0]
        assert [(text.id, text.text, text.language, text.source) for text in found] == [
            ("a", ROWS[0]["text"], "no", "letters"),  # as stated
            (f"{path.name}:2", ROWS[1]["text"], "zh", stem),  # by the share of Han characters, and the file's name
            (f"{path.name}:4", ROWS[3]["text"], "en", stem),
        ]


def test_folders_patterns_and_plain_text(tmp_path: Path) -> None:
    write_all_kinds(tmp_path / "news")
    (tmp_path / "news" / "notes.md").write_text("\ufeff一封信。", encoding="utf-8")
    (tmp_path / "news" / "picture.png").write_bytes(b"\x89PNG")
    files = text_files([str(tmp_path / "news")])
    assert [path.name for path, _ in files] == ["a.jsonl", "b.jsonl.gz", "d.parquet", "c.jsonl.zst", "notes.md"]
    texts = list(read_texts(files))
    assert len(texts) == 4 * 3 + 1
    assert {text.source for text in texts} == {"letters", "news"}
    assert (texts[-1].text, texts[-1].language) == ("一封信。", "zh")
    assert [path.name for path, _ in text_files([str(tmp_path / "news" / "*.md")])] == ["notes.md"]
    (tmp_path / "LICENSE").write_text("as it is")
    assert [text.text for text in read_texts(text_files([str(tmp_path / "LICENSE")]))] == ["as it is"]


def test_files_are_read_in_turn(tmp_path: Path) -> None:
    """Whoever stops early has seen something of each file; many files are never open at once."""
    for number in range(3 * OPEN_FILES):
        rows = [{"text": f"{number} {row}"} for row in range(3)]
        (tmp_path / f"{number:03d}.jsonl").write_bytes(lines(rows))
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, before + OPEN_FILES + 20), hard))
    try:
        found = [text.text for text in read_texts(text_files([str(tmp_path)]), spread=True)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found[:OPEN_FILES] == [f"{number} 0" for number in range(OPEN_FILES)]
    assert sorted(found) == sorted(f"{number} {row}" for number in range(3 * OPEN_FILES) for row in range(3))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": ', r"x.jsonl, line 2: not JSON"),
        ("x.jsonl", b'{"text": "a"}\n\n{"body": "b", "n": 1}\n', r"line 3: no text in the field 'text' \(it has body"),
        ("x.jsonl", b"[1]\n", r"line 1: no text in the field 'text' \(no field holds a text"),
        ("x.jsonl", b'{"text": "\xff"}\n', "line 1: not JSON"),
        ("x.jsonl", b'{"text": "a\\ud800"}\n', r"line 1: the lone surrogate U\+D800"),
        ("x.jsonl.gz", gzip.compress(lines(ROWS))[:-30], "x.jsonl.gz, line .*cannot be read on"),
        ("x.jsonl.zst", b"no zstd", "x.jsonl.zst, line 1: cannot be read on"),
        ("x.parquet", b"PAR0", "x.parquet: not a Parquet file"),
        ("x.txt", b"abc\xff", "x.txt: invalid UTF-8 at byte 3"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_texts(text_files([str(tmp_path / name)])))


def test_another_field_and_missing_ones(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["b"], "n": [1]}), tmp_path / "x.parquet")
    files = text_files([str(tmp_path / "x.parquet")])
    assert [text.text for text in read_texts(files, "body")] == ["b"]
    with pytest.raises(UserError, match=r"no text in the field 'text' \(it has body, n; --text-field names"):
        list(read_texts(files))
    with pytest.raises(UserError, match="row 1: n is not a text"):
        list(islice(read_texts(files, "n"), 1))
    with pytest.raises(UserError, match="no such file or folder"):
        text_files([str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the folder holds no text"):
        text_files([str(tmp_path / "empty")])
