"""Shards: what is written is what is read, across shard boundaries, and damage is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodel.errors import MachineError, UserError
from xmodel.files import read_json
from xmodel.recipe.settings import Tokenizer as TokenizerSettings
from xmodel.recipe.settings import Tokens as Settings
from xmodel.tokenizer.codec import Tokenizer
from xmodel.tokenizer.train import train
from xmodel.tokens.order import DataOrder
from xmodel.tokens.shards import TokenSource, open_sources, read_batch, validation_batches, verify
from xmodel.tokens.write import write_tokens

ENGLISH = [
    f"The {thing} number {i} is red.\nIt is {'very ' * (i % 5)}old." for i in range(120) for thing in ("house", "boat")
]
CHINESE = [f"第{i}个{thing}是红色的。\n它{'很' * (i % 4)}旧了。🤗" for i in range(90) for thing in ("房子", "小船")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train(ENGLISH + CHINESE, TokenizerSettings(vocab_size=390), folder, seed=0)
    return Tokenizer.load(folder)


def write_parquet(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": [str(i) for i in range(len(texts))], "text": pa.array(texts, pa.string())}), path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_parquet(folder / "train/english.parquet", ENGLISH)
    write_parquet(folder / "train/chinese.parquet", CHINESE)
    write_parquet(folder / "validation/en.parquet", ENGLISH[::5])
    write_parquet(folder / "validation/zh.parquet", CHINESE[::5])
    return folder


@pytest.fixture(scope="module")
def tokens(corpus, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    write_tokens(corpus, tokenizer, Settings(bos=True, shard_tokens=1000), folder)
    return folder


@pytest.mark.parametrize("bos", [True, False])
def test_shards_hold_the_documents(corpus, tokenizer, tmp_path, bos):
    manifest = write_tokens(corpus, tokenizer, Settings(bos=bos, shard_tokens=1000), tmp_path)
    assert manifest == read_json(tmp_path / "manifest.json")
    assert (manifest["bos"], manifest["vocab_size"], manifest["dtype"]) == (bos, 390, "uint16")
    assert list(manifest["train"]) == ["chinese", "english"]
    assert list(manifest["validation"]) == ["en", "zh"]
    entry = manifest["train"]["english"]
    assert len(entry["shards"]) > 3
    found = []
    for shard in entry["shards"]:
        path = tmp_path / shard["file"]
        ids = np.fromfile(path, "<u2")
        ends = np.fromfile(path.with_suffix(".ends"), "<i8")
        assert len(ids) == shard["tokens"] == ends[-1] <= 1000
        assert len(ends) == shard["documents"]
        documents = np.split(ids, ends[:-1])
        assert sum(len(tokenizer.decode(ids).encode()) for ids in documents) == shard["bytes"]
        found += documents
    for ids, text in zip(found, ENGLISH, strict=True):
        assert ids.tolist() == [1] * bos + tokenizer.encode(text) + [2]
    held_out = {"en": ENGLISH[::5], "zh": CHINESE[::5]}
    for language, texts in held_out.items():
        assert manifest["validation"][language]["characters"] == sum(map(len, texts))
    assert entry["documents"] == len(ENGLISH)
    assert entry["bytes"] == sum(len(text.encode()) for text in ENGLISH)
    assert entry["tokens"] == sum(map(len, found)) == open_sources(tmp_path)["english"].tokens
    verify(tmp_path)


def test_a_document_longer_than_a_shard_stays_whole(tokenizer, tmp_path):
    write_parquet(tmp_path / "corpus/train/long.parquet", ["short", "a long one " * 2000, "", "short"])
    manifest = write_tokens(tmp_path / "corpus", tokenizer, Settings(shard_tokens=1000), tmp_path / "tokens")
    assert [shard["documents"] for shard in manifest["train"]["long"]["shards"]] == [1, 1, 2]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 25))
def test_windows_cross_shard_boundaries(sizes, length):
    flat = np.arange(sum(sizes), dtype=np.uint16)
    source = TokenSource("s", np.split(flat, np.cumsum(sizes)[:-1]))
    if len(flat) <= length:
        with pytest.raises(UserError, match=f"'s' has {len(flat)} tokens"):
            source.n_windows(length)
        return
    for i in range(source.n_windows(length)):
        window = source.window(i, length)
        assert window.tolist() == list(range(i * length, (i + 1) * length + 1))
    with pytest.raises(IndexError):
        source.window(source.n_windows(length), length)


def test_batches_follow_the_order(tokens):
    sources = open_sources(tokens)
    windows = {name: source.n_windows(32) for name, source in sources.items()}
    order = DataOrder(windows, {"english": 0.25, "chinese": 0.75}, seed=0)
    samples = order.samples(48, 16)
    batch = read_batch(sources, samples, 32)
    assert batch.shape == (16, 33)
    assert batch.dtype == np.int64
    for row, sample in zip(batch, samples, strict=True):
        start = sample.window * 32
        assert row.tolist() == sources[sample.source].read(start, start + 33).tolist()


def test_validation_bytes_are_exact(tokens, tokenizer):
    for language, texts in (("en", ENGLISH[::5]), ("zh", CHINESE[::5])):
        whole = list(validation_batches(tokens, language, 10, 10**9, batch=7))
        targets = np.concatenate([batch[:, 1:].ravel() for batch, _ in whole])
        assert sum(size for _, size in whole) == tokenizer.piece_bytes[targets].sum()
        joined = b"".join(tokenizer.pieces[i] for i in targets)
        text = "".join(texts).encode()
        assert text.startswith(joined)
        assert len(text) - len(joined) < 100, "at most the tail of a window is left out"
        assert sum(size for _, size in whole) == len(joined)


def test_validation_windows_are_spread_and_repeatable(tokens):
    source = open_sources(tokens, "validation")["en"]
    some = [batch for batch, _ in validation_batches(tokens, "en", 16, 16 * 5)]
    rows = np.concatenate(some)
    assert rows.shape == (5, 17)
    assert rows.dtype == np.int64
    windows = source.n_windows(16)
    assert [row.tolist() for row in rows] == [source.window(i * windows // 5, 16).tolist() for i in range(5)]
    again = np.concatenate([batch for batch, _ in validation_batches(tokens, "en", 16, 16 * 5, batch=2)])
    assert np.array_equal(rows, again)
    ((short, size),) = validation_batches(tokens, "en", 10**6, 10**9)
    assert short.shape == (1, source.tokens)
    assert size == sum(len(text.encode()) for text in ENGLISH[::5])
    with pytest.raises(UserError, match=r"no held-out text in language 'fr'"):
        list(validation_batches(tokens, "fr", 16, 100))


def test_impossible_input(corpus, tokenizer, tmp_path, monkeypatch):
    write_parquet(tmp_path / "corpus/train/nothing.parquet", [])
    with pytest.raises(UserError, match=r"'nothing'.*no document"):
        write_tokens(tmp_path / "corpus", tokenizer, Settings(), tmp_path / "a")
    with pytest.raises(MachineError, match="no parquet"):
        write_tokens(tmp_path, tokenizer, Settings(), tmp_path / "b")
    write_parquet(tmp_path / "short/train/tiny.parquet", ["one"])
    write_tokens(tmp_path / "short", tokenizer, Settings(), tmp_path / "c")
    with pytest.raises(UserError, match=r"'tiny' has \d tokens.*context_length = 64.*at most \d"):
        open_sources(tmp_path / "c")["tiny"].n_windows(64)
    monkeypatch.setattr(tokenizer, "vocab_size", 70_000)
    with pytest.raises(UserError, match="70,000"):
        write_tokens(corpus, tokenizer, Settings(), tmp_path / "d")


@pytest.mark.parametrize("suffix", [".bin", ".ends"])
def test_damage_is_found(corpus, tokenizer, tmp_path, suffix):
    write_tokens(corpus, tokenizer, Settings(shard_tokens=2000), tmp_path)
    path = (tmp_path / "train/english-00001.bin").with_suffix(suffix)
    good = path.read_bytes()
    path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    open_sources(tmp_path)
    with pytest.raises(MachineError, match=rf"english-00001\{suffix}: damaged"):
        verify(tmp_path)
    path.write_bytes(good[:-2])
    if suffix == ".bin":
        with pytest.raises(MachineError, match=r"english-00001\.bin: damaged"):
            open_sources(tmp_path)
    path.unlink()
    with pytest.raises(MachineError, match=rf"english-00001\{suffix}: missing"):
        verify(tmp_path)
