"""Training: the reserved block, where newlines go, BPE, and text that is strange or impossible."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import SYLLABLES, THINGS, TRICKY, documents, fuzz

from xmodel.errors import UserError
from xmodel.recipe.settings import Tokenizer as Settings
from xmodel.tokenizer.codec import Tokenizer
from xmodel.tokenizer.convert import CONTROL, NORMAL, _divisions, read_pieces
from xmodel.tokenizer.train import BOS, EOS, PAD, RESERVED, UNK, _Feed, train

BLOCK = [UNK, BOS, EOS, PAD, *RESERVED]


@pytest.fixture(scope="module", params=["unigram", "shortest", "bpe"])
def folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    train(documents(), Settings(vocab_size=700, model_type=request.param), path, seed=0)
    return path


def test_the_first_sixteen_ids_are_control_tokens_that_no_text_becomes(folder):
    pieces = read_pieces((folder / "tokenizer.model").read_bytes())
    assert [piece.text for piece in pieces[:16]] == BLOCK
    assert {piece.type for piece in pieces[1:16]} == {CONTROL}
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id()) == (0, 1, 2, 3)
    tokenizer = Tokenizer.load(folder)
    plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in [*BLOCK, "".join(BLOCK), "a<|im_start|>user\nb<|im_end|>"]:
        ids = tokenizer.encode(text)
        assert ids == processor.encode(text) == plain.encode(text, add_special_tokens=False).ids
        assert min(ids) > 15
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode(list(range(1, 16))) == ""


def test_the_block_survives_transformers(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(str(folder))
    loaded.save_pretrained(str(tmp_path))
    again = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    ours = Tokenizer.load(folder)
    chat = "<|im_start|>user\napple <tool_call>{}</tool_call><|im_end|>\n"
    for automatic in (loaded, again):
        assert automatic.convert_tokens_to_ids(BLOCK) == list(range(16))
        assert (automatic.pad_token, automatic.pad_token_id, len(automatic)) == (PAD, 3, 700)
        assert automatic.encode(chat) == [1, *ours.encode(chat)]
        meant = automatic.encode(chat, split_special_tokens=False, add_special_tokens=False)
        assert (meant[0], meant[-2:], meant.count(6), meant.count(7)) == (4, [5, *ours.encode("\n")], 1, 1)
        assert automatic.decode(meant, skip_special_tokens=True) == "user\napple {}\n"
    padded = again(["apple", "the apple of the river"], padding=True, padding_side="right")["input_ids"]
    assert padded[0][-1] == 3


def test_newlines_join_punctuation_but_neither_letters_nor_han(folder):
    pieces = [piece for piece in read_pieces((folder / "tokenizer.model").read_bytes()) if piece.type == NORMAL]
    with_newline = {piece.text for piece in pieces if "\n" in piece.text}
    assert {"\n", ".\n", "。\n"} <= with_newline
    assert not [text for text in with_newline if any(c.isalnum() or c == "\u2581" for c in text)]
    assert "\t" in {piece.text for piece in pieces}
    assert not [piece for piece in pieces if "\u2409" in piece.text]
    tokenizer = Tokenizer.load(folder)
    for text in ("a\u2409b", "\t\u2409\t", "x\n\ty"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bpe_is_the_same_in_three_libraries(tmp_path):
    train(documents(), Settings(vocab_size=900, model_type="bpe"), tmp_path, seed=0)
    tokenizer = Tokenizer.load(tmp_path)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    texts = [*documents()[::3], *TRICKY, *fuzz(1500, seed=5)]
    ours = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
    assert ours == [found.ids for found in plain.encode_batch(texts, add_special_tokens=False)]
    assert [tokenizer.decode(ids) for ids in ours] == texts
    here = [(text, ids) for text, ids in zip(texts, ours, strict=True) if "\u2581" not in text]
    assert [ids for _, ids in here] == processor.encode([text for text, _ in here])
    assert np.concatenate(tokenizer.encode_batch(texts)).dtype == np.uint16


@settings(max_examples=200, deadline=None)
@given(st.text("ab", min_size=1, max_size=40))
def test_bpe_of_overlapping_pieces(tmp_path_factory, text):
    """Letters of which many pieces overlap themselves, where SentencePiece and `tokenizers` could differ."""
    base = tmp_path_factory.getbasetemp() / "overlaps"
    if not (base / "tokenizer.json").exists():
        draw = random.Random(1)
        made = ["".join(draw.choices("aab", k=draw.choice([3, 9, 30]))) for _ in range(4000)]
        train(made, Settings(vocab_size=460, model_type="bpe"), base, seed=0)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    plain = tokenizers.Tokenizer.from_file(str(base / "tokenizer.json"))
    assert processor.encode(text) == plain.encode(text, add_special_tokens=False).ids


def test_divisions_of_a_piece_come_as_overlaps_are_found_from_the_left():
    known = {"a", "b", "ab", "ba", "aa", "aaa"}
    assert _divisions("aba", known) == [2, 1]  # ab a ba: "aba" is cut at 2 first, whatever its halves' ranks
    assert _divisions("aaaa", known) == [3, 1, 2]
    assert _divisions("ab", known) == [1]


@pytest.mark.parametrize("model_type", ["unigram", "shortest", "bpe"])
def test_too_many_pieces_names_the_largest(tmp_path, model_type):
    made = documents()[:200]
    with pytest.raises(UserError, match=r"vocab_size: 30,000 .* largest possible is [\d,]+$") as caught:
        train(made, Settings(vocab_size=30_000, model_type=model_type), tmp_path, seed=0)
    largest = int(str(caught.value).rsplit(" ", 1)[1].replace(",", ""))
    figures = train(made, Settings(vocab_size=largest, model_type=model_type), tmp_path, seed=0)
    assert (figures["vocab_size"], figures["model_type"]) == (largest, model_type)
    with pytest.raises(UserError, match="largest possible"):
        train(made, Settings(vocab_size=largest + 1, model_type=model_type), tmp_path, seed=0)


def test_bpe_training_is_deterministic(tmp_path):
    for name in "ab":
        train(documents(), Settings(vocab_size=500, model_type="bpe"), tmp_path / name, seed=1)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"tokenizer.model", "tokenizer.json", "tokenizer_config.json", "tokenizer-stats.json", "codec.json"}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


STRANGE = {
    "one word again and again": ["apple " * 5000],
    "identical documents": ["The same text.\n"] * 3000,
    "no English": ["河流与窗户，苹果和图书馆。" * 3, "窗户和苹果，小林回家了！" * 2],
    "no Chinese": ["The river and the window, and an apple.", "Then Omar went home to the library."] * 2,
    "NUL": ["a\0b the apple\0\0", "\0", "the river\0"],
    "U+2581 and its like": ["the\u2581apple \u2581\u2581 river\u2585 x\u2409y\tz", "\u2581"],
    "no newline in two megabytes": ["河流，window 苹果;river " * 80_000],
    "no space either": ["河流苹果" * 60_000 + "river" * 60_000],
    "white space around one letter": [" \n\t a \r\n"],
}


@pytest.mark.parametrize("texts", STRANGE.values(), ids=STRANGE.keys())
def test_strange_text(tmp_path, texts):
    """The largest vocabulary that it supports is named, and that one is lossless on it and on everything else."""
    with pytest.raises(UserError, match=r"largest possible is [\d,]+$") as caught:
        train(texts, Settings(vocab_size=32_000), tmp_path, seed=0)
    largest = int(str(caught.value).rsplit(" ", 1)[1].replace(",", ""))
    train(texts, Settings(vocab_size=largest), tmp_path, seed=0)
    tokenizer = Tokenizer.load(tmp_path)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*(text[:5000] for text in texts[:3]), *TRICKY[:40], "apple 苹果\n\n\t"]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert ids == plain.encode(text, add_special_tokens=False).ids


def test_ten_megabytes_without_a_newline_are_all_learned_from(tmp_path):
    line = "".join(random.Random(0).choices(THINGS, k=4000)) * 520
    figures = train([line], Settings(vocab_size=400), tmp_path, seed=0)
    assert figures["bytes"] == len(line.encode()) > 10_000_000
    tokenizer = Tokenizer.load(tmp_path)
    assert len(tokenizer.encode("window")) < len("window")
    assert len(tokenizer.encode("苹果")) == 1


def test_a_lone_surrogate_is_named(tmp_path):
    with pytest.raises(UserError, match=r"document 2 holds the lone surrogate U\+DC80"):
        train(["fine", "not\udc80fine"], Settings(vocab_size=400), tmp_path, seed=0)
    assert not list(tmp_path.iterdir())


def test_only_white_space_is_no_text(tmp_path):
    for nothing in ([" \n\t "], ["\0\0"], ["\u2581"], []):
        with pytest.raises(UserError, match="no text to train on"):
            train(nothing, Settings(vocab_size=400), tmp_path, seed=0)


def test_the_json_names_no_added_token(folder):
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert content["added_tokens"] == []
    assert not re.search("\u2581", (folder / "tokenizer.json").read_text(encoding="utf-8"))


# How far a piece may reach: what at least one piece of each vocabulary holds, and what none of them does.
REACH = {
    "script": (r"^\u2581[a-z]+$", r"[^\u2581]\u2581|[a-zA-Z][^a-zA-Z]|[\u4e00-\u9fff][^\u4e00-\u9fff]"),
    "word": (r"[a-z]\.|[\u4e00-\u9fff]。", r"[^\u2581]\u2581"),
    "phrase": (r"[a-z]\u2581[a-z]", r"[^\u2581]\u2581+$|\n[^\n]"),
}


@pytest.mark.parametrize("model_type", ["unigram", "shortest"])
@pytest.mark.parametrize("joins", REACH)
def test_how_far_pieces_reach(tmp_path, joins, model_type):
    """And whatever they are, the text comes back, and the ids are the same in three libraries."""
    asked = Settings(vocab_size=700, joins=joins, max_piece_length=24, model_type=model_type)
    train(documents(), asked, tmp_path, seed=0)
    pieces = [
        piece.text for piece in read_pieces((tmp_path / "tokenizer.model").read_bytes())[16:] if piece.type == NORMAL
    ]
    some, none = map(re.compile, REACH[joins])
    assert any(map(some.search, pieces))
    assert not [piece for piece in pieces if none.search(piece)]
    assert not [piece for piece in pieces if len(piece) > 1 and re.search("[0-9]", piece)]
    tokenizer = Tokenizer.load(tmp_path)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    texts = [*documents()[::3], *TRICKY, *fuzz(300, seed=6)]
    ours = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
    assert [tokenizer.decode(ids) for ids in ours] == texts
    assert ours == [found.ids for found in plain.encode_batch(texts, add_special_tokens=False)]
    here = [(text, ids) for text, ids in zip(texts, ours, strict=True) if "\u2581" not in text]
    assert [ids for _, ids in here] == processor.encode([text for text, _ in here])


def test_shortest_has_the_pieces_of_bpe_and_cuts_a_text_into_as_few_as_it_can(tmp_path):
    made = {}
    for kind in ("bpe", "shortest"):
        train(documents(), Settings(vocab_size=900, model_type=kind), tmp_path / kind, seed=0)
        made[kind] = Tokenizer.load(tmp_path / kind)
    ours = made["shortest"]
    assert ours.pieces == made["bpe"].pieces
    known, longest = set(ours.pieces[16:]), max(map(len, ours.pieces))
    fewest = lengths = merged = 0
    draw = random.Random(1)
    for text in ["".join(draw.choices([*SYLLABLES, " ", "e", "t"], k=60)) for _ in range(200)]:
        data = text.encode()
        best = [0, *[len(data)] * len(data)]
        for end in range(1, len(data) + 1):
            starts = range(max(0, end - longest), end)
            best[end] = min(best[start] + 1 for start in starts if data[start:end] in known or end - start == 1)
        fewest += best[-1]
        lengths += len(ours.encode(text))
        merged += len(made["bpe"].encode(text))
    assert fewest <= lengths <= 1.002 * fewest < 0.99 * merged


def test_numbers_join_when_they_may(tmp_path):
    made = [f"In {year} there were {year - 1900} rivers.\n" for year in range(1950, 2020)] * 9
    train(made, Settings(vocab_size=390, split_digits=False), tmp_path, seed=0)
    tokenizer = Tokenizer.load(tmp_path)
    assert any(re.fullmatch(rb" ?(19|20)\d?", piece) for piece in tokenizer.pieces)
    assert tokenizer.decode(tokenizer.encode("In 1987 and 123456789")) == "In 1987 and 123456789"


def test_words_of_han_count_as_often_as_is_said():
    texts = ["two rivers two 河流。\n"] * 3
    fed = {weight: _Feed(texts, Settings(han_weight=weight), 0) for weight in (1.0, 2.5)}
    for feed in fed.values():
        feed.read()
    assert list(fed[1.0]) == ["two\t3", " rivers\t3", " two\t3", " \t3", "河流\t3", "。\n\t3"]
    assert list(fed[2.5]) == ["two\t30", " rivers\t30", " two\t30", " \t30", "河流\t75", "。\n\t30"]


def test_too_many_words_are_sampled_so_that_counts_stay_true(monkeypatch):
    """A twentieth of the words fits: frequent ones are all there, exactly; rare ones add up to what they were."""
    draw = random.Random(3)
    rare = [f"w{draw.randrange(10**9)}" for _ in range(20_000)]
    texts = [" ".join(draw.sample(rare, 100) + ["often"] * 10) for _ in range(200)]
    whole = _Feed(texts, Settings(), 0)
    whole.read()
    monkeypatch.setattr("xmodel.tokenizer.train.WORDS_CHARACTERS", sum(map(len, whole.words)) // 20)
    feeds = [_Feed(texts, Settings(), seed) for seed in (0, 0, 1)]
    for feed in feeds:
        feed.read()
        assert sum(map(len, feed.words)) <= sum(map(len, whole.words)) // 20
        assert feed.words[" often"] == 2000
        assert min(feed.words.values()) >= feed.threshold > 1
        assert feed.words.total() == pytest.approx(whole.words.total(), rel=0.15)
    assert feeds[0].words == feeds[1].words != feeds[2].words
