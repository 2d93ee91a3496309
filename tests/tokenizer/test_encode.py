"""The kernel gives SentencePiece's ids: for real text, for every plane, for ties, at any length, from any array."""

from __future__ import annotations

import gzip
import json
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sentencepiece
from handmade import BPE, counted, opened, serialised
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodel.corpus import sandbox
from xmodel.errors import MachineError, UserError
from xmodel.tokenizer import encode
from xmodel.tokenizer.codec import Tokenizer
from xmodel.tokenizer.convert import read_pieces

TEXT = Path(__file__).parents[2] / "../shared/text"
FILES = ["en-cpp-docs", "en-peps", "en-iotdb-docs", "zh-modern", "zh-iotdb-docs"]


@cache
def real_texts(name: str) -> list[str]:
    """Documents of a file of ../shared/text, or of a part of the sandbox."""
    if name in sandbox.PARTS:
        return [document.text for document in sandbox.documents(name, 150, seed=7, dirt=0.2)]
    path = TEXT / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip("no ../shared/text")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line)["text"] for line in stream]


def available() -> list[str]:
    parts = list(sandbox.PARTS)
    return parts + [name for name in FILES if (TEXT / f"{name}.jsonl.gz").exists()]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """24,000 pieces of the real texts that there are, by plain counting; a newline and a tab stand alone."""
    texts = [text for name in available() for text in real_texts(name)[::50]]
    return opened(tmp_path_factory.mktemp("counted"), serialised(counted(texts, 24_000) | {"\n": -4.0, "\t": -8.0}))


def by_sentencepiece(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [ids.tolist() for ids in tokenizer._by_sentencepiece(texts, 2)]


def by_kernel(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    assert tokenizer._tables is not None
    ids_T, ends_D = tokenizer.encode_arrow(pa.array(texts, pa.string()))
    return [ids_T[start:end].tolist() for start, end in pairwise([0, *ends_D.tolist()])]


@cache
def normal_pieces(tokenizer: Tokenizer) -> dict[str, tuple[int, int]]:
    """Text of each normal piece -> its score in steps, and its id."""
    pieces = enumerate(read_pieces((tokenizer.folder / "tokenizer.model").read_bytes()))
    texts = {number: (piece.text.replace("\u2581", " "), piece) for number, piece in pieces}
    return {text: (round(piece.score * 1024), number) for number, (text, piece) in texts.items() if piece.type == 1}


def reference(tokenizer: Tokenizer, text: str) -> list[int]:
    """The definition, with Python's integers: of equal ways to a place, the one whose last piece starts earliest."""
    pieces = normal_pieces(tokenizer)
    longest, unknown = max(map(len, pieces)), min(score for score, _ in pieces.values()) - 10 * 1024
    best = [(0, 0, -1)]
    for end in range(1, len(text) + 1):
        found = None
        for start in range(max(0, end - longest), end):
            score, number = pieces.get(text[start:end], (unknown, -1) if start == end - 1 else (0, None))
            if number is not None and (found is None or best[start][0] + score > found[0]):
                found = (best[start][0] + score, start, number)
        assert found is not None
        best.append(found)
    ids: list[int] = []
    end = len(text)
    while end:
        _, start, number = best[end]
        ids += [number] if number >= 0 else [tokenizer.first_byte_id + byte for byte in text[start:end].encode()[::-1]]
        end = start
    return ids[::-1]


# ── Equal to SentencePiece ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [*FILES, *sandbox.PARTS])
def test_real_text_line_by_line(name, tokenizer):
    """Pieces never reach across the end of a line here, so a document is its lines, one after the other.

    Lines that are too long for exact sums in SentencePiece's float32 are compared with the definition.
    """
    texts = real_texts(name)
    lines = [line for text in texts for line in text.splitlines(keepends=True)]
    expected = tokenizer._by_sentencepiece(lines, 2)
    for place, line in enumerate(lines):
        if len(line) > 1500:
            expected[place] = np.array(reference(tokenizer, line))
    ids_T, ends_D = tokenizer.encode_arrow(pa.array(texts))
    assert np.array_equal(ids_T, np.concatenate(expected))
    assert len(ends_D) == len(texts)
    assert b"".join([tokenizer.pieces[i] for i in ids_T.tolist()]) == "".join(texts).encode()


def fuzz(count: int, seed: int) -> list[str]:
    """Short texts of any code point of any plane, of common and of awkward characters, and of scraps of text."""
    draw = random.Random(seed)
    planes = [chr(p) for p in (draw.randrange(0x110000) for _ in range(20_000)) if not 0xD800 <= p < 0xE000]
    plain = [chr(p) for p in range(128)] * 2 + [chr(0x4E00 + p) for p in range(99)]
    awkward = [*"\0\u2581\u2585\u200b\ufeff\ufffd\x85\u2028 \n\t\r🤗", "<s>", "</s>", "<unk>", "<0x0A>", "  "]
    scraps = [
        "the",
        " of",
        " and",
        "ing",
        "的",
        "我们",
        "存在",
        "数据库",
        "return ",
        "self.",
        "    ",
        "0x1F",
        "e\u0301",
        "１２",
    ]
    pools = [planes, plain, awkward, scraps, planes + plain * 100 + awkward * 100 + scraps * 100]
    return ["".join(draw.choices(pools[n % 5], k=draw.choice((1, 2, 5, 20)))) for n in range(count)]


def test_100_000_fuzz_strings(tokenizer):
    texts = fuzz(100_000, seed=1)
    found = by_kernel(tokenizer, texts)
    assert found == by_sentencepiece(tokenizer, texts)
    pieces = tokenizer.pieces
    assert all(b"".join([pieces[i] for i in ids]) == text.encode() for ids, text in zip(found, texts, strict=True))
    assert min(min(ids) for ids in found) > 2, "control tokens never come from text"


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=80))
def test_every_plane(tokenizer, text):
    processor = tokenizer._processor
    assert tokenizer.encode(text) == processor.encode(text)


