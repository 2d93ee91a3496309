"""From a SentencePiece unigram model to a Hugging Face tokenizer that gives the same ids for every text.

Both libraries run the same Viterbi search; what makes the results *exactly* equal is

* scores that are multiples of 2^-10, so that sums are exact in SentencePiece's float32 (below 2^14, see codec.py) and
  in the float64 of `tokenizers`, and ties break alike: both keep the candidate that starts earliest;
* control, unknown and byte pieces at a score of -1000 in the JSON, where they are ordinary strings: text that spells
  `<s>` or `<0x0A>` is then always cut into its characters, which are all pieces (train.py requires printable ASCII);
* pieces written with a plain space in the JSON, and neither normalizer nor pre-tokenizer. SentencePiece's stand-in
  for the space, U+2581, then is an ordinary unknown character there and falls back to its bytes, as in our codec;
* newline and tab as ordinary pieces: user-defined ones get a bonus in SentencePiece that is no multiple of 2^-10.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from xmodel.errors import MachineError

SPACE = "\u2581"  # how SentencePiece writes a space inside a piece
SCORE_STEP = 2.0**-10  # scores are multiples of this
NEVER = -1000.0  # score of pieces that text must not match
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


def with_exact_scores(model: bytes) -> bytes:
    """The same model with scores rounded to multiples of `SCORE_STEP` and user-defined pieces made ordinary ones."""
    rewritten = bytearray()
    for number, body in _fields(model):
        if number == 1 and isinstance(body, bytes):
            piece = _decode_piece(body)
            score = round(piece.score / SCORE_STEP) * SCORE_STEP
            kind = NORMAL if piece.type == USER_DEFINED else piece.type
            body = _encode_piece(Piece(piece.text, score, kind))
        if isinstance(body, int):
            rewritten += _varint(number << 3) + _varint(body)
        else:
            rewritten += _varint(number << 3 | 2) + _varint(len(body)) + body
    return bytes(rewritten)


def write_hugging_face(model: bytes, folder: Path, add_bos: bool) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, which `AutoTokenizer` loads without remote code.

    Args:
        model: a serialised model from `with_exact_scores`.
        folder: an existing folder.
        add_bos: put `<s>` before every text that is encoded with special tokens (the default of most engines).
    """
    pieces = read_pieces(model)
    unk, bos, eos = (piece.text for piece in pieces[:3])
    vocabulary = [
        [piece.text.replace(SPACE, " "), piece.score] if piece.type == NORMAL else [piece.text, NEVER]
        for piece in pieces
    ]
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            {"SpecialToken": {"id": bos, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": bos, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {bos: {"id": bos, "ids": [1], "tokens": [bos]}},
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],  # anything listed here would be matched in plain text
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": template if add_bos else None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocabulary, "byte_fallback": True},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": unk,
        "bos_token": bos,
        "eos_token": eos,
        "add_bos_token": add_bos,
        "add_eos_token": False,
        "split_special_tokens": True,  # `<s>` in a text is three characters, not a control token
        "clean_up_tokenization_spaces": False,
    }
    _write(folder / "tokenizer.json", tokenizer)
    _write(folder / "tokenizer_config.json", config)


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


# The few lines of Protocol Buffers that are needed: SentencePiece's Python package brings a generated parser, but that
# needs the protobuf package at its own version.


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a message whose fields are varints or length-delimited."""
    position = 0
    try:
        while position < len(message):
            tag, position = _read_varint(message, position)
            value, position = _read_varint(message, position)
            if tag & 7 == 0:
                yield tag >> 3, value
            elif tag & 7 == 2 and position + value <= len(message):
                yield tag >> 3, message[position : position + value]
                position += value
            else:
                raise MachineError(NOT_A_MODEL)
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


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def _decode_piece(body: bytes) -> Piece:
    """SentencePiece { string piece = 1; float score = 2; Type type = 3 [default = NORMAL] }"""
    text, score, kind, position = "", 0.0, NORMAL, 0
    while position < len(body):
        tag = body[position]
        if tag == 0x0A:
            length, start = _read_varint(body, position + 1)
            text, position = body[start : start + length].decode(), start + length
        elif tag == 0x15:
            (score,) = struct.unpack_from("<f", body, position + 1)
            position += 5
        elif tag == 0x18:
            kind, position = _read_varint(body, position + 1)
        else:
            raise MachineError(NOT_A_MODEL)
    return Piece(text, score, kind)


def _encode_piece(piece: Piece) -> bytes:
    text = piece.text.encode()
    body = b"\x0a" + _varint(len(text)) + text + b"\x15" + struct.pack("<f", piece.score)
    return body if piece.type == NORMAL else body + b"\x18" + _varint(piece.type)
