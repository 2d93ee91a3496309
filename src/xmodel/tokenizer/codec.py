"""The tokenizer at work: text to ids (single or in batches), ids to text, ids to text one by one.

SentencePiece does the search. It sums scores in float32, which is exact (see convert.py) while the sums stay below
2^14 = 16,384; so longer texts are handed to it in chunks, cut only where no piece of the vocabulary could reach across.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from xmodel.errors import MachineError, UserError
from xmodel.tokenizer.convert import BYTE, NORMAL, SCORE_STEP, SPACE, read_pieces, surface

if TYPE_CHECKING:
    import tokenizers

SPACES = re.compile(f"{SPACE}+")
EXACT_SUM = SCORE_STEP * 2**24  # float32 holds 24 binary digits
UNKNOWN_PENALTY = 10.0  # SentencePiece scores a character without a piece at this much below the lowest piece


class Tokenizer:
    """A trained tokenizer. Lossless: `decode(encode(text)) == text` for every text that UTF-8 can hold."""

    unk_id, bos_id, eos_id = 0, 1, 2

    def __init__(self, folder: Path) -> None:
        """Open the tokenizer in `folder`; see `load`."""
        import sentencepiece

        path = folder / "tokenizer.model"
        try:
            model = path.read_bytes()
        except FileNotFoundError:
            raise MachineError(f"{path}: missing; the tokenizer stage has not finished") from None
        pieces = read_pieces(model)
        if len(pieces) > 65_536:
            raise UserError(f"{path}: {len(pieces):,} pieces; token ids are stored in 16 bits, at most 65,536 fit")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)  # pyright: ignore[reportCallIssue]
        except RuntimeError as error:
            raise MachineError(f"{path}: damaged or not a SentencePiece model ({error})") from None
        self.folder = folder
        self.vocab_size = len(pieces)
        self.pieces: list[bytes] = [surface(piece) for piece in pieces]  # UTF-8 bytes that each id stands for
        normal = [piece for piece in pieces if piece.type == NORMAL]
        lowest = min(piece.score for piece in normal)
        # At worst every character is unknown: so many characters always stay within the exact range.
        self._chunk = int(EXACT_SUM / (UNKNOWN_PENALTY - lowest))
        texts = [piece.text.replace(SPACE, " ") for piece in normal]
        self._inside = {text[i : i + 2] for text in texts for i in range(len(text) - 1)}
        # 256 byte pieces follow one another.
        self.first_byte_id = next(i for i, piece in enumerate(pieces) if piece.type == BYTE)
        self._space_ids = np.frombuffer(SPACE.encode(), np.uint8).astype(np.int32) + self.first_byte_id

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Open the tokenizer of a run: one that `train` wrote into `folder`, or one that was taken as it is.

        Raises:
            MachineError: tokenizer.model is missing or damaged.
        """
        from xmodel.tokenizer.others import MARK, load_marked

        if (Path(folder) / MARK).is_file():  # BPE, or somebody else's: another library encodes, the interface is this
            return cast("Tokenizer", load_marked(Path(folder)))
        return cls(Path(folder))

    @cached_property
    def piece_bytes(self) -> np.ndarray:
        """uint16 [vocab_size]: UTF-8 bytes that each id stands for; over the ids of a text they sum to its size."""
        return np.array([len(piece) for piece in self.pieces], dtype=np.uint16)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without control tokens.

        Raises:
            UserError: the text holds a lone surrogate, which UTF-8 cannot represent.
        """
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """The ids of each text, without control tokens, as uint16 arrays; faster than one by one.

        Raises:
            UserError: a text holds a lone surrogate, which UTF-8 cannot represent.
        """
        try:
            return self._encode_batch(texts, threads)
        except TypeError:  # both libraries' answer to a string that is not Unicode text
            for text in texts:
                if surrogate := re.search("[\ud800-\udfff]", text):
                    code = f"U+{ord(surrogate[0]):04X}"
                    raise UserError(f"a text holds the lone surrogate {code}, which UTF-8 cannot represent") from None
            raise

    def _encode_batch(self, texts: Sequence[str], threads: int) -> list[np.ndarray]:
        chunks: list[str] = []
        parts: list[list[np.ndarray] | slice] = []  # of each text: finished arrays, or a slice of `chunks`
        for text in texts:
            cuts = [0, len(text)] if len(text) <= self._chunk and SPACE not in text else self._cuts(text)
            if cuts is None:
                parts.append([self._encode_slowly(text)])
                continue
            first = len(chunks)
            chunks += [text[start:end] for start, end in pairwise(cuts)]
            parts.append(slice(first, len(chunks)))
        encoded = self._processor.encode(chunks, return_type="numpy", num_threads=threads) if chunks else []
        for place, chunk in enumerate(chunks):
            if chunk.startswith(SPACE):
                encoded[place] = np.tile(self._space_ids, len(chunk))
        arrays = []
        for part in parts:
            found = encoded[part] if isinstance(part, slice) else part
            arrays.append((found[0] if len(found) == 1 else np.concatenate(found)).astype(np.uint16))
        return arrays

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; control tokens give nothing, bytes that are no UTF-8 give U+FFFD."""
        pieces = self.pieces
        return b"".join([pieces[i] for i in ids]).decode("utf-8", errors="replace")

    def stream(self) -> StreamDecoder:
        """A decoder for ids that arrive one by one."""
        return StreamDecoder(self.pieces)

    def _cuts(self, text: str) -> list[int] | None:
        """Offsets [0, ..., len(text)] that cut a text into chunks of at most `_chunk` characters, runs of U+2581 apart.

        None when there is no place to cut, because any two neighbours could lie within a piece.
        """
        cuts = [0]
        while (start := cuts[-1]) < len(text):
            if run := SPACES.match(text, start):
                cuts.append(run.end())
                continue
            literal = text.find(SPACE, start, start + self._chunk)
            end = literal if literal >= 0 else min(start + self._chunk, len(text))
            while end < len(text) and end > start and text[end - 1 : end + 1] in self._inside:
                end -= 1
            if end == start:
                return None
            cuts.append(end)
        return cuts

    def _encode_slowly(self, text: str) -> np.ndarray:
        """By `tokenizers`, which sums in float64: exact for any length, at a tenth of the speed."""
        return np.array(self._exact.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    @cached_property
    def _exact(self) -> tokenizers.Tokenizer:
        import tokenizers

        return tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json"))


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
