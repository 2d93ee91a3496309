"""A run that uses an existing tokenizer (`tokenizer.path`) as it is, instead of training one.

One of ours is copied, with its exact tokenizer.json. A tokenizer.json of somebody else is copied. A SentencePiece
`.model` of somebody else is copied and encoded by SentencePiece, and a tokenizer.json is written for the engines: it
spells out the same normalizer, pieces and scores, and how often the two differ on the run's own text is measured and
said, not promised: SentencePiece sums scores in float32, `tokenizers` in float64, and their unknown characters weigh
differently.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from xmodel.console import log
from xmodel.errors import UserError
from xmodel.files import write_json
from xmodel.recipe.settings import Tokenizer as Settings
from xmodel.tokenizer.convert import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    Piece,
    bos_template,
    bpe_model,
    model_type,
    never,
    normalizer,
    read_pieces,
    tokenizer_json,
    write_hugging_face,
)
from xmodel.tokenizer.others import (
    JsonTokenizer,
    Opened,
    OurTokenizer,
    SentencePieceTokenizer,
    mark_encoder,
    open_tokenizer,
)
from xmodel.tokenizer.train import measure

MOST_PIECES = 65_536  # token ids are stored in 16 bits
CHECKED_BYTES = 8_000_000  # of the run's text, drawn from the mixture, that a converted tokenizer is compared on
CHECKED_TEXTS = 1000  # of these, at most
CHECKED_CHARACTERS = 4000  # of each


def adopt(texts: Iterable[str], settings: Settings, folder: Path, add_bos: bool = True) -> dict[str, Any]:
    """Take the tokenizer at `settings.path` into a run's `folder`.

    Args:
        texts: of the run, to measure it on.
        settings: `path`, and `vocab_size`, which the model's size is reckoned from.
        add_bos: whether the run puts `<s>` before documents (tokens.bos).

    Returns:
        The figures of tokenizer-stats.json; `converted_texts_that_differ` of `converted_texts_compared` where a
        tokenizer.json was written for somebody else's `.model`.

    Raises:
        UserError: it cannot be used: another size than vocab_size, no end token, more pieces than token ids can tell
            apart, a type without an equal in tokenizer.json.
    """
    where = f"tokenizer.path ({settings.path})"
    opened = open_tokenizer(settings.path)
    _check(opened, where, settings, add_bos)
    folder.mkdir(parents=True, exist_ok=True)
    sample = [text[:CHECKED_CHARACTERS] for text in islice(texts, CHECKED_TEXTS) if text]
    more: dict[str, Any] = {}
    if isinstance(opened, OurTokenizer):
        model = (opened.folder / "tokenizer.model").read_bytes()
        (folder / "tokenizer.model").write_bytes(model)
        write_hugging_face(model, folder, add_bos)
    elif isinstance(opened, JsonTokenizer):
        shutil.copyfile(opened.path, folder / "tokenizer.json")
        _copy_config(opened, folder, add_bos)
    else:
        (folder / "tokenizer.model").write_bytes(opened.model)
        content = converted(opened.model, add_bos, where)
        write_json(folder / "tokenizer.json", content)
        _write_config(folder, opened, add_bos)
        again = JsonTokenizer(folder / "tokenizer.json").encode_batch(sample)
        differ = sum(a.tolist() != b.tolist() for a, b in zip(opened.encode_batch(sample), again, strict=True))
        if differ:
            log(f"tokenizer.json, for engines, differs from {opened.path.name} in {differ} of {len(sample)} texts")
        more = {"converted_texts_compared": len(sample), "converted_texts_that_differ": differ}
    if not isinstance(opened, OurTokenizer):
        name = "tokenizer.json" if isinstance(opened, JsonTokenizer) else "tokenizer.model"
        mark_encoder(folder, name, opened.bos_id, opened.eos_id)
    figures = {"taken_from": settings.path, "vocab_size": opened.vocab_size, **more}
    figures |= measure(open_tokenizer(folder), sample)
    write_json(folder / "tokenizer-stats.json", figures)
    return figures


def _check(opened: Opened, where: str, settings: Settings, add_bos: bool) -> None:
    size = opened.vocab_size
    if size > MOST_PIECES:
        raise UserError(f"{where}: {size:,} pieces; token ids are stored in 16 bits, at most {MOST_PIECES:,} fit")
    if opened.eos_id is None:
        raise UserError(f"{where}: has no end-of-text token (eos), which every document ends with")
    if opened.bos_id is None and add_bos:
        raise UserError(f"{where}: has no beginning-of-text token (bos); set tokens.bos: false")
    if size != settings.vocab_size:
        raise UserError(
            f"tokenizer.vocab_size: {settings.vocab_size:,}, but {settings.path} has {size:,}; set it to that"
        )


def converted(model: bytes, add_bos: bool, where: str) -> dict[str, Any]:
    """The content of a tokenizer.json for somebody else's SentencePiece model.

    Raises:
        UserError: words or characters as pieces, or spaces at the end of words: tokenizer.json has no equal.
    """
    kind, pieces, rules = model_type(model), read_pieces(model), normalizer(model)
    if kind not in ("unigram", "bpe"):
        raise UserError(f"{where}: a SentencePiece model of type {kind}; a run can use unigram and bpe")
    if not rules.escape:
        raise UserError(f"{where}: its spaces are not escaped (escape_whitespaces); a run cannot use it")
    steps: list[dict[str, Any]] = []
    if rules.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(rules.charsmap).decode()})
    if rules.collapse:
        steps += [_replace(r"\A +| +\z", ""), _replace(" {2,}", " ")]
    if rules.dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if rules.dummy_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    found = [piece.type in (NORMAL, USER_DEFINED) for piece in pieces]
    if kind == "bpe":
        body = bpe_model([piece.text for piece in pieces], [piece.score for piece in pieces], found)
    else:
        body = {"type": "Unigram", "unk_id": _unk(pieces), "vocab": _scored(pieces)}
        body["byte_fallback"] = any(piece.type == BYTE for piece in pieces)
    bos = next((number for number, piece in enumerate(pieces) if piece.type == CONTROL and piece.text == "<s>"), None)
    template = bos_template("<s>", bos) if add_bos and bos is not None else None
    return tokenizer_json(body, {"type": "Sequence", "decoders": decoders}, _sequence(steps), template)


def _scored(pieces: list[Piece]) -> list[list[Any]]:
    """Pieces with their scores. SentencePiece gives user-defined ones so much that nothing beats them."""
    highest = max((piece.score for piece in pieces if piece.type == NORMAL), default=0.0)
    low = never(pieces)
    scores = {USER_DEFINED: lambda piece: len(piece.text.encode()) * highest - 0.1, NORMAL: lambda piece: piece.score}
    return [[piece.text, scores[piece.type](piece) if piece.type in scores else low] for piece in pieces]


def _unk(pieces: list[Piece]) -> int:
    return next(number for number, piece in enumerate(pieces) if piece.type == UNKNOWN)


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _sequence(steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": steps}


def _write_config(folder: Path, opened: SentencePieceTokenizer | JsonTokenizer, add_bos: bool) -> None:
    """tokenizer_config.json for a tokenizer that came without one."""
    names = {"unk_token": opened.unk_id, "bos_token": opened.bos_id, "eos_token": opened.eos_id}
    texts = opened.texts
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: texts[number] for key, number in names.items() if number is not None},
        "add_bos_token": add_bos,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", config)


def _copy_config(opened: JsonTokenizer, folder: Path, add_bos: bool) -> None:
    beside = opened.path.with_name("tokenizer_config.json")
    if beside.is_file():
        shutil.copyfile(beside, folder / "tokenizer_config.json")
    else:
        _write_config(folder, opened, add_bos)
