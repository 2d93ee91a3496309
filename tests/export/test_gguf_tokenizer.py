"""What llama.cpp's tokenizers make of the vocabularies in our files, by what `src/llama-vocab.cpp` does, written anew.

benchmarks/gguf_check.py asks llama.cpp itself; its results stand in docs/export.md.
"""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from made_run import TEXTS, make_run

from xmodel.errors import UserError
from xmodel.export.gguf_tokenizer import Vocabulary, vocabulary
from xmodel.tokenizer.codec import Tokenizer

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
MORE = (
    "========",
    "a" + " " * 21 + "b",
    "路很长，可是安娜很高兴。\n" * 3,
    "\tif value > 17:\n\t\treturn",
    "龘 ▁ 🙂🙂",
    "\0",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {kind: make_run(folder / kind, kind=kind) for kind in ("unigram", "shortest", "bpe")}


def t5(found: Vocabulary, text: str) -> list[int]:
    """From the left; a candidate wins when it scores more; characters without a piece are `unk`, neighbours one."""
    normal = {found.tokens[i]: i for i, kind in enumerate(found.types) if kind == NORMAL}
    data = text.replace(" ", "\u2581").encode()
    unknown = min(found.scores[i] for i in normal.values()) - 10
    best: list[tuple[float, int, int]] = [(0.0, 0, 0)] + [(-1e300, 0, 0)] * len(data)
    longest, at = max(map(len, normal)), 0
    while at < len(data):
        width = 1 if data[at] < 128 else 2 if data[at] < 224 else 3 if data[at] < 240 else 4
        for size in range(1, min(longest, len(data) - at) + 1):
            number = normal.get(data[at : at + size])
            if number is not None and best[at][0] + found.scores[number] > best[at + size][0]:
                best[at + size] = (best[at][0] + found.scores[number], at, number)
        if data[at : at + width] not in normal and best[at][0] + unknown > best[at + width][0]:
            best[at + width] = (best[at][0] + unknown, at, found.ids["unk"])
        at += width
    ids: list[int] = []
    while at:
        _, at, number = best[at]
        if number != found.ids["unk"] or ids[-1:] != [number]:
            ids.append(number)
    return ids[::-1]


def plamo2(found: Vocabulary, text: str) -> list[int]:
    """From the end, in steps of 1e-4, the longest of equals; control tokens are below what it looks at."""
    steps = {
        found.tokens[i].decode(): round(found.scores[i] * 1e4) for i, kind in enumerate(found.types) if kind != BYTE
    }
    numbers = {found.tokens[i].decode(): i for i in range(len(found.tokens))}
    text = text.removeprefix("\ufeff")
    longest = max(map(len, steps))
    costs, ways = [0] * (len(text) + 1), [(1, -1)] * len(text)
    for at in reversed(range(len(text))):
        costs[at] = costs[at + 1] + 10_000_000
        for size in range(min(longest, len(text) - at), 0, -1):
            step = steps.get(text[at : at + size], -20_000_000)
            if step > -20_000_000 and costs[at + size] - step < costs[at]:
                costs[at], ways[at] = costs[at + size] - step, (size, numbers[text[at : at + size]])
    ids, at = [], 0
    while at < len(text):
        size, number = ways[at]
        ids += [number] if number >= 0 else [numbers[f"<0x{byte:02X}>"] for byte in text[at].encode()]
        at += size
    return ids


def spm(found: Vocabulary, text: str) -> list[int]:
    """The neighbours whose joint token scores most are joined, leftmost first; what is no token is spelt in bytes."""
    numbers = {token.decode(): i for i, token in enumerate(found.tokens)}
    parts = list(text.replace(" ", "\u2581"))
    while True:
        joint = [numbers.get(left + right) for left, right in pairwise(parts)]
        ranked = [(-found.scores[i], at) for at, i in enumerate(joint) if i is not None]
        if not ranked:
            break
        at = min(ranked)[1]
        parts[at : at + 2] = ["".join(parts[at : at + 2])]
    spelt = [[numbers[p]] if p in numbers else [numbers[f"<0x{b:02X}>"] for b in p.encode()] for p in parts]
    return [number for part in spelt for number in part]


@pytest.mark.parametrize("kind", ["unigram", "shortest"])
def test_unigram_as_t5(runs: dict[str, Path], kind: str) -> None:
    tokenizer = Tokenizer.load(runs[kind] / "tokenizer")
    found = vocabulary(runs[kind] / "tokenizer", 420, True)
    assert found.model == "t5"
    assert (found.ids, found.add_bos) == ({"bos": 1, "eos": 2, "unk": 0, "pad": 3}, True)
    assert (found.dummy_prefix, found.collapse, found.charsmap) == (False, False, b"")
    assert found.types[:4] == [UNKNOWN, CONTROL, CONTROL, CONTROL]
    first = found.types.index(BYTE)
    # Bytes of ASCII that are no pieces otherwise are written as the characters that they are.
    for byte in range(256):
        alone = (0 < byte < 32 and chr(byte) not in "\t\n") or byte == 127
        assert found.tokens[first + byte] == (chr(byte) if alone else f"<0x{byte:02X}>").encode()
        assert found.types[first + byte] == (NORMAL if alone else BYTE)
    assert b"\n" in found.tokens
    for text in TEXTS + MORE:
        ours, theirs = tokenizer.encode(text), t5(found, text)
        if any(found.types[number] == BYTE for number in ours):  # a character without a piece, or U+2581
            assert theirs != ours
        else:
            assert theirs == ours


@pytest.mark.parametrize("kind", ["unigram", "shortest"])
def test_unigram_as_plamo2_spells_every_character(runs: dict[str, Path], kind: str) -> None:
    tokenizer = Tokenizer.load(runs[kind] / "tokenizer")
    found = vocabulary(runs[kind] / "tokenizer", 420, True, "plamo2")
    for text in TEXTS + MORE:
        ours, theirs = tokenizer.encode(text), plamo2(found, text)
        assert tokenizer.decode(theirs) == text
        # Of segmentations with the same score it may take another one.
        assert sum(round(found.scores[i] * 1e4) for i in ours) == sum(round(found.scores[i] * 1e4) for i in theirs)
        if "==" not in text and "  " not in text:
            assert ours == theirs


def test_bpe_is_equal_everywhere(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer.load(runs["bpe"] / "tokenizer")
    found = vocabulary(runs["bpe"] / "tokenizer", 420, True)
    assert found.model == "llama"
    assert "control tokens" not in capsys.readouterr().err
    for text in TEXTS + MORE:
        if "\u2581" not in text:  # which it reads as a space
            assert spm(found, text) == tokenizer.encode(text), text


def test_a_padded_vocabulary_and_one_of_another_model(runs: dict[str, Path]) -> None:
    found = vocabulary(runs["unigram"] / "tokenizer", 448, False)
    assert len(found.tokens) == len(set(found.tokens)) == len(found.scores) == len(found.types) == 448
    assert found.types[420:] == [CONTROL] * 28
    assert not found.add_bos
    with pytest.raises(UserError, match="420 pieces, but the model has 400 embeddings"):
        vocabulary(runs["unigram"] / "tokenizer", 400, True)


def test_a_tokenizer_json_of_somebody_else(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(runs["bpe"] / "tokenizer", folder)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"convert_hf_to_gguf\.py"):
        vocabulary(folder, 420, True)
    with pytest.raises(UserError, match="420 pieces"):
        vocabulary(runs["bpe"] / "tokenizer", 4, True)


def test_a_model_with_its_own_normaliser(runs: dict[str, Path], tmp_path: Path) -> None:
    """SentencePiece's defaults: NFKC, a space before the text, runs of spaces joined."""
    import sentencepiece
    from tiny import texts

    (tmp_path / "text").write_text("\n".join(texts()))
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=420, hard_vocab_limit=False,
        byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.vocab").unlink()
    (tmp_path / "codec.json").write_text(json.dumps({"encodes": "tokenizer.model", "bos_id": 1, "eos_id": 2}))
    size = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model")).vocab_size()  # pyright: ignore[reportCallIssue]
    found = vocabulary(tmp_path, size, True)
    assert (found.model, found.dummy_prefix, found.collapse) == ("t5", True, True)
    assert len(found.charsmap) > 1000
    with pytest.raises(UserError, match="not one of ours; write it with --tokenizer t5"):
        vocabulary(tmp_path, size, True, "plamo2")
