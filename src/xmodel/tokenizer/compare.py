"""Tokenizers side by side on the same text: how short they make it, what they break, what their vocabulary is used for.

What is counted, per language and category of the text and in all:

* tokens per character (code point) and UTF-8 bytes per token;
* fertility, the pieces that a word is spread over, and the share of words spread over several (Rust et al. 2021, "How
  good is your tokenizer?", arXiv 2012.15613). A word is a run of Latin letters, apostrophes inside it included. Chinese
  is counted by the Han character, since its words show only to a segmenter: the pieces that hold at least a part of
  one, per Han character (below 1 where pieces hold several), and the share of Han characters split over several;
* the shares of tokens that are bytes of a character, and of unknown tokens.

Words are found in the text itself where the tokenizer's pieces spell it, white space aside, and otherwise in the text
as the pieces spell it: a tokenizer that folds or loses characters is measured on what it read.
"""

from __future__ import annotations

import os
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import groupby
from statistics import median
from typing import Any, NamedTuple, Protocol

import numpy as np

from xmodel.recipe.settings import Filters

SPEED_CHARACTERS = 1_000_000  # of the text, spread over all of it, that speeds are measured on
SPEED_DOCUMENT = 20_000  # characters of a document that are taken into it
SHOWN = 24  # characters of a difference that are shown
WHITE_SPACE = b" \t\n\r\x0b\x0c"
SCRIPTS = ("Latin", "Han", "digits", "punctuation", "white space", "bytes", "other", "mixed", "special")

OTHER, LATIN, HAN, APOSTROPHE, SPACE = range(5)
RANGES = (  # code points of each kind, ends included; combining marks go with the letters they stand on
    (LATIN, 0x41, 0x5A), (LATIN, 0x61, 0x7A), (LATIN, 0xC0, 0xD6), (LATIN, 0xD8, 0xF6), (LATIN, 0xF8, 0x24F),
    (LATIN, 0x300, 0x36F), (LATIN, 0x1E00, 0x1EFF), (HAN, 0x3005, 0x3005), (HAN, 0x3007, 0x3007),
    (HAN, 0x3400, 0x4DBF), (HAN, 0x4E00, 0x9FFF), (HAN, 0xF900, 0xFAFF), (APOSTROPHE, 0x27, 0x27),
    (APOSTROPHE, 0x2019, 0x2019), (SPACE, 0x09, 0x0D), (SPACE, 0x20, 0x20),
)  # fmt: skip


