"""Models made by hand, so that a test knows every piece and score and waits for no training."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from math import log2
from pathlib import Path

from xmodel.tokenizer.codec import Tokenizer

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def entry(text: str, score: float, kind: int) -> bytes:
    body = field(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
    return field(1, body + (field(3, kind) if kind != NORMAL else b""))


def serialised(
    scores: Mapping[str, float], kind: int = UNIGRAM, dummy_prefix: int = 0, user_defined: Iterable[str] = ()
) -> bytes:
    """A SentencePiece model: three control pieces, 256 byte pieces, then `scores`; a space is written as a space."""
    pieces = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    pieces += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    pieces += [(text.replace(" ", "\u2581"), score, NORMAL) for text, score in scores.items()]
    pieces += [(text, 0.0, USER_DEFINED) for text in user_defined]
    trainer = field(3, kind) + varint(10 << 3 | 5) + struct.pack("<f", 0.9995) + field(35, 1)
    trainer += field(40, 0) + field(41, 1) + field(42, 2)
    normalizer = field(1, b"identity") + field(3, dummy_prefix) + field(4, 0) + field(5, 1)
    return b"".join(entry(*piece) for piece in pieces) + field(2, trainer) + field(3, normalizer)


def opened(folder: Path, model: bytes) -> Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    return Tokenizer.load(folder)


def counted(texts: Iterable[str], size: int, longest: int = 12) -> dict[str, float]:
    """Scores of the `size` commonest parts of words, as log2 of how common they are, in steps of 2^-10."""
    parts: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for text in texts:
        parts.update(text.replace("\u2581", ""))
        for line in text.splitlines():
            words.update(f" {word[:40]}" for word in line.split(" "))
    for word, count in words.most_common(60_000):
        for start in range(len(word)):
            for end in range(start + 2, min(start + longest, len(word)) + 1):
                parts[word[start:end]] += count
    parts |= Counter({" " * n: 1000 - n for n in (1, 2, 4, 8, 16)})
    parts = Counter({part: count for part, count in parts.items() if "\u2581" not in part and "\0" not in part})
    total = parts.total()
    return {part: round(log2(count / total) * 1024) / 1024 for part, count in parts.most_common(size)}
