"""The tokenizer at work: text to ids (single, in batches, from Arrow), ids to text, ids to text one by one.

Unigram vocabularies of ours are searched by the kernel in encode.py. For any other model SentencePiece does the work;
U+2581, which it cannot tell from a space, is cut out of the text before and spelt in bytes, as the kernel spells it.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from xmodel.errors import MachineError, UserError
from xmodel.tokenizer.convert import BYTE, SPACE, Normalizer, model_type, normalizer, read_pieces, surface

if TYPE_CHECKING:
    import pyarrow

    from xmodel.tokenizer.encode import Tables

SPACES = re.compile(f"({SPACE}+)")


class Tokenizer:
    """A trained tokenizer. Lossless: `decode(encode(text)) == text` for every text that UTF-8 can hold."""

    unk_id, bos_id, eos_id = 0, 1, 2

    def __init__(self, folder: Path) -> None:
        """Open the tokenizer in `folder`; see `load`."""
        path = folder / "tokenizer.model"
        try:
            self._model = path.read_bytes()
        except FileNotFoundError:
            raise MachineError(f"{path}: missing; the tokenizer stage has not finished") from None
        try:
            self._pieces = read_pieces(self._model)
            self.pieces: list[bytes] = [surface(piece) for piece in self._pieces]  # bytes that each id stands for
            self._searchable = is_plain_unigram(self._model)
        except (MachineError, ValueError):
            raise MachineError(f"{path}: damaged, or not a SentencePiece model") from None
        byte_ids = [number for number, piece in enumerate(self._pieces) if piece.type == BYTE]
        if len(byte_ids) != 256 or byte_ids[-1] - byte_ids[0] != 255:
            raise UserError(f"{path}: lacks the pieces of the 256 bytes, so not every text can be written with it")
        self.folder = folder
        self.vocab_size = len(self._pieces)
        self.ids_dtype = np.dtype(np.uint16 if self.vocab_size <= 65_536 else np.uint32)
        self.first_byte_id = byte_ids[0]  # the 256 byte pieces follow one another

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Open the tokenizer of a run: one that `train` wrote into `folder`, or one that was taken as it is.

        Raises:
            MachineError: tokenizer.model is missing or damaged.
            UserError: it is a model without byte pieces.
        """
        from xmodel.tokenizer.others import MARK, load_marked

        if (Path(folder) / MARK).is_file():  # BPE, or somebody else's: another library encodes, the interface is this
            return cast("Tokenizer", load_marked(Path(folder)))
        return cls(Path(folder))

    @cached_property
    def piece_bytes(self) -> np.ndarray:
        """uint16 [vocab_size]: UTF-8 bytes that each id stands for; over the ids of a text they sum to its size."""
        return np.array([len(piece) for piece in self.pieces], dtype=np.uint16)

    @cached_property
    def texts(self) -> dict[int, str]:
        """How its file writes each id; of control tokens the spelling."""
        return {number: piece.text for number, piece in enumerate(self._pieces)}

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without control tokens.

        Raises:
            UserError: the text holds a lone surrogate, which UTF-8 cannot represent.
        """
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """The ids of each text, without control tokens, as arrays of `ids_dtype`; faster than one by one.

        Raises:
            UserError: a text holds a lone surrogate, which UTF-8 cannot represent.
        """
        encoded = [_utf8(text) for text in texts]
        if self._tables is None:
            return self._by_sentencepiece(texts, threads)
        offsets_D1 = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets_D1[1:])
        data_X = np.frombuffer(b"".join(encoded), np.uint8)
        # Parts of as many bytes, each whole texts.
        cuts = np.searchsorted(offsets_D1, np.linspace(0, len(data_X), threads + 1)[1:-1])
        parts = [offsets_D1[first : last + 1] for first, last in pairwise([0, *cuts.tolist(), len(encoded)])]
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                found = list(pool.map(lambda part: self._by_kernel(part, data_X), parts))
        else:
            found = [self._by_kernel(part, data_X) for part in parts]
        return [ids_T[start:end] for ids_T, ends_D in found for start, end in pairwise([0, *ends_D.tolist()])]

    def encode_arrow(
        self, column: pyarrow.Array | pyarrow.ChunkedArray, *, bos: bool = False, eos: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ids of an Arrow string array's texts, without an object per text; null counts as empty.

        Several threads may do this at once, each with an array of its own.

        Args:
            column: [D] of type string or large_string.
            bos, eos: whether every text begins with `<s>` and ends with `</s>`.

        Returns:
            ids_T: `ids_dtype` [T], one text's after the other's.
            ends_D: int64 [D], where each text's end in ids_T.
        """
        import pyarrow

        if self._tables is None:
            return encode_arrow_by_batch(self, column, bos=bos, eos=eos)
        from xmodel.tokenizer.encode import string_buffers

        if isinstance(column, pyarrow.ChunkedArray):
            column = column.combine_chunks()
        return self._by_kernel(*string_buffers(column), self.bos_id if bos else -1, self.eos_id if eos else -1)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; control tokens give nothing, bytes that are no UTF-8 give U+FFFD."""
        pieces = self.pieces
        return b"".join([pieces[i] for i in ids]).decode("utf-8", errors="replace")

    def stream(self) -> StreamDecoder:
        """A decoder for ids that arrive one by one."""
        return StreamDecoder(self.pieces)

    @cached_property
    def _tables(self) -> Tables | None:
        """What the kernel reads; None when SentencePiece has to do the work."""
        from xmodel.tokenizer.encode import unigram_tables

        return unigram_tables(self._pieces) if self._searchable else None

    def _by_kernel(
        self, offsets_D1: np.ndarray, data_X: np.ndarray, before: int = -1, after: int = -1
    ) -> tuple[np.ndarray, np.ndarray]:
        from xmodel.tokenizer.encode import encode_utf8

        assert self._tables is not None
        return encode_utf8(self._tables, offsets_D1, data_X, self.ids_dtype, before, after)

    @cached_property
    def _processor(self) -> Any:
        import sentencepiece

        try:
            return sentencepiece.SentencePieceProcessor(model_proto=self._model)  # pyright: ignore[reportCallIssue]
        except RuntimeError as error:
            path = self.folder / "tokenizer.model"
            raise MachineError(f"{path}: damaged or not a SentencePiece model ({error})") from None

    def _by_sentencepiece(self, texts: Sequence[str], threads: int) -> list[np.ndarray]:
        parts = [SPACES.split(text) for text in texts]  # in turn without U+2581, and nothing but that
        plain = [part for split in parts for part in split[::2]]
        encoded = iter(self._processor.encode(plain, return_type="numpy", num_threads=threads) if plain else [])
        space_ids = np.frombuffer(SPACE.encode(), np.uint8).astype(np.int32) + self.first_byte_id
        return [
            np.concatenate(
                [np.tile(space_ids, len(part)) if place % 2 else next(encoded) for place, part in enumerate(split)]
            ).astype(self.ids_dtype)
            for split in parts
        ]


def encode_arrow_by_batch(
    tokenizer: Any, column: pyarrow.Array | pyarrow.ChunkedArray, *, bos: bool = False, eos: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """What `Tokenizer.encode_arrow` does, with any tokenizer that has encode_batch, vocab_size, bos_id and eos_id."""
    before, after = [tokenizer.bos_id] * bos, [tokenizer.eos_id] * eos
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 65_536 else np.uint32)
    encoded = tokenizer.encode_batch([text or "" for text in column.to_pylist()])
    documents = [np.array([*before, *ids, *after], dtype) for ids in encoded]
    ends_D = np.cumsum([len(ids) for ids in documents], dtype=np.int64)
    return np.concatenate([np.zeros(0, dtype), *documents]), ends_D


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise UserError(f"a text holds the lone surrogate {code}, which UTF-8 cannot represent") from None


def pieces_fingerprint(tokenizer: Any) -> str:
    """Of what the ids mean: the pieces in their order."""
    return hashlib.blake2b(b"\0".join(tokenizer.pieces), digest_size=16).hexdigest()


def is_plain_unigram(model: bytes) -> bool:
    """Whether a serialised SentencePiece model is of type unigram, and leaves a text as it is before the search."""
    rules = normalizer(model)
    return model_type(model) == "unigram" and rules == Normalizer(b"", dummy_prefix=False, collapse=False, escape=True)


class StreamDecoder:
    """Decodes ids one by one and never gives half a character."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that are complete with `token`; empty while one is not."""
        return self._decoder.decode(self._pieces[token])

    def finish(self) -> str:
        """What is left: U+FFFD if the last character stayed incomplete."""
        return self._decoder.decode(b"", final=True)
