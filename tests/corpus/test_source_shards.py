"""Sources of records: formats agree, fast and slow reading agree, shards add up, bad rows are refused or dropped."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodel.corpus import sources
from xmodel.corpus.batches import MAX_DOCUMENT_BYTES
from xmodel.corpus.sources import jsonl, plain, rows, streams
from xmodel.corpus.sources.fields import Wrong, field_map, join_parts, pluck, text_of
from xmodel.corpus.sources.rows import SCHEMA
from xmodel.errors import UserError
from xmodel.recipe.settings import Fields, Source

WHERE = "corpus.sources[0]"


def rows_of(source: Source) -> list[dict]:
    return [row for batch in sources.read(source, WHERE, seed=0) for row in batch.to_pylist()]


def as_jsonl(records: list) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


RECORDS = [
    {"id": f"doc-{n}", "text": f"第{n}篇\n" + "text " * (n % 50), "lang": "zh-CN" if n % 2 else "eng_Latn",
     "kind": "book" if n % 3 else None, "url": f"https://example.org/{n}", "n": n}
    for n in range(150)
]  # fmt: skip
CARRIED = Fields(language="lang", category="kind", provenance="url")


def save(records: list[dict], folder: Path, form: str) -> Source:
    """The records in a format, and the source that reads them."""
    options = {"name": "s", "fields": CARRIED, "category": "web", "licence": "CC0"}
    table = pa.Table.from_pylist(records)
    if form == "parquet":
        pq.write_table(table, folder / "a.parquet", row_group_size=20)
        return Source(reader="parquet", paths=[str(folder)], **options)
    if form == "save_to_disk":
        for number, part in enumerate((table.slice(0, 90), table.slice(90))):
            with pa.ipc.new_stream(str(folder / f"data-0000{number}-of-00002.arrow"), table.schema) as stream:
                stream.write_table(part, max_chunksize=40)
        names = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
        (folder / "state.json").write_text(json.dumps({"_data_files": names, "_split": "train"}))
        (folder / "dataset_info.json").write_text("{}")
        return Source(reader="hf", paths=[str(folder)], **options)
    if form == "load_dataset":
        (folder / "data").mkdir()
        pq.write_table(table.slice(0, 90), folder / "data" / "train-00000-of-00002.parquet")
        pq.write_table(table.slice(90), folder / "data" / "train-00001-of-00002.parquet")
        pq.write_table(table.slice(0, 9), folder / "data" / "test-00000-of-00001.parquet")
        return Source(reader="hf", paths=[str(folder)], **options)
    packed = {"jsonl": as_jsonl(records), "gz": gzip.compress(as_jsonl(records)), "zst": zstd(as_jsonl(records))}
    path = folder / {"jsonl": "a.jsonl", "gz": "a.jsonl.gz", "zst": "a.jsonl.zst"}[form]
    path.write_bytes(packed[form])
    return Source(paths=[str(folder)], **options)


@pytest.mark.parametrize("form", ["jsonl", "gz", "zst", "parquet", "save_to_disk", "load_dataset"])
def test_every_format_gives_the_same_documents(tmp_path, form):
    source = save(RECORDS, tmp_path, form)
    read = list(sources.read(source, WHERE, seed=0))
    assert all(batch.schema == SCHEMA for batch in read)
    found = [row for batch in read for row in batch.to_pylist()]
    for row, record in zip(found, RECORDS, strict=True):
        assert row == {
            "id": record["id"], "text": record["text"], "label": None, "reason": None, "provenance": record["url"],
            "language": "zh" if record["lang"] == "zh-CN" else "en", "category": record["kind"] or "web", "licence": "CC0",
        }  # fmt: skip


# ── Field maps ───────────────────────────────────────────────────────────────────────────────────────────────────────

MNBVC = {"文件名": "a.txt", "段落": [{"行号": 1, "内容": "第一段。"}, {"行号": 2, "内容": "第二段。"}, {"行号": 3}]}


def test_the_layout_of_mnbvc(tmp_path):
    source = save([{"id": "0", **MNBVC}], tmp_path, "jsonl")
    source.text_field, source.fields = "段落[].内容", Fields(id="文件名")
    assert [(row["id"], row["text"]) for row in rows_of(source)] == [("a.txt", "第一段。\n第二段。")]


def test_several_fields(tmp_path):
    source = save([{"title": "T", "body": "B"}, {"title": None, "body": "C"}, {"body": "D"}], tmp_path, "jsonl")
    source.text_field, source.fields = "title, body", Fields()
    assert [row["text"] for row in rows_of(source)] == ["T\n\nB", "C", "D"]


TEXT = st.none() | st.text("ab中\n", max_size=4)
RECORD = st.fixed_dictionaries(
    {}, optional={"t": TEXT, "u": TEXT, "o": st.none() | st.fixed_dictionaries({}, optional={"t": TEXT}),
                  "l": st.none() | st.lists(st.none() | st.fixed_dictionaries({}, optional={"t": TEXT}), max_size=3)},
)  # fmt: skip
TYPE = pa.struct([("t", pa.string()), ("u", pa.string()), ("o", pa.struct([("t", pa.string())])),
                  ("l", pa.list_(pa.struct([("t", pa.string())])))])  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(RECORD, min_size=1, max_size=6), st.sampled_from(["t", "o.t", "l[].t", "t, u", "t, l[].t"]))
def test_columns_and_records_are_read_alike(records, written):
    fields = field_map(Source(text_field=written))
    column = pa.array([None, *records], TYPE)[1:]  # with an offset
    parts = [pluck(column, path) for path in fields.text]
    texts = join_parts([part for part in parts if part is not None]).to_pylist()
    for text, record in zip(texts, records, strict=True):
        try:
            assert text == text_of(record, fields, written)
        except Wrong:
            assert text is None


# ── Fast and slow ────────────────────────────────────────────────────────────────────────────────────────────────────

LINES = st.sampled_from(
    [b'{"text": "a"}', b'{"text": "b", "id": 7}', b'{"text":"\\u4f60\\n", "id": "x"}', b'{"id": "y", "text": "\xe4\xbd\xa0"}',
     b"", b"  ", b'{"text": 3}', b'{"text": null}', b"[1]", b"{}", b'{"text": "a"}{"text": "b"}', b'{"text":', b'"a"}',
     b'{"text": "\xff"}', b'{"text": "\\ud83d"}', b'{"text": "z"} ', b' {"text": "z"}', b'{"text": "z"}\r', b'{"z": {}',
     b'{"text": "x", "text": "y"}', b'{"text": "q", "n": NaN}', b'{"text": "\\u0000"}', b'{"text": "a", "id": 1.5}', b"}{"]
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.lists(LINES, max_size=8), st.booleans(), st.booleans())
def test_arrow_reads_what_json_loads_reads(tmp_path_factory, lines, mark, ended):
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + b"\n".join(lines) + (b"\n" if ended else b""))
    source = Source(paths=[str(path)], bad_rows="drop")
    shard = sources.Shard(0, (sources.Piece(str(path)),), 0)
    fast = [row for batch in sources.read_shard(shard, source, WHERE, seed=0) for row in batch.to_pylist()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl._Lines, "_by_arrow", lambda self, block: None)
        slow = [row for batch in sources.read_shard(shard, source, WHERE, seed=0) for row in batch.to_pylist()]
    assert fast == slow
    assert len(fast) == sum(bool(line.strip()) for line in lines)
    assert all(row["reason"] for row in fast if row["text"].endswith("}{"))


def test_good_lines_do_take_the_fast_way(tmp_path, monkeypatch):
    source = save(RECORDS, tmp_path, "jsonl")
    monkeypatch.setattr(jsonl._Lines, "_slowly", lambda self, block: pytest.fail("read line by line"))
    assert len(rows_of(source)) == 150


# ── Shards ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ["jsonl", "gz", "parquet", "save_to_disk", "load_dataset"])
@pytest.mark.parametrize("shard_bytes", [300, 5_000, 1 << 20])
def test_shards_in_any_order_add_up_to_the_source(tmp_path, form, shard_bytes):
    source = save(RECORDS, tmp_path, form)
    found = sources.shards(source, WHERE, shard_bytes)
    assert found == sources.shards(source, WHERE, shard_bytes)
    assert [shard.number for shard in found] == list(range(len(found)))
    assert sum(shard.size for shard in found) == sum(path.stat().st_size for path in sources.files(source, WHERE))
    if form == "jsonl" and shard_bytes == 300:
        assert len(found) > 30
    if form == "parquet" and shard_bytes == 300:
        assert len(found) == 8  # one for each row group
    texts: dict[int, list[str]] = {}
    for shard in random.Random(1).sample(found, len(found)):
        batches = sources.read_shard(shard, source, WHERE, seed=0)
        texts[shard.number] = [text for batch in batches for text in batch["text"].to_pylist()]
    assert [text for number in sorted(texts) for text in texts[number]] == [record["text"] for record in RECORDS]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=30), st.integers(1, 60), st.booleans())
def test_byte_ranges_lose_and_repeat_no_line(tmp_path_factory, sizes, shard_bytes, ended):
    path = tmp_path_factory.mktemp("ranges") / "a.jsonl"
    data = b"\n".join(b'{"text": "%d%s"}' % (n, b"x" * size) for n, size in enumerate(sizes))
    path.write_bytes(data + b"\n" * ended)
    source = Source(paths=[str(path)])
    found = [
        row
        for shard in sources.shards(source, WHERE, shard_bytes)
        for batch in sources.read_shard(shard, source, WHERE, seed=0)
        for row in batch.to_pylist()
    ]
    assert [row["text"] for row in found] == [f"{n}{'x' * size}" for n, size in enumerate(sizes)]
    for row in found:  # the id says where the line is
        _, _, offset = row["id"].partition("@")
        if offset:
            assert json.loads(path.read_bytes()[int(offset) :].split(b"\n")[0])["text"] == row["text"]
    assert len({row["id"] for row in found}) == len(found)


def test_small_files_share_a_shard_and_a_limit_needs_one(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_text("x" * 100)
    source = Source(reader="text", paths=[str(tmp_path)])
    assert [len(shard.pieces) for shard in sources.shards(source, WHERE, 250)] == [3, 3, 3, 3, 3, 3, 2]
    source.documents = 7
    (only,) = sources.shards(source, WHERE, 250)
    assert sum(len(batch) for batch in sources.read_shard(only, source, WHERE, seed=0)) == 7


def test_sandbox_shards_are_parts_of_the_whole(monkeypatch):
    monkeypatch.setattr(sources, "SHARD_DOCUMENTS", 30)
    source = Source(reader="sandbox", paths=["en", "zh"], documents=150)
    found = sources.shards(source, WHERE)
    assert len(found) == 6
    texts = [
        text
        for shard in reversed(found)
        for batch in reversed(list(sources.read_shard(shard, source, WHERE, seed=3, dirt=0.2)))
        for text in reversed(batch["text"].to_pylist())
    ]
    whole = sources.read(source, WHERE, seed=3, dirt=0.2)
    assert texts[::-1] == [text for batch in whole for text in batch["text"].to_pylist()]


# ── Bad input ────────────────────────────────────────────────────────────────────────────────────────────────────────

GOOD = b'{"id": "good", "text": "fine"}\n'
BAD = {
    "not_json": (GOOD + b"{oops}\n", r"a\.jsonl:2: not JSON"),
    "not_utf8": (GOOD + b'{"text": "\xe9"}\n', r"a\.jsonl:2: invalid UTF-8"),
    "no_text": (GOOD + b'{"content": "a"}\n', r"a\.jsonl:2: no field 'text' \(the record has: content\)"),
    "duplicate_id": (GOOD + b'{"id": "good", "text": "other"}\n', r"a\.jsonl:2: the id 'good' stands twice"),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_line_is_refused_or_dropped(tmp_path, reason):
    data, message = BAD[reason]
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    source = Source(paths=[str(path)])
    with pytest.raises(UserError, match=message + r".*corpus\.sources\[0\]\.bad_rows=drop"):
        rows_of(source)
    source.bad_rows = "drop"
    assert [row["reason"] for row in rows_of(source)] == [None, reason]


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd)])
def test_a_cut_file_gives_what_is_whole(tmp_path, name, pack):
    noise = [{"text": f"{n} {random.Random(n).random()}"} for n in range(9000)]
    whole = pack(as_jsonl(noise))
    path = tmp_path / name
    path.write_bytes(whole[: len(whole) // 2])
    source = Source(paths=[str(path)])
    with pytest.raises(UserError, match=r"a\.jsonl.*: truncated .* after line [0-9]+; copy it again"):
        rows_of(source)
    source.bad_rows = "drop"
    *kept, last = rows_of(source)
    assert last["reason"] == "truncated_file"
    assert len(kept) > 3000
    assert [row["text"] for row in kept] == [record["text"] for record in noise[: len(kept)]]


def test_nul_is_dropped_whatever_the_setting(tmp_path):
    (tmp_path / "a.txt").write_bytes("utf-16".encode("utf-16-le"))
    (tmp_path / "b.txt").write_text("text")
    found = rows_of(Source(reader="text", paths=[str(tmp_path)]))
    assert [row["reason"] for row in found] == ["nul_bytes", None]


def test_a_document_beyond_the_bound(tmp_path, monkeypatch):
    for module in (streams, jsonl, rows, plain):
        monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 5000)
    monkeypatch.setattr(streams, "BLOCK", 2000)
    monkeypatch.setattr(streams, "READ", 700)
    texts = ["a" * 100, "b" * 20_000, "c" * 3000, "d" * 5200, "e"]
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_jsonl([{"text": text} for text in texts]))
    with pytest.raises(UserError, match=r"a\.jsonl:2: a line of more than"):
        rows_of(Source(paths=[str(path)]))
    found = rows_of(Source(paths=[str(path)], bad_rows="drop"))
    assert [row["reason"] for row in found] == [None, "too_large", None, "too_large", None]
    assert [row["text"] for row in found if not row["reason"]] == [texts[0], texts[2], texts[4]]
    (tmp_path / "b.txt").write_text("x" * 6000)
    text = Source(reader="text", paths=[str(tmp_path / "b.txt")], bad_rows="drop")
    assert [row["reason"] for row in rows_of(text)] == ["too_large"]
    assert MAX_DOCUMENT_BYTES < 200 << 20


def test_parquet_with_another_schema_names_what_it_has(tmp_path):
    source = save(RECORDS, tmp_path, "parquet")
    pq.write_table(pa.table({"content": ["a"], "n": [1]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet: no field 'text' \(the file has: content string, n int64\)"):
        rows_of(source)
    source.text_field = "n"
    with pytest.raises(UserError, match=r"a\.parquet: no text in the field 'n'"):
        rows_of(source)
    source.text_field, source.fields = "text", Fields(language="langauge")
    with pytest.raises(UserError, match=r"no field 'langauge' .*mend corpus\.sources\[0\]\.fields\.language"):
        rows_of(source)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.parquet: not a Parquet file"):
        rows_of(source)


def test_parquet_rows_without_text_and_with_bad_bytes(tmp_path):
    bad = pa.StringArray.from_buffers(3, pa.array(["ok", "xx", ""]).buffers()[1], pa.py_buffer(b"ok\xff\xfe"))
    pq.write_table(pa.table({"text": pa.chunked_array([bad, pa.array([None], pa.string())])}), tmp_path / "a.parquet")
    source = Source(reader="parquet", paths=[str(tmp_path)])
    with pytest.raises(UserError, match=r"a\.parquet:2: invalid UTF-8|a\.parquet:4: the field 'text' is empty"):
        rows_of(source)
    source.bad_rows = "drop"
    assert [row["reason"] for row in rows_of(source)] == [None, "not_utf8", None, "no_text"]


# ── Hugging Face folders ─────────────────────────────────────────────────────────────────────────────────────────────


def test_splits_and_subsets_of_a_data_set_folder(tmp_path):
    source = save(RECORDS, tmp_path, "load_dataset")
    source.split = "test"
    assert len(rows_of(source)) == 9
    source.split = "validation"
    with pytest.raises(UserError, match=r"has no split 'validation'; it has test, train"):
        rows_of(source)
    card = "---\nconfigs:\n- config_name: small\n  data_files:\n  - split: train\n    path: data/test-*\n---\n"
    (tmp_path / "README.md").write_text(card)
    source.split, source.subset = "train", "small"
    assert len(rows_of(source)) == 9
    source.subset = "large"
    with pytest.raises(UserError, match=r"has no subset 'large'; it has small"):
        rows_of(source)


def test_a_dictionary_of_splits_as_saved(tmp_path):
    (tmp_path / "train").mkdir()
    source = save(RECORDS[:20], tmp_path / "train", "save_to_disk")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    source.paths = [str(tmp_path)]
    assert len(rows_of(source)) == 20
    (tmp_path / "train" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match=r"data-00001-of-00002\.arrow is missing"):
        rows_of(source)


def test_the_hub_needs_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    source = Source(name="s", reader="hf", paths=["someone/something"])
    with pytest.raises(UserError, match=r"pip install 'xmodel\[datasets\]'"):
        rows_of(source)


def test_streaming_through_datasets_gives_the_same_documents(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="the extra `datasets` is not installed")
    (tmp_path / "owner").mkdir()
    saved = save(RECORDS, tmp_path / "owner", "load_dataset")
    expected = [row["text"] for row in rows_of(saved)]
    monkeypatch.chdir(tmp_path)
    saved.paths = ["./owner"]  # taken for the hub's: it is not absolute; `datasets` finds the folder
    found = sources.shards(saved, WHERE)
    assert [shard.size for shard in found] == [1, 1]
    assert [row["text"] for row in rows_of(saved)] == expected


def test_plain_text_read_as_json_lines_says_which_reader_is_meant(tmp_path):
    (tmp_path / "notes.md").write_text("A line of prose.\n")
    source = Source(name="s", paths=[str(tmp_path / "notes.md")])
    with pytest.raises(UserError, match=r"notes\.md:1: not JSON .*plain text: set corpus\.sources\[0\]\.reader=text"):
        list(sources.read(source, "corpus.sources[0]", seed=0))
