"""Folding, signatures, exact duplicates, and the choice of held-out documents."""

from __future__ import annotations

import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xmodel.corpus import exact
from xmodel.corpus.batches import raw_batch, with_column
from xmodel.corpus.deduplicate import signatures, signing
from xmodel.corpus.folding import fold, fold_texts, simplified
from xmodel.corpus.holdout import held_out
from xmodel.corpus.ledger import Signed

# Letters of all kinds, without the combining marks whose order a whole string's NFKD may change.
LETTERS = st.characters(exclude_categories=["Cs", "Mn", "Mc", "Me"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.one_of(st.characters(max_codepoint=0x7F), LETTERS), max_size=60), min_size=1, max_size=5))
@example(["\ufdfa" * 40, "", " \n ", "\u200b\ufeff", "a" * 10 + "\ufdfa" * 10 + "b"])  # ﷺ: 3 bytes fold to 33
def test_folding_is_nfkd_and_case_folding_with_white_space_folded(texts):
    def reference(text: str) -> bytes:
        visible = [c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf")]
        pieces = (" " if c.isspace() else plain(c) if ord(c) < 0x10000 else c for c in visible)
        return " ".join("".join(pieces).split(" ")).encode()

    def plain(c: str) -> str:
        return "".join(simplified().get(ord(d), d) for d in normal("NFKD", normal("NFKD", c).casefold()))

    def collapse(folded: bytes) -> bytes:
        return b" ".join(part for part in folded.split(b" ") if part)

    normal = unicodedata.normalize
    column = pa.array(["Ｘ front", *texts])[1:]
    assert fold(column).to_pylist() == [collapse(reference(text)) for text in texts]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello,  World!\n", "hello, world!"),
        ("Ｈｅｌｌｏ，　Ｗｏｒｌｄ！", "hello, world!"),
        ("你好，世界。", "你好,世界。"),
        ("café", "cafe\u0301"),
        ("ﬁne…", "fine..."),
        ("STRASSE", "straße"),
        ("zero\u200bwidth", "zerowidth"),
        ("漢語書籍在圖書館裡，頭髮後麵條", "汉语书籍在图书馆里，头发后面条"),
        ("裏面為什麼著急，接著瞭解乾燥的乾坤", "里面为什么着急，接着了解干燥的乾坤"),
        ("曬於臺灣、颱風和舞台；關係、聯繫", "晒于台湾、台风和舞台；关系、联系"),
    ],
)
def test_what_a_reader_calls_the_same_folds_to_the_same(one, other):
    assert fold_texts([one]) == fold_texts([other])


def test_every_character_folds_to_one_that_stays():
    forms = simplified()
    assert len(forms) > 3500
    assert not {ord(simple) for simple in forms.values()} & set(forms)
    assert fold_texts(["妳你後发髮"]) == ["妳你后发发".encode()]  # 妳 is a word of its own


def test_what_differs_stays_apart():
    texts = ["hello world", "helloworld", "你好世界", "妳好世界", "café", "cafe", "3.5", "35"]
    assert len(set(fold_texts(texts))) == len(texts)


def signed(texts: list[str | bytes]) -> pa.RecordBatch:
    batch = raw_batch([str(number) for number in range(len(texts))], [""] * len(texts))
    data = [text if isinstance(text, bytes) else text.encode() for text in texts]
    return signing(with_column(batch, "folded", pa.array(data, pa.binary())))


def test_signatures_are_murmur3():
    """Values of Austin Appleby's MurmurHash3_x64_128 with seed 0, as mmh3 and Guava print them."""
    batch = signed(["", "foo", "The quick brown fox jumps over the lazy dog"])
    assert [value.hex() for value in batch["signature"].to_pylist()] == [
        "0" * 32,
        "6145f501578671e2877dba2be487af7e",
        "6c1b07bc7bbc4be347939ac4a93c437a",
    ]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=30))
def test_signatures_agree_exactly_where_texts_do(texts):
    values = signed(texts)["signature"].to_pylist()
    assert [values.index(value) for value in values] == [texts.index(text) for text in texts]


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("slots", [8, 64, 1 << 12])  # 8: many passes, each over another part of the hashes
def test_the_first_of_equal_documents_is_kept_however_often_they_are_gone_through(monkeypatch, slots, everywhere):
    chance = np.random.default_rng(slots)
    hashes = signatures(signed([f"document {number}" for number in range(60)]))[chance.integers(0, 60, 200)]
    alive = chance.random(200) < 0.8
    validation, first = 50, {}
    expected = {}
    for ordinal in np.flatnonzero(alive).tolist():
        key = hashes[ordinal].tobytes()
        if key in first and first[key] < validation <= ordinal:
            expected[ordinal] = ("in_validation", first[key])
        elif key in first and everywhere:
            expected[ordinal] = ("duplicate", first[key])
        elif ordinal < validation or everywhere:
            first.setdefault(key, ordinal)

    class Listed:  # a ledger of 200 documents in batches of 30
        def __init__(self) -> None:
            self.validation = validation

        def __len__(self) -> int:
            return 200

        def batches(self, columns):
            for start in range(0, 200, 30):
                data = [value.tobytes() for value in hashes[start : start + 30]]
                batch = pa.record_batch({"signature": pa.array(data, pa.binary(16))})
                yield Signed(start, alive[start : start + 30], batch)

    monkeypatch.setattr(exact, "LEAST_SLOTS", slots)
    found = {
        int(ordinal): (dropped.reason, int(kept))
        for dropped in exact.find_exact_duplicates(Listed(), everywhere=everywhere, memory=0)
        for ordinal, kept in zip(dropped.ordinals_K, dropped.equals_K, strict=True)
    }
    assert found == expected
    assert {reason for reason, _ in found.values()} == {"in_validation", "duplicate"} - (
        set() if everywhere else {"duplicate"}
    )


def test_hold_out_takes_the_share_whatever_the_order():
    hashes = signatures(signed([f"document {number}" for number in range(20_000)]))
    chosen = held_out(hashes, 0.05, seed=3)
    assert chosen.mean() == pytest.approx(0.05, abs=0.006)
    assert (held_out(hashes[::-1], 0.05, seed=3)[::-1] == chosen).all()
    assert (held_out(hashes, 0.1, seed=3) | ~chosen).all()  # a larger share holds the smaller one
    assert (held_out(hashes, 0.05, seed=4) & chosen).mean() == pytest.approx(0.0025, abs=0.0015)
    assert not held_out(hashes, 0.0, seed=3).any()
