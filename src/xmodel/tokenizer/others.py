"""Tokenizers that other people trained: SentencePiece `.model` files and any `tokenizer.json`, on disk or from the hub.

Each is run by its own library, so its ids are its own; a `tokenizer.json` is also written for a `.model`, for engines.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from xmodel.errors import MachineError, UserError, not_from_hub
from xmodel.files import read_json, write_json
from xmodel.tokenizer.codec import StreamDecoder, Tokenizer, is_plain_unigram
from xmodel.tokenizer.convert import (
    BYTE,
    CONTROL,
    NORMAL,
    SCORE_STEP,
    SPACE,
    UNKNOWN,
    model_type,
    read_pieces,
    surface,
)

MARK = "codec.json"  # in a folder of a run: which of its files encodes, when our own codec does not
HUB_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?(?:@[\w./-]+)?")
HUB_FILES = ("tokenizer.json", "tokenizer_config.json", "*.model")
SURROGATE = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\ufffd".encode()
# Where no tokenizer_config.json says which they are.
BEGINNINGS = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>")
ENDS = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>")


class OtherTokenizer(ABC):
    """A tokenizer of somebody else behind the interface of `codec.Tokenizer`. It need not be lossless.

    Attributes:
        name: what it is called in a table.
        pieces: bytes that each id stands for; b"" for control tokens and for ids that have no piece.
        vocab_size: one more than the largest id.
        byte_ids: ids of the pieces that stand for one byte of a character without a piece of its own.
        unk_id, bos_id, eos_id: None where it has none.
        path: the file that it was read from.
        texts: how its file writes each id that has a piece.
    """

    name: str
    path: Path
    texts: dict[int, str]
    pieces: list[bytes]
    vocab_size: int
    byte_ids: np.ndarray
    unk_id: int | None
    bos_id: int | None
    eos_id: int | None

    @cached_property
    def piece_bytes(self) -> np.ndarray:
        """uint16 [vocab_size]: UTF-8 bytes that each id stands for."""
        return np.array([len(piece) for piece in self.pieces], dtype=np.uint16)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without control tokens. Raises UserError for a lone surrogate."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """The ids of each text, without control tokens: uint16, or uint32 for more than 65,536 pieces.

        Raises:
            UserError: a text holds a lone surrogate, which UTF-8 cannot represent.
        """
        for text in texts:
            if not text.isascii() and (found := SURROGATE.search(text)):
                code = f"U+{ord(found[0]):04X}"
                raise UserError(f"a text holds the lone surrogate {code}, which UTF-8 cannot represent")
        dtype = np.uint16 if self.vocab_size <= 65_536 else np.uint32
        return [np.array(ids, dtype) for ids in self._encode(list(texts), threads)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, as its own library gives it; control tokens give nothing."""
        return self._decode([int(i) for i in ids])

    def stream(self) -> StreamDecoder:
        """A decoder for ids that arrive one by one."""
        return StreamDecoder(self.pieces)

    @abstractmethod
    def _encode(self, texts: list[str], threads: int) -> list[list[int]]:
        """The ids of each text, as the library gives them."""

    @abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """The text of the ids, as the library gives it."""


class OurTokenizer(Tokenizer):
    """A tokenizer that `train` made, with the name and the byte ids that a comparison asks for."""

    @property
    def name(self) -> str:
        """The name of its folder; of a run, the run's."""
        return _named(self.folder / "tokenizer.model")

    @property
    def byte_ids(self) -> np.ndarray:
        """int64 [256]: ids of the byte pieces."""
        return np.arange(self.first_byte_id, self.first_byte_id + 256)


class SentencePieceTokenizer(OtherTokenizer):
    """A SentencePiece model of any type, run by SentencePiece."""

    def __init__(self, path: Path) -> None:
        """Open a `.model` file.

        Raises:
            UserError: it is missing, damaged or not a SentencePiece model.
        """
        import sentencepiece

        self.path, self.name = path, _named(path)
        self.model = _read(path)
        try:
            pieces = read_pieces(self.model)
            self.kind = model_type(self.model)
            self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=self.model)  # pyright: ignore[reportCallIssue]
        except (MachineError, RuntimeError, ValueError):
            raise UserError(f"{path}: truncated, or not a SentencePiece model") from None
        self.vocab_size = len(pieces)
        self.texts = {number: piece.text for number, piece in enumerate(pieces)}
        self.pieces = [surface(piece) for piece in pieces]
        self.byte_ids = np.flatnonzero([piece.type == BYTE for piece in pieces])
        ids = [self._processor.unk_id(), self._processor.bos_id(), self._processor.eos_id()]
        self.unk_id, self.bos_id, self.eos_id = (number if number >= 0 else None for number in ids)

    def _encode(self, texts: list[str], threads: int) -> list[list[int]]:
        return self._processor.encode(texts, num_threads=threads) if texts else []

    def _decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)