LETTERS = "ab 的é🤗"


@settings(max_examples=250, deadline=None)
@given(
    st.dictionaries(st.text(LETTERS, min_size=1, max_size=5), st.integers(1, 4), min_size=1, max_size=25),
    st.lists(st.text(LETTERS + "x中\0\u2581", max_size=60), min_size=1, max_size=8),
)
def test_ties_and_gaps(tmp_path_factory, scores, texts):
    """Any vocabulary, often without pieces for single letters; few different scores, so that sums are equal."""
    model = serialised({piece: -score / 2 for piece, score in scores.items()} | {" ": -1.5})
    tokenizer = opened(tmp_path_factory.getbasetemp() / "ties", model)
    found = by_kernel(tokenizer, texts)
    assert found == by_sentencepiece(tokenizer, texts)
    assert found == [reference(tokenizer, text) for text in texts]


# ── Any length ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(4))
def test_texts_longer_than_the_window(tmp_path, seed):
    """Pieces reach across every place of the text, so it cannot be cut where none does."""
    draw = random.Random(seed)
    every = {"".join(draw.choices("ab的", k=draw.randint(2, 6))): -draw.randint(1, 40) / 8 for _ in range(60)}
    pairs = {a + b: -4.5 for a in "ab的" for b in "ab的"}
    tokenizer = opened(tmp_path, serialised({"a": -3.0, "b": -3.5, "的": -3.0} | pairs | every))
    text = "".join(draw.choices("ab的", k=70_000))
    assert len(text.encode()) > 5 * encode.WINDOW
    assert tokenizer.encode(text) == reference(tokenizer, text)


def test_ways_that_never_meet(tmp_path):
    """Whether "a" comes first or "aa" decides everything after: the window grows until the text's end."""
    tokenizer = opened(tmp_path, serialised({"a": -20.0, "aa": -1.0, "aaa": -30.0, "b": -1.0}))
    for length in (encode.WINDOW - 1, 5 * encode.WINDOW, 5 * encode.WINDOW + 1):
        text = "b" + "a" * length + "b"
        assert tokenizer.encode(text) == reference(tokenizer, text), length


def test_ten_megabytes_without_a_newline(tokenizer):
    prose = max((text for name in available() for text in real_texts(name)), key=len).replace("\n", " ")
    one = by_kernel(tokenizer, [prose, "  ", " "])
    for text in (prose * (10_000_000 // len(prose.encode())), "x" * 10_000_000, "\0" * 10_000_000, " " * 10_000_000):
        (ids_T, ends_D) = tokenizer.encode_arrow(pa.array([text]))
        assert int(tokenizer.piece_bytes[ids_T].sum(dtype=np.int64)) == len(text.encode())
        assert ends_D.tolist() == [len(ids_T)]
        if text.startswith(prose):
            assert ids_T[: len(one[0]) - 50].tolist() == one[0][:-50]


# ── Any array ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_arrow_arrays_of_every_kind(tokenizer):
    texts = ["one two", "", "三四\n", "\u2581 <s>\0", "five  six"]
    expected = [[1, *tokenizer.encode(text), 2] for text in texts]

    def found(column: pa.Array | pa.ChunkedArray) -> list[list[int]]:
        ids_T, ends_D = tokenizer.encode_arrow(column, bos=True, eos=True)
        assert (ids_T.dtype, ends_D.dtype) == (np.uint16, np.int64)
        return [ids_T[start:end].tolist() for start, end in pairwise([0, *ends_D.tolist()])]

    assert found(pa.array(texts)) == found(pa.array(texts, pa.large_string())) == expected
    assert found(pa.array(texts)[1:4]) == found(pa.array(texts, pa.large_string())[1:4]) == expected[1:4]
    assert found(pa.chunked_array([texts[:2], [], texts[2:]])) == expected
    assert found(pa.array(["one two", None, "三四\n"])) == expected[:3]
    assert found(pa.array([], pa.string())) == found(pa.chunked_array([], pa.string())) == []
    assert found(pa.array([""])) == [[1, 2]]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=5))
