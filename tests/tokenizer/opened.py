"""A SentencePiece model behind the interface that `others.open_tokenizer` gives, by SentencePiece itself."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from xmodel.tokenizer.convert import BYTE, read_pieces, surface


class Opened:
    """A `.model` file, or its bytes."""

    def __init__(self, model: bytes | Path, name: str = "model") -> None:
        data = model.read_bytes() if isinstance(model, Path) else model
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        pieces = read_pieces(data)
        self.name, self.vocab_size, self.unk_id = name, len(pieces), 0
        self.pieces = [surface(piece) for piece in pieces]
        self.byte_ids = np.array([i for i, piece in enumerate(pieces) if piece.type == BYTE], np.int64)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(ids, np.int32) for ids in self.processor.encode(texts)]

    def decode(self, ids: Any) -> str:
        return self.processor.decode([int(i) for i in ids])


def trained(lines: list[str], **options: Any) -> bytes:
    """A serialised model, trained by SentencePiece with its own defaults but for `options`."""
    written = io.BytesIO()
    options = {"minloglevel": 2, "num_threads": 1} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=written, **options)
    return written.getvalue()