class JsonTokenizer(OtherTokenizer):
    """A `tokenizer.json`, run by `tokenizers`: byte-level BPE, unigram, WordPiece, whatever it holds."""

    def __init__(self, path: Path) -> None:
        """Open a `tokenizer.json`; a `tokenizer_config.json` beside it names the control tokens.

        Raises:
            UserError: it is missing, damaged or not a tokenizer.
        """
        import tokenizers

        self.path, self.name = path, _named(path)
        source = _read(path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(source)
        except Exception as error:  # what the library raises has no class of its own
            raise UserError(f"{path}: truncated, or not a tokenizer.json ({error})") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # control tokens that a text spells stay text
        content = read_json(path)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        named = _control_tokens(path.with_name("tokenizer_config.json"))
        unk = content["model"].get("unk_token")
        self.unk_id = content["model"].get("unk_id") if unk is None else vocabulary.get(unk)
        self.bos_id, self.eos_id = (
            next((vocabulary[text] for text in (named.get(key), *usual) if text in vocabulary), None)
            for key, usual in (("bos_token", () if named else BEGINNINGS), ("eos_token", () if named else ENDS))
        )
        self.texts = {number: text for text, number in vocabulary.items()}
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.pieces = bytes_of_pieces(content, vocabulary, set(named.values()))
        if self.unk_id is not None:
            self.pieces[self.unk_id] = REPLACEMENT
        spelt = [id_ for text, id_ in vocabulary.items() if re.fullmatch("<0x[0-9A-F]{2}>", text)]
        single = [id_ for id_, piece in enumerate(self.pieces) if len(piece) == 1 and piece[0] >= 128]
        self.byte_ids = np.array(sorted(spelt if content["model"].get("byte_fallback") else single), np.int64)

    def _encode(self, texts: list[str], threads: int) -> list[list[int]]:
        return [found.ids for found in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def _decode(self, ids: list[int]) -> str:
        shown = [number for number in ids if self.pieces[number]]
        return self._tokenizer.decode(shown, skip_special_tokens=False)


Opened = OurTokenizer | SentencePieceTokenizer | JsonTokenizer


def open_tokenizer(where: str | Path) -> Opened:
    """Open any tokenizer: a run or folder of ours, a `.model`, a `tokenizer.json`, a folder with one, a hub name.

    In a folder that has both files a `tokenizer.json` comes first, unless the `.model` is one of ours: then both give
    the same ids, and ours is the fast one.

    Args:
        where: a path, or OWNER/NAME (or OWNER/NAME@COMMIT) of the hub when no such path exists.

    Raises:
        UserError: nothing there, or nothing that is a tokenizer.
        MachineError: the hub cannot be reached.
    """
    path = Path(where)
    if not path.exists():
        if HUB_NAME.fullmatch(str(where)) and path.suffix not in (".model", ".json"):
            path = _from_hub(str(where))
        else:
            raise UserError(f"{where}: no such file or folder, and not a name on the hub (OWNER/NAME)")
    if path.is_file():
        return JsonTokenizer(path) if path.suffix == ".json" else SentencePieceTokenizer(path)
    if (path / "tokenizer").is_dir():
        path = path / "tokenizer"
    if (path / MARK).is_file():
        return load_marked(path)
    model, content = path / "tokenizer.model", path / "tokenizer.json"
    if model.is_file() and content.is_file() and is_ours(_read(model)):
        return OurTokenizer(path)
    if content.is_file():
        return JsonTokenizer(content)
    models = sorted(path.glob("*.model"))
    if len(models) == 1:
        return SentencePieceTokenizer(models[0])
    found = f"{len(models)} .model files: name one of them" if models else "neither a tokenizer.json nor a .model file"
    raise UserError(f"{path}: has {found}")


def is_ours(model: bytes) -> bool:
    """Whether a serialised SentencePiece model is one that `codec.Tokenizer` encodes exactly: see train.py."""
    try:
        pieces = read_pieces(model)
        plain = is_plain_unigram(model)
    except (MachineError, ValueError):
        return False
    types = [piece.type for piece in pieces]
    normal = {piece.text for piece in pieces if piece.type == NORMAL}
    first = types.index(BYTE) if BYTE in types else 0
    return (
        plain
        and types[:3] == [UNKNOWN, CONTROL, CONTROL]
        and set(types) == {NORMAL, UNKNOWN, CONTROL, BYTE}
        and types[first : first + 256] == [BYTE] * 256
        and {SPACE, "\n", *map(chr, range(33, 127))} <= normal
        and all((piece.score / SCORE_STEP).is_integer() for piece in pieces)
    )


def load_marked(folder: Path) -> SentencePieceTokenizer | JsonTokenizer:
    """Open a tokenizer in a run's folder that our own codec does not encode (see `MARK`).

    Raises:
        MachineError: a file is missing or damaged.
    """
    mark = read_json(folder / MARK)
    path = folder / mark["encodes"]
    try:
        opened = JsonTokenizer(path) if path.suffix == ".json" else SentencePieceTokenizer(path)
    except UserError as error:
        raise MachineError(f"{error}; run the tokenizer stage again") from None
    opened.bos_id, opened.eos_id = mark["bos_id"], mark["eos_id"]
    return opened


def mark_encoder(folder: Path, encodes: str, bos_id: int | None, eos_id: int | None) -> None:
    """Note in a run's folder which of its files encodes, when our own codec does not; `Tokenizer.load` reads it."""
    write_json(folder / MARK, {"encodes": encodes, "bos_id": bos_id, "eos_id": eos_id})


def _from_hub(name: str) -> Path:
    """The folder of the hub's cache with the tokenizer's files."""
    import huggingface_hub

    repository, _, revision = name.partition("@")
    try:
        return Path(
            huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=list(HUB_FILES))
        )
    except Exception as error:
        raise not_from_hub(name, error) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None


def _named(path: Path) -> str:
    """Folder or file name by which people know it: the run of RUN/tokenizer/tokenizer.model, a stem of its own."""
    if path.name not in ("tokenizer.model", "tokenizer.json"):
        return path.stem
    folders = [name for name in path.resolve().parent.parts if name != "tokenizer"]
    if "snapshots" in folders[-2:]:  # the hub's cache: models--OWNER--NAME/snapshots/COMMIT
        return folders[-3].removeprefix("models--").replace("--", "/")
    return folders[-1]


def _control_tokens(path: Path) -> dict[str, str]:
    """Control tokens that a tokenizer_config.json names, by what they are for; empty when there is none."""
    if not path.is_file():
        return {}
    config = read_json(path)
    found = {}
    for key in ("unk_token", "bos_token", "eos_token", "pad_token"):
        value = config.get(key)
        if text := value.get("content") if isinstance(value, dict) else value:
            found[key] = text
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    listed = more.values() if isinstance(more, dict) else more
    return found | {f"extra {number}": text for number, text in enumerate(listed) if isinstance(text, str)}


def bytes_of_pieces(content: dict[str, Any], vocabulary: dict[str, int], control: set[str]) -> list[bytes]:
    """Bytes that each id stands for; see `OtherTokenizer.pieces`."""
    model = content["model"]
    kinds = {kind for part in ("normalizer", "pre_tokenizer", "decoder") for kind in _kinds(content.get(part))}
    stand_in = "Metaspace" in kinds or SPACE in str(content.get("decoder")) or SPACE in str(content.get("normalizer"))
    added = {token["id"]: token for token in content.get("added_tokens") or []}
    follows = model.get("continuing_subword_prefix") or ""
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for text, number in vocabulary.items():
        if number in added:
            pieces[number] = b"" if added[number]["special"] else text.encode()
        elif text in control:
            pieces[number] = b""
        elif "ByteLevel" in kinds and all(character in BYTE_LETTERS for character in text):
            pieces[number] = bytes(BYTE_LETTERS[character] for character in text)
        elif model.get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", text):
            pieces[number] = bytes([int(text[3:5], 16)])
        else:
            plain = text.removeprefix(follows) if follows else text
            pieces[number] = (plain.replace(SPACE, " ") if stand_in else plain).encode()
    return pieces


def _kinds(part: Any) -> set[str]:
    """The types of a component of a tokenizer.json and of all inside it."""
    if isinstance(part, list):
        return set().union(*map(_kinds, part))
    if not isinstance(part, dict):
        return set()
    return {str(part.get("type"))}.union(*(_kinds(value) for value in part.values()))


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level BPE (GPT-2's) writes for each byte: itself where printable, else from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


BYTE_LETTERS = _byte_letters()
