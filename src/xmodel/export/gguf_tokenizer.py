"""A run's tokenizer as llama.cpp reads it from a GGUF file.

llama.cpp has three tokenizers that our vocabularies fit, and `tokenizer.ggml.model` names one (read in its
`src/llama-vocab.cpp`; docs/export.md has what benchmarks/gguf_check.py measured):

* `t5`, for unigram vocabularies: the same search as ours, with the same sums and the same choice among equals. It knows
  no byte fallback: characters without a piece become `<unk>`, neighbours together one. The bytes of ASCII are whole
  characters, so they are written as such (`_ascii_bytes`): a carriage return, or a newline that is no piece, stays.
* `plamo2`, for unigram vocabularies too: spells such characters in their bytes, as ours does, and reads U+2581 as the
  character that it is. It searches from the end, so of segmentations that score the same it may take another one; it
  drops U+FEFF at the beginning; and nothing puts `<s>` before a text, the text itself must begin with it.
* `llama`, for BPE: SentencePiece's merging with byte fallback.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from xmodel.console import log
from xmodel.errors import UserError
from xmodel.files import read_json
from xmodel.tokenizer.codec import Tokenizer
from xmodel.tokenizer.convert import (
    BYTE,
    CONTROL,
    NORMAL,
    SCORE_STEP,
    SPACE,
    Piece,
    model_type,
    normalizer,
    read_pieces,
)
from xmodel.tokenizer.others import is_ours

UNIGRAM = ("t5", "plamo2")  # what a unigram vocabulary may be written as
UNKNOWN_PENALTY = 10.0  # what an unknown character scores below the lowest piece, in SentencePiece and in t5
PLAMO2_STEP = 1e-4  # plamo2 rounds scores to multiples of this; ours become so many of them as they are SCORE_STEPs
PLAMO2_NEVER = -10_000.0  # below what it looks at: control tokens that a text spells stay text


class Vocabulary(NamedTuple):
    """What stands under `tokenizer.` in the file."""

    model: str
    tokens: list[bytes]
    scores: list[float]
    types: list[int]  # SentencePiece's numbers, which GGUF has taken over
    ids: dict[str, int]  # bos, eos, unk, pad: those that there are
    add_bos: bool
    dummy_prefix: bool
    collapse: bool
    charsmap: bytes
    chat_template: str


def vocabulary(folder: Path, size: int, add_bos: bool, unigram: str = "t5") -> Vocabulary:
    """The tokenizer in a run's `folder` for a model with `size` embeddings.

    Args:
        add_bos: whether texts begin with `<s>`.
        unigram: `t5` or `plamo2`, for a unigram vocabulary.

    Raises:
        UserError: it is not a SentencePiece model, is larger than the model's embedding, or is not one that plamo2
            can be told.
        MachineError: its files are damaged.
    """
    tokenizer = Tokenizer.load(folder)
    try:
        model = (folder / "tokenizer.model").read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{folder}: a tokenizer.json of somebody else (tokenizer.path); a GGUF is written from SentencePiece's. "
            "llama.cpp's convert_hf_to_gguf.py may know it: give it the folder that `xmodel export hf` writes"
        ) from None
    pieces, rules, kind = read_pieces(model), normalizer(model), model_type(model)
    if kind not in ("unigram", "bpe"):
        raise UserError(f"{folder / 'tokenizer.model'}: a model of type {kind}; llama.cpp reads unigram and bpe")
    if len(pieces) > size:
        raise UserError(f"{folder}: {len(pieces):,} pieces, but the model has {size:,} embeddings: not its tokenizer")
    ids: dict[str, int | None] = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": tokenizer.unk_id}
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    pad = config.get("pad_token")
    ids["pad"] = next((i for i, piece in enumerate(pieces) if piece.type == CONTROL and piece.text == pad), None)
    # Embeddings without a piece (a vocabulary padded to a round number) need a name each.
    pieces += [Piece(f"<|unused_{i}|>", 0.0, CONTROL) for i in range(len(pieces), size)]
    chosen = "llama" if kind == "bpe" else unigram
    tokens, scores = [piece.text for piece in pieces], [piece.score for piece in pieces]
    types = [piece.type for piece in pieces]
    if chosen == "t5":
        for number, character in _ascii_bytes(pieces).items():
            tokens[number], types[number] = character, NORMAL
            scores[number] = min(p.score for p in pieces if p.type == NORMAL) - UNKNOWN_PENALTY
    elif chosen == "plamo2":
        if not is_ours(model):
            raise UserError(f"{folder / 'tokenizer.model'}: not one of ours; write it with --tokenizer t5")
        tokens = [text.replace(SPACE, " ") for text in tokens]
        scores = [round(p.score / SCORE_STEP) * PLAMO2_STEP if p.type == NORMAL else PLAMO2_NEVER for p in pieces]
    else:
        _say_what_merges(pieces)
        if rules.charsmap or rules.collapse:
            log(
                f"{folder / 'tokenizer.model'}: llama.cpp's BPE does not normalise text as this model wants; ids differ"
            )
    return Vocabulary(
        model=chosen,
        tokens=[text.encode() for text in tokens],
        scores=scores,
        types=types,
        ids={name: number for name, number in ids.items() if number is not None},
        add_bos=add_bos and tokenizer.bos_id is not None,
        dummy_prefix=rules.dummy_prefix,
        collapse=rules.collapse,
        charsmap=rules.charsmap,
        chat_template=_chat_template(folder, config),
    )


def write_vocabulary(writer: Any, found: Vocabulary) -> None:
    """Add a vocabulary to a gguf.GGUFWriter."""
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(found.tokens)
    writer.add_token_scores(found.scores)
    writer.add_token_types(found.types)
    for name, number in found.ids.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(found.add_bos)
    writer.add_add_eos_token(False)  # t5's own default is true
    writer.add_add_space_prefix(found.dummy_prefix)
    writer.add_remove_extra_whitespaces(found.collapse)
    if found.charsmap:
        writer.add_precompiled_charsmap(found.charsmap)
    if found.chat_template:
        writer.add_chat_template(found.chat_template)


def _ascii_bytes(pieces: list[Piece]) -> dict[int, str]:
    """The byte pieces whose byte is a character without a piece, by id, with that character.

    As pieces, at the price of an unknown character, they are found where SentencePiece falls back on them. Not NUL,
    which ends a string of llama.cpp's, nor the space, which is written otherwise there.
    """
    known = {piece.text for piece in pieces if piece.type == NORMAL}
    bytes_ = {number: int(piece.text[3:5], 16) for number, piece in enumerate(pieces) if piece.type == BYTE}
    return {i: chr(byte) for i, byte in bytes_.items() if 0 < byte < 128 and byte != 32 and chr(byte) not in known}


def _chat_template(folder: Path, config: dict[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    return template if isinstance(template, str) else ""


def _say_what_merges(pieces: list[Piece]) -> None:
    """llama.cpp's BPE joins whatever makes a token, control tokens too: say which of them a text can spell."""
    known = {piece.text for piece in pieces}

    def reached(text: str) -> bool:
        cuts = range(1, len(text))
        return len(text) == 1 or (text in known and any(reached(text[:at]) and reached(text[at:]) for at in cuts))

    if spelt := [piece.text for piece in pieces if piece.type != NORMAL and reached(piece.text)]:
        log(f"llama.cpp will read these as control tokens where a text spells them: {' '.join(spelt)}")