class AnyTokenizer(Protocol):
    """What `others.open_tokenizer` returns, ours or not."""

    @property
    def name(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def pieces(self) -> list[bytes]: ...  # bytes that each id stands for; b"" for control tokens
    @property
    def byte_ids(self) -> np.ndarray: ...  # ids of byte-fallback pieces
    @property
    def unk_id(self) -> int | None: ...
    def encode_batch(self, texts: list[str]) -> list[np.ndarray]: ...
    def decode(self, ids: Any) -> str: ...


class Document(NamedTuple):
    """A text to compare on. `language` and `category` are the names that its figures stand under."""

    id: str
    text: str
    language: str
    category: str


def compare(
    tokenizers: Mapping[str, AnyTokenizer], batches: Iterable[Sequence[Document]], rounds: int = 5
) -> dict[str, Any]:
    """Measure each tokenizer on all documents, which are read once and not kept.

    Args:
        tokenizers: by the name that they go by in the tables.
        batches: documents, in lists of a size that fits into memory.
        rounds: how often speeds are measured, all tokenizers in turn, one thread each; 0: not at all.

    Returns:
        What `--json` prints: "text" (documents, characters, bytes by language and category) and "tokenizers", each with
        its figures by language and category, "lossless", "first_difference", its vocabulary's use and speeds in MB/s
        (10^6 UTF-8 bytes). A share or rate of nothing is null.
    """
    vocabularies = {name: _Vocabulary(tokenizer) for name, tokenizer in tokenizers.items()}
    text: dict[tuple[str, str], Counter[str]] = {}
    counts: dict[str, dict[tuple[str, str], Counter[str]]] = {name: {} for name in tokenizers}
    changed = dict.fromkeys(tokenizers, 0)
    first_difference: dict[str, dict[str, Any] | None] = dict.fromkeys(tokenizers)
    sample = _Sample()
    for batch in batches:
        texts = [document.text for document in batch]
        groups = [(document.language, document.category) for document in batch]
        found = [units(text) for text in texts]
        for group, document in zip(groups, texts, strict=True):
            size = len(document.encode())
            text.setdefault(group, Counter()).update(documents=1, characters=len(document), bytes=size)
            sample.add(document)
        for name, tokenizer in tokenizers.items():
            encoded = tokenizer.encode_batch(texts) if texts else []
            for document, group, spans, ids in zip(batch, groups, found, encoded, strict=True):
                measured = vocabularies[name].measure(document.text, ids, spans)
                counts[name].setdefault(group, Counter()).update(measured)
                back = tokenizer.decode(ids)
                if back != document.text:
                    changed[name] += 1
                    first_difference[name] = first_difference[name] or difference(document, back)
    speeds = _speeds(tokenizers, sample.texts, rounds)
    rows = []
    for name, tokenizer in tokenizers.items():
        groups = [
            {"language": language, "category": category} | figures(text_counts, token_counts)
            for (language, category), text_counts, token_counts in with_totals(text, counts[name])
        ]
        row = {"name": name, "vocab_size": tokenizer.vocab_size, "groups": groups, "lossless": changed[name] == 0}
        row |= {"documents_changed": changed[name], "first_difference": first_difference[name]}
        rows.append(row | vocabularies[name].use() | speeds[name])
    sizes = [
        {
            "language": language,
            "category": category,
            **{key: counted[key] for key in ("documents", "characters", "bytes")},
        }
        for (language, category), counted, _ in with_totals(text, text)
    ]
    return {"text": sizes, "tokenizers": rows}


def figures(text: Counter[str], tokens: Counter[str]) -> dict[str, float | None]:
    """Rates and shares from counts; None where there is nothing to divide by."""

    def rate(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    return {
        "tokens": tokens["tokens"],
        "tokens_per_character": rate(tokens["tokens"], text["characters"]),
        "bytes_per_token": rate(text["bytes"], tokens["tokens"]),
        "words": tokens["words"],
        "tokens_per_word": rate(tokens["word_tokens"], tokens["words"]),
        "continued_words": rate(tokens["continued_words"], tokens["words"]),
        "han_characters": tokens["han"],
        "tokens_per_han_character": rate(tokens["han_tokens"], tokens["han"]),
        "continued_han_characters": rate(tokens["continued_han"], tokens["han"]),
        "byte_share": rate(tokens["bytes"], tokens["tokens"]),
        "unknown_share": rate(tokens["unknown"], tokens["tokens"]),
    }


def with_totals(
    text: Mapping[tuple[str, str], Counter[str]], tokens: Mapping[tuple[str, str], Counter[str]]
) -> list[tuple[tuple[str, str], Counter[str], Counter[str]]]:
    """(language, category), counts of the text, counts of its tokens: all, each language, each category in it."""

    def total(counts: Mapping[tuple[str, str], Counter[str]], keys: Iterable[tuple[str, str]]) -> Counter[str]:
        return sum((counts[key] for key in keys), Counter())

    keys = sorted(text)
    rows = [(("all", "all"), total(text, keys), total(tokens, keys))]
    for language, grouped in groupby(keys, key=lambda key: key[0]):
        own = list(grouped)
        rows.append(((language, "all"), total(text, own), total(tokens, own)))
        rows += [(key, text[key], tokens[key]) for key in own]
    return rows


def difference(document: Document, back: str) -> dict[str, Any]:
    """Where decoding first gives something else than the text: document, line and character (from 1), both texts."""
    text = document.text
    place = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    line = text.count("\n", 0, place) + 1
    start = max(place - SHOWN // 3, 0)
    return {
        "document": document.id,
        "line": line,
        "character": place - (text.rfind("\n", 0, place) + 1) + 1,
        "text": text[start : start + SHOWN],
        "decoded": back[start : start + SHOWN],
    }


# ── Words and Han characters ─────────────────────────────────────────────────────────────────────────────────────────


class Units(NamedTuple):
    """First and last byte of each English word (int64 [2, W]) and Han character (int64 [2, H]), white space aside."""

    words_2W: np.ndarray
    han_2H: np.ndarray


@cache
def _kinds() -> np.ndarray:
    """uint8 [65537]: kind of each of the first 65,536 code points; the last entry stands for all others."""
    kinds = np.zeros(0x10001, np.uint8)
    for kind, first, last in RANGES:
        kinds[first : last + 1] = kind
    return kinds


def _kinds_of(text: str) -> tuple[np.ndarray, np.ndarray]:
    points_C = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    kinds_C = _kinds()[np.minimum(points_C, 0x10000)]
    kinds_C[(points_C >= 0x20000) & (points_C < 0x323B0)] = HAN
    return points_C, kinds_C


def language_of(text: str) -> str:
    """`zh` where at least `corpus.filters.chinese_share` of the Latin and Han letters are Han, else `en`."""
    _, kinds_C = _kinds_of(text)
    han, latin = int((kinds_C == HAN).sum()), int((kinds_C == LATIN).sum())
    return "zh" if han and han >= Filters().chinese_share * (han + latin) else "en"


def units(text: str) -> Units:
    """Where the words and the Han characters of a text stand in its UTF-8 bytes that are not ASCII white space."""
    points_C, kinds_C = _kinds_of(text)
    widths_C = 1 + (points_C > 0x7F).astype(np.int64) + (points_C > 0x7FF) + (points_C > 0xFFFF)
    widths_C[kinds_C == SPACE] = 0
    ends_C = np.cumsum(widths_C)
    starts_C = ends_C - widths_C
    letter_C = kinds_C == LATIN
    letter_C[1:-1] |= (kinds_C[1:-1] == APOSTROPHE) & letter_C[:-2] & letter_C[2:]
    edges = np.diff(letter_C.astype(np.int8), prepend=0, append=0)
    first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
    han_C = kinds_C == HAN
    return Units(np.stack([starts_C[first], ends_C[last] - 1]), np.stack([starts_C[han_C], ends_C[han_C] - 1]))


class _Vocabulary:
    """What is known of a tokenizer's pieces, and how often each was used."""

    def __init__(self, tokenizer: AnyTokenizer) -> None:
        self.pieces, self.unk_id = tokenizer.pieces, tokenizer.unk_id
        byte_ids = set(np.asarray(tokenizer.byte_ids).tolist())
        self.scripts = [
            "special" if i == self.unk_id else "bytes" if i in byte_ids else script(piece)
            for i, piece in enumerate(self.pieces)
        ]
        self.is_bytes_V = np.array([name == "bytes" for name in self.scripts])
        self.visible_V = np.array([len(piece.translate(None, WHITE_SPACE)) for piece in self.pieces], np.int64)
        self.spells_spaces = any(b" " in piece for piece in self.pieces)
        self.used_V = np.zeros(len(self.pieces), np.int64)

    def measure(self, text: str, ids: np.ndarray, spans: Units) -> Counter[str]:
        """Counts for one document."""
        self.used_V += np.bincount(ids, minlength=len(self.pieces))
        unknown = 0 if self.unk_id is None else int((ids == self.unk_id).sum())
        counted = Counter(tokens=len(ids), bytes=int(self.is_bytes_V[ids].sum()), unknown=unknown)
        spelt = b"".join([self.pieces[i] for i in ids.tolist()])
        if spelt.translate(None, WHITE_SPACE) != text.encode().translate(None, WHITE_SPACE):
            try:
                spans = units(spelt.decode())
            except UnicodeDecodeError:
                return counted
            if not self.spells_spaces:  # as in WordPiece: without the text nobody knows where a word ends
                spans = Units(spans.words_2W[:, :0], spans.han_2H)
        visible = self.visible_V[ids]
        ends_T = np.cumsum(visible[visible > 0])
        first_W, last_W = np.searchsorted(ends_T, spans.words_2W, side="right")
        first_H, last_H = np.searchsorted(ends_T, spans.han_2H, side="right")
        # A piece that several Han characters share counts once.
        before_H = np.concatenate([[-1], last_H[:-1]])[: len(last_H)]
        counted.update(words=len(first_W), word_tokens=int((last_W - first_W + 1).sum()))
        counted.update(continued_words=int((last_W > first_W).sum()))
        counted.update(han=len(first_H), han_tokens=int((last_H - np.maximum(first_H, before_H + 1) + 1).sum()))
        counted.update(continued_han=int((last_H > first_H).sum()))
        return counted

    def use(self) -> dict[str, Any]:
        """Pieces by script: how many, how many of them the text used, and the share of its tokens that they are."""
        total = int(self.used_V.sum())
        scripts = {}
        for name in SCRIPTS:
            chosen_V = np.array([script == name for script in self.scripts])
            tokens = int(self.used_V[chosen_V].sum())
            scripts[name] = {
                "pieces": int(chosen_V.sum()),
                "used": int((self.used_V[chosen_V] > 0).sum()),
                "token_share": tokens / total if total else None,
            }
        never = [row["pieces"] - row["used"] for name, row in scripts.items() if name not in ("special", "bytes")]
        return {"never_used": sum(never), "scripts": scripts}


@cache
def _character_script(character: str) -> str:
    category = unicodedata.category(character)
    if character.isspace():
        return "white space"
    if category == "Nd":
        return "digits"
    if category[0] in "PS":
        return "punctuation"
    kind = _kinds_of(character)[1][0]
    return "Latin" if kind == LATIN else "Han" if kind == HAN else "other"


def script(piece: bytes) -> str:
    """Which of `SCRIPTS` a piece belongs to; white space at its ends does not make it mixed, signs are punctuation.

    "bytes" are pieces that are no whole characters, in byte-level vocabularies; "special" those that stand for nothing.
    """
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return "bytes"
    found = {_character_script(character) for character in text.strip() or text}
    return found.pop() if len(found) == 1 else "mixed" if found else "special"


# ── Speed ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Sample:
    """Beginnings of documents, spread evenly over all that are added: every n-th, where n doubles when it is full."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.every, self.seen, self.characters = 1, 0, 0

    def add(self, text: str) -> None:
        self.seen += 1
        if not text or (self.seen - 1) % self.every:
            return
        self.texts.append(text[:SPEED_DOCUMENT])
        self.characters += len(self.texts[-1])
        if self.characters > 2 * SPEED_CHARACTERS and len(self.texts) > 1:
            self.texts, self.every = self.texts[::2], 2 * self.every
            self.characters = sum(map(len, self.texts))


def _speeds(tokenizers: Mapping[str, AnyTokenizer], texts: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Median over rounds in which all tokenizers take turns, so that a busy moment of the machine meets them all."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in tokenizers}
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # read by `tokenizers` at every call
    try:
        for _ in range(rounds if texts else 0):
            for name, tokenizer in tokenizers.items():
                start = time.perf_counter()
                encoded = tokenizer.encode_batch(texts)
                middle = time.perf_counter()
                for ids in encoded:
                    tokenizer.decode(ids)
                seconds[name].append((middle - start, time.perf_counter() - middle))
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
    found: dict[str, dict[str, Any]] = {}
    for name, measured in seconds.items():
        encode, decode = (
            (megabytes / median(column) for column in zip(*measured, strict=True)) if measured else (None,) * 2
        )
        found[name] = {"encode_mb_per_second": encode, "decode_mb_per_second": decode}
    return found
