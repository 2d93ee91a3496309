"""Readers: what they deliver, in which order and size, and what they say when the input is bad."""

from __future__ import annotations

import gzip
import json
import types
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodel.corpus import batches, sources
from xmodel.errors import UserError
from xmodel.recipe.settings import Corpus, Source


def read_all(source: Source, **keywords) -> list[dict]:
    return [row for batch in sources.read(source, "corpus.sources[2]", seed=0, **keywords) for row in batch.to_pylist()]


def write_lines(path: Path, records: list) -> Path:
    data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl_keeps_order_ids_and_text(tmp_path, name):
    path = write_lines(tmp_path / name, [{"id": "x", "text": "你好 \r\n"}, {"id": 7, "text": "b"}, {"text": ""}])
    rows = read_all(Source(name="s", paths=[str(path)]))
    assert [(row["id"], row["text"]) for row in rows] == [("x", "你好 \r\n"), ("7", "b"), (f"{name}:3", "")]
    assert all(row["label"] is None and row["reason"] is None for row in rows)


def test_jsonl_dotted_field_blank_lines_and_byte_order_mark(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": {"b": "one"}}\n\n{"a": {"b": "two"}}')
    assert [row["text"] for row in read_all(Source(name="s", paths=[str(path)], text_field="a.b"))] == ["one", "two"]


def test_documents_limits_a_source(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": str(number)} for number in range(10)])
    assert len(read_all(Source(name="s", paths=[str(path)], documents=3))) == 3


def test_batches_are_bounded_and_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_CHARACTERS", 1_000)
    monkeypatch.setattr(batches, "BATCH_DOCUMENTS", 16)
    texts = ["x" * (number % 200) for number in range(500)]
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    read = list(sources.read(Source(name="s", paths=[str(path)]), "", seed=0))
    assert [text for batch in read for text in batch["text"].to_pylist()] == texts
    assert all(len(batch) <= 16 and batch["text"].nbytes < 1_300 for batch in read)


def test_text_folder_is_sorted_and_leaves_out_hidden_and_foreign_files(tmp_path):
    for name in ("b.txt", "a/z.md", "a/a.txt", ".hidden/x.txt", "picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    rows = read_all(Source(name="s", reader="text", paths=[str(tmp_path)]))
    assert [row["id"] for row in rows] == [str(tmp_path / name) for name in ("a/a.txt", "a/z.md", "b.txt")]
    assert {row["text"] for row in rows} == {"one\ntwo"}


def test_overlapping_patterns_give_each_file_once(tmp_path):
    for name in "ba":
        (tmp_path / f"{name}.log").write_text(name)
    patterns = [str(tmp_path / "b.log"), str(tmp_path / "**" / "*.log")]
    assert [row["text"] for row in read_all(Source(name="s", reader="text", paths=patterns))] == ["b", "a"]


def _bad_inputs(folder: Path) -> dict[str, tuple[Source, str]]:
    (folder / "empty").mkdir()
    (folder / "empty.jsonl").touch()
    (folder / "latin.txt").write_bytes("été".encode("latin-1"))
    (folder / "latin.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    (folder / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (folder / "list.jsonl").write_text("[1]\n")
    (folder / "number.jsonl").write_text('{"text": 3}\n')
    (folder / "half.jsonl").write_text('{"text": "\\ud83d"}\n')
    whole = gzip.compress(b'{"text": "' + bytes(range(65, 91)) * 4000 + b'"}\n' * 3)
    (folder / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "plain.jsonl.gz").write_text('{"text": "a"}\n')

    def jsonl(name: str, **settings) -> Source:
        return Source(name="s", paths=[str(folder / name)], **settings)

    return {
        "missing": (jsonl("none.jsonl"), r"corpus\.sources\[2\]\.paths\[0\].*none\.jsonl does not exist"),
        "no paths": (Source(name="s"), r"corpus\.sources\[2\]\.paths.*is empty"),
        "no match": (jsonl("*.json"), r"corpus\.sources\[2\]\.paths\[0\].*matches no file"),
        "no text in folder": (jsonl("empty"), r"corpus\.sources\[2\]\.paths\[0\].*holds no \.jsonl"),
        "no document": (jsonl("empty.jsonl"), r"corpus\.sources\[2\].*no document"),
        "text not UTF-8": (jsonl("latin.txt", reader="text"), r"latin\.txt: invalid UTF-8 at byte 0; re-save as UTF-8"),
        "line not UTF-8": (jsonl("latin.jsonl"), r"latin\.jsonl:2: invalid UTF-8 at byte 10"),
        "half a surrogate pair": (jsonl("half.jsonl"), r"half\.jsonl:1: invalid Unicode"),
        "not JSON": (jsonl("broken.jsonl"), r"broken\.jsonl:2: not JSON"),
        "not an object": (jsonl("list.jsonl"), r"list\.jsonl:1: no field 'text'"),
        "no such field": (jsonl("broken.jsonl", text_field="body"), r"broken\.jsonl:1: no field 'body' .*has: text"),
        "not a string": (jsonl("number.jsonl"), r"number\.jsonl:1: .*must be a string, not int"),
        "truncated gzip": (jsonl("cut.jsonl.gz"), r"cut\.jsonl\.gz: truncated gzip"),
        "no gzip": (jsonl("plain.jsonl.gz"), r"plain\.jsonl\.gz: damaged gzip"),
        "no such part": (
            Source(name="s", reader="sandbox", paths=["fr"]),
            r"corpus\.sources\[2\]\.paths.*'fr'.*en, zh",
        ),
    }


CASES = (
    "missing", "no paths", "no match", "no text in folder", "no document", "text not UTF-8", "line not UTF-8",
    "half a surrogate pair", "not JSON", "not an object", "no such field", "not a string", "truncated gzip", "no gzip",
    "no such part",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_line(tmp_path, case):
    source, message = _bad_inputs(tmp_path)[case]
    with pytest.raises(UserError, match=message) as caught:
        read_all(source)
    assert "\n" not in str(caught.value)


def test_unreadable_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("secret")
    path.chmod(0)
    try:
        path.read_text()
    except PermissionError:
        with pytest.raises(UserError, match=r"a\.txt: cannot be read \(Permission denied\)"):
            read_all(Source(name="s", reader="text", paths=[str(path)]))
    else:
        pytest.skip("this user may read everything")


def test_input_files_are_sorted_and_name_the_recipe_key(tmp_path):
    for name in "ba":
        (tmp_path / f"{name}.txt").touch()
    corpus = Corpus(
        sources=[Source(name="one", reader="text", paths=[str(tmp_path)]), Source(name="two", reader="sandbox")],
        validation=[Source(name="three", reader="text", paths=[str(tmp_path / "a.txt")])],
    )
    assert sources.input_files(corpus) == [tmp_path / "a.txt", tmp_path / "b.txt"]
    corpus.validation[0].paths = [str(tmp_path / "c.txt")]
    with pytest.raises(UserError, match=r"corpus\.validation\[0\]\.paths\[0\]"):
        sources.input_files(corpus)


def test_stdlib_is_deterministic_english_and_code():
    source = Source(name="s", reader="stdlib", documents=300)
    first, second = read_all(source), read_all(source)
    assert first == second
    assert len({row["id"] for row in first}) == 300
    assert not any("site-packages" in row["id"] or row["id"].startswith(("test/", "idlelib/")) for row in first)
    assert sum(len(row["text"]) <= sources.STDLIB_BYTES + 1 for row in first) > 290
    assert sum('"""' in row["text"] for row in first) > 100


@given(
    st.lists(
        st.sampled_from(["def f():\n", "    def g(self):\n", "    pass\n", "\n", "# 注\n", "x = 1\n", "class A:\n"])
    ),
    st.integers(1, 60),
)
def test_split_code_loses_nothing_but_blank_lines(lines, limit):
    text = "".join(lines)
    pieces = sources.split_code(text, limit)
    assert [line for piece in pieces for line in piece.splitlines() if line] == [
        line for line in text.splitlines() if line
    ]
    assert all(piece.strip() for piece in pieces)


class Made(NamedTuple):
    id: str
    text: str
    label: str
    origin: str


def test_sandbox_source_shares_its_documents_among_parts(monkeypatch):
    calls = []

    def documents(part, count, seed, dirt, first=0):
        calls.append((part, count, seed, dirt))
        return (Made(f"{part}-{i}", f"text {i}", "mojibake" if i == 0 else "clean", "") for i in range(count))

    fake = types.SimpleNamespace(PARTS=("en", "zh", "parallel"), documents=documents)
    monkeypatch.setattr("xmodel.corpus.sandbox", fake, raising=False)
    rows = read_all(Source(name="s", reader="sandbox", paths=["zh", "en"], documents=5), dirt=0.25)
    assert calls == [("zh", 2, 0, 0.25), ("en", 3, 0, 0.25)]
    assert [row["label"] for row in rows] == ["mojibake", None, "mojibake", None, None]
    assert sum(shard.size for shard in sources.shards(Source(name="s", reader="sandbox", paths=["en"]), "")) == 20_000
