"""From a SentencePiece model of ours to a Hugging Face tokenizer that gives the same ids.

Unigram, exact for every text: both libraries run the same Viterbi search, and what makes the results *exactly* equal is

* scores that are multiples of 2^-10, so that sums are exact in SentencePiece's float32 (to 2^14), in our integers and
  in the float64 of `tokenizers`, and ties break alike: both keep the candidate that starts earliest;
* control, unknown and byte pieces, which are ordinary strings in the JSON, at a score below that of any pieces that
  spell the same: a text that spells `<s>` or `<0x0A>` is then always cut into others (train.py: REQUIRED);
* pieces written with a plain space in the JSON, and neither normalizer nor pre-tokenizer. SentencePiece's stand-in
  for the space, U+2581, then is an ordinary unknown character there and falls back to its bytes, as in our codec;
* newline and tab as ordinary pieces: user-defined ones get a bonus in SentencePiece that is no multiple of 2^-10.

BPE: SentencePiece joins the neighbours whose joint piece ranks first, leftmost first, however the piece is divided;
`tokenizers` ranks each division of a piece by itself. So `merges` lists every division, those of one piece next to each
other and in the order in which overlapping ones are found from the left (`_divisions`). What is left: two places in a
text that make the *same* piece from *different* halves, not overlapping, where one of them at once opens a merge of a
better rank beside the other. It was not found in any text (tests, benchmark), but it is not excluded; so our codec
encodes with tokenizer.json itself, and claims nothing about SentencePiece for BPE.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from xmodel.errors import MachineError

SPACE = "\u2581"  # how SentencePiece writes a space inside a piece
TAB = "\u2409"  # how a tab is written while training
SCORE_STEP = 2.0**-10  # scores are multiples of this
NEVER = -1000.0  # score of pieces that text must not match, or lower: see `never`
NOT_A_MODEL = "tokenizer.model: damaged, or not a SentencePiece model"

# SentencePiece.Type in sentencepiece_model.proto
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


class Piece(NamedTuple):
    """One vocabulary entry; its place in the list is its id."""

    text: str
    score: float
    type: int


def surface(piece: Piece) -> bytes:
    """The UTF-8 bytes that a piece stands for in a text; nothing for control pieces, U+FFFD for the unknown piece."""
    if piece.type == CONTROL:
        return b""
    if piece.type == UNKNOWN:
        return "\ufffd".encode()
    if piece.type == BYTE:
        return bytes([int(piece.text[3:5], 16)])
    return piece.text.replace(SPACE, " ").encode()


def read_pieces(model: bytes) -> list[Piece]:
    """The vocabulary of a serialised SentencePiece model, in id order.

    Raises:
        MachineError: the bytes are not a whole SentencePiece model.
    """
    fields = list(_fields(model))
    if not {1, 2, 3} <= {number for number, _ in fields}:  # pieces, trainer_spec, normalizer_spec
        raise MachineError(NOT_A_MODEL)
    return [_decode_piece(body) for number, body in fields if number == 1 and isinstance(body, bytes)]


def model_type(model: bytes) -> str:
    """What the trainer_spec of a serialised model says: unigram, bpe, word or char.

    Raises:
        MachineError: the bytes are not a whole SentencePiece model.
    """
    kind = dict(_fields(_spec(model, 2))).get(3, 1)
    names = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
    if kind not in names:
        raise MachineError(NOT_A_MODEL)
    return names[kind]  # pyright: ignore[reportArgumentType]


class Normalizer(NamedTuple):
    """What a model does to a text first (normalizer_spec)."""

    charsmap: bytes  # compiled rules, as NFKC; empty: identity
    dummy_prefix: bool  # a space is put before the text
    collapse: bool  # spaces at both ends go, runs of spaces become one
    escape: bool  # spaces are written as U+2581


def normalizer(model: bytes) -> Normalizer:
    """The normalizer_spec of a serialised model.

    Raises:
        MachineError: the bytes are not a whole SentencePiece model.
    """
    fields = dict(_fields(_spec(model, 3)))
    charsmap = fields.get(2, b"")
    flags = [bool(fields.get(number, 1)) for number in (3, 4, 5)]
    return Normalizer(charsmap if isinstance(charsmap, bytes) else b"", *flags)


def for_our_codec(model: bytes, more: str = "", shortest: bool = False) -> bytes:
    """The same model with the tab in its place and, for unigram, scores rounded to multiples of `SCORE_STEP`.

    Args:
        model: as SentencePiece trained it.
        more: characters that get pieces too, after all others.
        shortest: of a BPE model make a unigram model with the same pieces, which cuts a text into as few as it can (as
            PathPiece does, Schmidt et al. 2024, arXiv 2402.18376, section 3.2). Every piece costs nearly the same; of
            ways with equally many, the one of pieces that BPE found earlier, the more frequent ones, is cheaper.
    """
    pieces = [piece for piece in read_pieces(model) if piece.type == NORMAL]
    ranked = {piece.text: rank for rank, piece in enumerate(sorted(pieces, key=lambda piece: -piece.score))}
    unigram = shortest or model_type(model) == "unigram"

    def score(piece: Piece) -> float:
        if shortest and piece.type == NORMAL:
            return round((-5 - math.log(ranked[piece.text] + 30) / 2) / SCORE_STEP) * SCORE_STEP
        return round(piece.score / SCORE_STEP) * SCORE_STEP if unigram else round(piece.score)

    step, lowest = SCORE_STEP if unigram else 1.0, min(map(score, pieces))
    rewritten = bytearray()

    def add(number: int, body: bytes) -> None:
        rewritten.extend(_varint(number << 3 | 2) + _varint(len(body)) + body)

    for number, body in _fields(model):
        if isinstance(body, int):
            rewritten += _varint(number << 3) + _varint(body)
        elif number == 1:
            piece = _decode_piece(body)
            add(1, _encode_piece(Piece(_with_tab(piece.text), score(piece), piece.type)))
        elif number == 2 and shortest:
            add(2, body + b"\x18\x01")  # model_type = UNIGRAM: of a field that is there twice the last one counts
        else:
            add(number, body)
    for rank, character in enumerate(more, start=1):
        add(1, _encode_piece(Piece(_with_tab(character), lowest - rank * step, NORMAL)))
    return bytes(rewritten)


def _with_tab(text: str) -> str:
    return text.replace(TAB, "\t")


def write_hugging_face(model: bytes, folder: Path, add_bos: bool) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, which `AutoTokenizer` loads without remote code.

    Args:
        model: a serialised model from `for_our_codec`.
        folder: an existing folder.
        add_bos: put `<s>` before every text that is encoded with special tokens (the default of most engines).
    """
    pieces = read_pieces(model)
    unk, bos, eos, *reserved = (piece.text for piece in pieces if piece.type in (UNKNOWN, CONTROL))
    body = _bpe(pieces) if model_type(model) == "bpe" else _unigram(pieces)
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": unk,
        "bos_token": bos,
        "eos_token": eos,
        **({"pad_token": reserved[0], "extra_special_tokens": reserved[1:]} if reserved else {}),
        "add_bos_token": add_bos,
        "add_eos_token": False,
        "split_special_tokens": True,  # `<s>` in a text is three characters, not a control token
        "clean_up_tokenization_spaces": False,
    }
    _write(folder / "tokenizer.json", tokenizer_json(body, decoder, template=bos_template(bos, 1) if add_bos else None))
    _write(folder / "tokenizer_config.json", config)