def test_bytes_that_are_no_utf8_come_back_too(tokenizer, parts):
    data = b"".join(parts)
    offsets_D1 = np.cumsum([0, *map(len, parts)])
    column = pa.Array.from_buffers(
        pa.large_string(), len(parts), [None, pa.py_buffer(offsets_D1.astype(np.int64)), pa.py_buffer(data)]
    )
    ids_T, ends_D = tokenizer.encode_arrow(column)
    pieces = [tokenizer.pieces[i] for i in ids_T.tolist()]
    assert b"".join(pieces) == data
    assert [len(b"".join(pieces[:end])) for end in ends_D.tolist()] == offsets_D1[1:].tolist()


def test_threads_and_vocabularies_in_turn(tokenizer, tmp_path):
    other = opened(tmp_path, serialised({"the": -1.0, " ": -2.0, "e": -3.0}))
    texts = [text for name in available()[:3] for text in real_texts(name)[:40]]
    expected = {tokenizer: by_kernel(tokenizer, texts), other: by_kernel(other, texts)}
    with ThreadPoolExecutor(4) as pool:
        jobs = [tokenizer, other] * 8
        for chosen, found in zip(jobs, pool.map(lambda t: by_kernel(t, texts), jobs), strict=True):
            assert found == expected[chosen]
    for threads in (2, 3, 500):
        batch = tokenizer.encode_batch(texts, threads)
        assert [ids.tolist() for ids in batch] == expected[tokenizer]


def test_a_vocabulary_beyond_16_bits(tmp_path):
    letters = [chr(0x4E00 + n) for n in range(258)]
    scores = dict.fromkeys(letters, -8.0)
    scores |= {a + b: -9.0 - (n % 7) / 8 for n, (a, b) in enumerate((a, b) for a in letters for b in letters)}
    tokenizer = opened(tmp_path, serialised(scores))
    draw = random.Random(0)
    texts = ["".join(draw.choices([*letters, "x"], k=200)) for _ in range(50)]
    batch = tokenizer.encode_batch(texts)
    assert {ids.dtype for ids in batch} == {np.dtype(np.uint32)}
    assert max(ids.max() for ids in batch) > 65_536
    assert [ids.tolist() for ids in batch] == by_sentencepiece(tokenizer, texts)


# ── Other models ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_models_that_the_kernel_leaves_to_sentencepiece(tmp_path):
    scores = {"the": -1.0, " ": -2.0, "e": -3.0, " the": -4.0, "ee": -2.5}
    texts = ["the ee the\n", " \u2581the\u2581\u2581", "", "\u2581", "\0的 e"]
    others = {
        "other scores": serialised(scores | {"h": -0.3}),
        "user-defined": serialised(scores, user_defined=["\n"]),
        "dummy prefix": serialised(scores, dummy_prefix=1),
        "bpe": serialised({piece: -float(rank) for rank, piece in enumerate(["th", "the", " the", *"the "])}, kind=BPE),
    }
    for name, model in others.items():
        tokenizer = opened(tmp_path / name, model)
        assert tokenizer._tables is None, name
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        assert tokenizer.encode(texts[0]) == processor.encode(texts[0]), name
        ids_T, ends_D = tokenizer.encode_arrow(pa.array(texts), eos=True)
        split = [ids_T[start:end].tolist() for start, end in pairwise([0, *ends_D.tolist()])]
        assert split == [[*tokenizer.encode(text), 2] for text in texts], name
        if name != "dummy prefix":
            assert [tokenizer.decode(ids) for ids in split] == texts, name


def test_a_trained_bpe_is_sentencepieces(tmp_path):
    lines = [f"The {thing} number {i} is red. 第{i}个{thing}" for i in range(90) for thing in ("house", "boat", "房子")]
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "tokenizer"), model_type="bpe", vocab_size=380,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
        minloglevel=2,
    )  # fmt: skip
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer._tables is None
    texts = lines[::20] + [text for text in fuzz(500, seed=3) if "\u2581" not in text]
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == tokenizer._processor.encode(texts)
    awkward = "The \u2581house\u2581\u2581 \0\n"
    assert tokenizer.decode(tokenizer.encode(awkward)) == awkward


def test_damaged_models(tmp_path):
    model = serialised({"the": -1.0, " ": -2.0, "e": -3.0})
    for length in range(0, len(model), 11):
        with pytest.raises(MachineError, match=r"tokenizer\.model: damaged"):
            opened(tmp_path, model[:length])
    draw = random.Random(0)
    for _ in range(300):
        damaged = bytearray(model)
        for _ in range(draw.choice((1, 20))):
            damaged[draw.randrange(len(model))] = draw.randrange(256)
        with suppress(MachineError, UserError):  # no other error, and no crash
            opened(tmp_path, bytes(damaged)).encode("the e\n")
    with pytest.raises(UserError, match="lacks the pieces of the 256 bytes"):
        opened(tmp_path, model.replace(b"<0x00>", b"<0x01>", 1).replace(b"\x18\x06", b"\x18\x01", 3))
