"""A text as its pieces: coloured one after another, and as a table of ids and bytes."""

from __future__ import annotations

import unicodedata
from typing import Any

from xmodel.console import table
from xmodel.errors import UserError
from xmodel.tokenizer.compare import AnyTokenizer

# Black on pale grounds of the 256-colour table: the same on light and dark terminals. Neighbours differ.
GROUNDS = (153, 222, 157, 218)
INK = "38;5;16"
MARKED = "1;4;38;5;124"  # dark red, underlined: bytes of a character, unknown and control pieces
MARKS = {"\n": "↵", "\r": "␍", "\t": "⇥"}
SEPARATOR = "│"


def pieces_of(tokenizer: AnyTokenizer, text: str) -> list[dict[str, Any]]:
    """The tokens of a text in order: id, piece (None where its bytes are no whole characters), bytes (hex) and kind.

    kind: "piece"; "byte" for a byte-fallback piece or a part of a character; "unknown"; "control".

    Raises:
        UserError: the text holds a lone surrogate, which UTF-8 cannot represent.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise UserError(
            f"the text holds the lone surrogate {code}, which UTF-8 cannot represent; give text in UTF-8"
        ) from None
    byte_ids = {int(i) for i in tokenizer.byte_ids}
    rows = []
    for i in tokenizer.encode_batch([text])[0].tolist():
        stored = tokenizer.pieces[i]
        try:
            piece = stored.decode()
        except UnicodeDecodeError:
            piece = None
        if i == tokenizer.unk_id:
            kind = "unknown"
        elif not stored:
            kind = "control"
        else:
            kind = "byte" if piece is None or i in byte_ids else "piece"
        rows.append({"id": i, "piece": piece, "bytes": stored.hex(" "), "kind": kind})
    return rows


def show(tokenizer: AnyTokenizer, text: str) -> dict[str, Any]:
    """What `--json` prints: the tokens of a text, its sizes, and what decoding makes of it."""
    tokens = pieces_of(tokenizer, text)
    decoded = tokenizer.decode([token["id"] for token in tokens])
    return {
        "tokenizer": tokenizer.name,
        "characters": len(text),
        "bytes": len(text.encode()),
        "tokens": tokens,
        "decoded": decoded,
        "lossless": decoded == text,
    }


def shown(found: dict[str, Any], colour: bool) -> str:
    """What `show` found, for a person: the running text, the table, and a line of figures.

    Args:
        found: from `show`.
        colour: on a terminal; elsewhere the pieces are set apart by `│`.
    """
    tokens = found["tokens"]
    running = _coloured(tokens) if colour else _plain(tokens)
    rows = [
        [str(place), str(token["id"]), _cell(token), token["bytes"], "" if token["kind"] == "piece" else token["kind"]]
        for place, token in enumerate(tokens, start=1)
    ]
    count, characters, size = len(tokens), found["characters"], found["bytes"]
    figures = f"{count} token{'s' * (count != 1)}, {characters} character{'s' * (characters != 1)}, {size} bytes"
    if count and characters:
        figures += f": {count / characters:.3f} tokens per character, {size / count:.2f} bytes per token"
    if not found["lossless"]:
        figures += f"\nnot lossless: decoding gives {found['decoded']!r}"
    return "\n\n".join(part for part in (running, table(["", "id", "piece", "bytes", "kind"], rows), figures) if part)


def _plain(tokens: list[dict[str, Any]]) -> str:
    text = ""
    for token in tokens:
        text += (SEPARATOR if text and not text.endswith("\n") else "") + _running(token)
    return text.rstrip("\n")


def _coloured(tokens: list[dict[str, Any]]) -> str:
    parts = []
    for place, token in enumerate(tokens):
        ink = INK if token["kind"] == "piece" else MARKED
        style = f"{ink};48;5;{GROUNDS[place % len(GROUNDS)]}"
        # The ground ends before the line does, or some terminals fill the rest of the line with it.
        parts.append("\n".join(f"\x1b[{style}m{part}\x1b[0m" if part else "" for part in _running(token).split("\n")))
    return "".join(parts).rstrip("\n")


def _running(token: dict[str, Any]) -> str:
    """A token within the running text: spaces and line breaks as they are; what is no piece stands in brackets."""
    if token["kind"] == "piece":
        return "\n".join(_safe(part) for part in token["piece"].replace("\n", "↵\n").split("\n"))
    name = token["bytes"] if token["kind"] == "byte" else token["kind"]
    return f"⟨{name}⟩" + "\n" * (token["piece"] == "\n")


def _cell(token: dict[str, Any]) -> str:
    """A token in the table: white space visible, and nothing that would move the columns."""
    if token["piece"] is None or not token["bytes"]:
        return "–"
    return "".join(
        f"\\u{ord(character):04x}" if unicodedata.category(character) in ("Mn", "Me") else character
        for character in _safe(token["piece"]).replace(" ", "␣")
    )


def _safe(text: str) -> str:
    """A text that does nothing to a terminal: characters that do not print are written as escapes."""
    return "".join(
        MARKS.get(character, character if character.isprintable() else f"\\u{ord(character):04x}") for character in text
    )