def tokenizer_json(
    model: dict[str, Any], decoder: Any, normalizer: Any = None, template: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The content of a tokenizer.json."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],  # anything listed here would be matched in plain text
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "post_processor": template,
        "decoder": decoder,
        "model": model,
    }


def bos_template(bos: str, bos_id: int) -> dict[str, Any]:
    """The post-processor that begins every text with `bos`."""
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            {"SpecialToken": {"id": bos, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": bos, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def never(pieces: list[Piece]) -> float:
    """A score so low that a piece of type control, unknown or byte loses against its own characters.

    Text that hardly supports its vocabulary has pieces that score below -1000 by themselves.
    """
    lowest = min((piece.score for piece in pieces if piece.type == NORMAL), default=0.0)
    longest = max(len(piece.text) for piece in pieces if piece.type != NORMAL)
    return min(NEVER, float(round(lowest * (longest + 1))))


def _unigram(pieces: list[Piece]) -> dict[str, Any]:
    low = never(pieces)
    vocabulary = [
        [piece.text.replace(SPACE, " "), piece.score] if piece.type == NORMAL else [piece.text, low] for piece in pieces
    ]
    return {"type": "Unigram", "unk_id": 0, "vocab": vocabulary, "byte_fallback": True}


def _bpe(pieces: list[Piece]) -> dict[str, Any]:
    written = [piece.text.replace(SPACE, " ") if piece.type == NORMAL else piece.text for piece in pieces]
    return bpe_model(written, [piece.score for piece in pieces], [piece.type == NORMAL for piece in pieces])


def bpe_model(written: list[str], scores: list[float], normal: list[bool]) -> dict[str, Any]:
    """The model of a tokenizer.json for SentencePiece's BPE: every division of every piece is a merge.

    Args:
        written: the pieces by id, as they stand in the JSON.
        scores: of each piece; a higher one is joined earlier.
        normal: whether a piece may be found in text.
    """
    order = sorted((i for i, found in enumerate(normal) if found), key=lambda i: (-scores[i], i))
    known = {written[i] for i in order}
    merges = [[piece[:at], piece[at:]] for i in order for piece in [written[i]] for at in _divisions(piece, known)]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": written[0],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": "<0x00>" in written and not normal[written.index("<0x00>")],
        "ignore_merges": False,
        "vocab": {piece: i for i, piece in enumerate(written)},
        "merges": merges,
    }


def _divisions(piece: str, known: set[str]) -> list[int]:
    """Where `piece` falls into two known ones, in the order in which SentencePiece would find overlapping ones.

    Three neighbours x y z overlap when xy = yz = `piece`: cut at |x| on the left, at |y| = |piece| - |x| on the right,
    and |x| is a period of `piece`. Then the cut at |x| must rank first. Where both lengths are periods the piece is a
    run of one string, which merging from the left has made into blocks that never grow: the longer left part first.
    """
    length = len(piece)

    def rank(at: int) -> tuple[int, bool]:
        other = length - at
        leads, follows = piece.startswith(piece[at:]), piece.startswith(piece[other:])
        return -max(at, other), not leads if leads != follows else at < other

    return sorted((at for at in range(1, length) if piece[:at] in known and piece[at:] in known), key=rank)


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


# The few lines of Protocol Buffers that are needed: SentencePiece's Python package brings a generated parser, but that
# needs the protobuf package at its own version.


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a message: an int for a varint, the bytes of anything else."""
    position = 0
    try:
        while position < len(message):
            tag, position = _read_varint(message, position)
            kind, size = tag & 7, {1: 8, 5: 4}.get(tag & 7, 0)
            if kind in (0, 2):
                value, position = _read_varint(message, position)
                if kind == 0:
                    yield tag >> 3, value
                    continue
                size = value
            if (not size and kind != 2) or position + size > len(message):
                raise MachineError(NOT_A_MODEL)
            yield tag >> 3, message[position : position + size]
            position += size
    except IndexError:
        raise MachineError(NOT_A_MODEL) from None


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _spec(model: bytes, number: int) -> bytes:
    """The last length-delimited field of this number: 2 is trainer_spec, 3 normalizer_spec."""
    found = [body for field, body in _fields(model) if field == number and isinstance(body, bytes)]
    if not found:
        raise MachineError(NOT_A_MODEL)
    return found[-1]


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def _decode_piece(body: bytes) -> Piece:
    """SentencePiece { string piece = 1; float score = 2; Type type = 3 [default = NORMAL] }"""
    found = {1: b"", 2: bytes(4), 3: NORMAL} | dict(_fields(body))
    text, score, kind = found[1], found[2], found[3]
    if not (found.keys() == {1, 2, 3} and isinstance(text, bytes) and isinstance(score, bytes) and len(score) == 4):
        raise MachineError(NOT_A_MODEL)
    if not isinstance(kind, int):
        raise MachineError(NOT_A_MODEL)
    try:
        return Piece(text.decode(), struct.unpack("<f", score)[0], kind)
    except UnicodeDecodeError:
        raise MachineError(NOT_A_MODEL) from None


def _encode_piece(piece: Piece) -> bytes:
    text = piece.text.encode()
    body = b"\x0a" + _varint(len(text)) + text + b"\x15" + struct.pack("<f", piece.score)
    return body if piece.type == NORMAL else body + b"\x18" + _varint(piece.type)
