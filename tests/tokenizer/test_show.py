"""A text as its pieces, on a terminal and off it."""

from __future__ import annotations

import io
import json
import re
import sys
import types
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from opened import Opened, trained

from xmodel import cli as command_line
from xmodel.console import width
from xmodel.errors import UserError
from xmodel.tokenizer.show import pieces_of, show, shown

LINES = [f"The old river runs past {n} trees." for n in range(40)] + ["河流旁边的苹果。", "窗户和河流。"] * 20
TEXT = "The river 河流\n\t🤗\x1b[31m e\u0301"


@pytest.fixture(scope="module")
def tokenizer() -> Opened:
    keeping = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False}
    extra = {"user_defined_symbols": ["\n", "\t"], "byte_fallback": True, "hard_vocab_limit": False}
    return Opened(trained(LINES, vocab_size=380, **keeping, **extra), "mine")


@pytest.fixture(scope="module")
def plain() -> Opened:
    return Opened(trained(LINES, vocab_size=80, hard_vocab_limit=False), "plain")


def test_every_token_with_its_bytes(tokenizer: Opened):
    tokens = pieces_of(tokenizer, TEXT)
    assert [token["id"] for token in tokens] == tokenizer.processor.encode(TEXT)
    assert bytes.fromhex(" ".join(token["bytes"] for token in tokens)).decode() == TEXT
    emoji = [token for token in tokens if token["bytes"] in ("f0", "9f", "a4", "97")]
    assert [(token["piece"], token["kind"]) for token in emoji] == [(None, "byte")] * 4
    escape = next(token for token in tokens if token["bytes"] == "1b")
    assert (escape["piece"], escape["kind"]) == ("\x1b", "byte")
    assert next(token for token in tokens if token["bytes"] == "0a")["kind"] == "piece"


def test_unknown_and_control_tokens_are_marked(plain: Opened, monkeypatch: pytest.MonkeyPatch):
    found = show(plain, "The 🤗")
    assert found["tokens"][-1]["kind"] == "unknown"
    assert "⟨unknown⟩" in shown(found, colour=False)
    assert not found["lossless"]
    assert "not lossless: decoding gives 'The  ⁇ '" in shown(found, colour=False)

    class Controlling(Opened):  # as vocabularies that match control tokens in plain text
        def encode_batch(self, texts: list[str]) -> list[Any]:
            import numpy as np

            return [np.array([1])]

    model = plain.processor.serialized_model_proto()
    tokens = pieces_of(Controlling(model), "<s>")
    assert tokens == [{"id": 1, "piece": "", "bytes": "", "kind": "control"}]
    assert "⟨control⟩" in shown(show(Controlling(model), "<s>"), colour=False)


def test_off_a_terminal_there_is_not_one_escape(tokenizer: Opened):
    printed = shown(show(tokenizer, TEXT), colour=False)
    assert "\x1b" not in printed
    assert printed.splitlines()[0].replace("│", "") == "The river 河流↵"
    assert "⟨f0⟩│⟨9f⟩│⟨a4⟩│⟨97⟩│⟨1b⟩" in printed


def test_on_a_terminal_neighbours_differ_in_colour_and_the_text_stays_whole(tokenizer: Opened):
    printed = shown(show(tokenizer, "The river 河流\nThe"), colour=True)
    running = printed.split("\n\n")[0]
    grounds = re.findall(r"48;5;(\d+)m", running)
    assert len(grounds) == len(tokenizer.processor.encode("The river 河流\nThe"))
    assert all(a != b for a, b in pairwise(grounds))
    assert re.sub(r"\x1b\[[\d;]*m", "", running) == "The river 河流↵\nThe"
    assert all(line.endswith("\x1b[0m") for line in running.splitlines())
    styles = {
        found[1] for found in re.finditer(r"\x1b\[([\d;]*);48;5;\d+m⟨", shown(show(tokenizer, "🤗"), colour=True))
    }
    assert len(styles) == 1
    assert f"\x1b[{styles.pop()};48" not in running, "bytes look different from pieces"
    assert "\x1b[31m" not in shown(show(tokenizer, TEXT), colour=True), "the text's own escapes do nothing"


def test_columns_stand_under_one_another_beside_wide_characters(tokenizer: Opened):
    rows = shown(show(tokenizer, "The 河流 e\u0301\n\ta"), colour=False).split("\n\n")[1].splitlines()
    column = width(rows[0][: rows[0].index("bytes")])
    for row in rows[2:]:
        prefix = next(row[:end] for end in range(len(row) + 1) if width(row[:end]) == column)
        assert re.fullmatch(r" *\d+ +\d+  \S+ +", prefix), row
        assert re.match(r"[0-9a-f]{2}( |$)", row[len(prefix) :]), row


@pytest.mark.parametrize("colour", [False, True])
def test_empty_text(tokenizer: Opened, colour: bool):
    found = show(tokenizer, "")
    assert (found["tokens"], found["characters"], found["lossless"]) == ([], 0, True)
    assert "0 tokens, 0 characters" in shown(found, colour)


def test_lone_surrogates_are_refused(tokenizer: Opened):
    with pytest.raises(UserError, match=r"U\+DC80"):
        show(tokenizer, "a\udc80")


# ── The command ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def xmodel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, tokenizer: Opened):
    """The command line in this process: (exit code, output, errors); every tokenizer is `tokenizer`."""
    others: Any = types.ModuleType("xmodel.tokenizer.others")
    others.open_tokenizer = lambda name: tokenizer
    monkeypatch.setitem(sys.modules, "xmodel.tokenizer.others", others)
    monkeypatch.chdir(tmp_path)
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, stdin: bytes = b"", terminal: bool = False) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["xmodel", "tokenizer", "show", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
        with pytest.raises(SystemExit) as stopped:
            command_line.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


def test_the_text_comes_from_the_argument_a_file_or_standard_input(xmodel, tmp_path: Path):
    (tmp_path / "text.md").write_text("The river 河流", encoding="utf-8")
    answers = [
        xmodel("mine", "The river 河流", "--json"),
        xmodel("mine", "--file", "text.md", "--json"),
        xmodel("mine", "-", "--json", stdin="The river 河流".encode()),
    ]
    assert answers[0] == answers[1] == answers[2]
    found = json.loads(answers[0][1])
    assert set(found) == {"tokenizer", "characters", "bytes", "tokens", "decoded", "lossless"}
    assert set(found["tokens"][0]) == {"id", "piece", "bytes", "kind"}
    assert (found["characters"], found["bytes"], found["decoded"]) == (12, 16, "The river 河流")


def test_colours_only_where_they_are_wanted(xmodel, monkeypatch: pytest.MonkeyPatch):
    assert "\x1b[" in xmodel("mine", "The river", terminal=True)[1]
    assert "\x1b[" not in xmodel("mine", "The river")[1]
    assert "\x1b[" not in xmodel("mine", "The river", "--json", terminal=True)[1]
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b[" not in xmodel("mine", "The river", terminal=True)[1]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in xmodel("mine", "The river", terminal=True)[1]


@pytest.mark.parametrize(
    ("arguments", "stdin", "expected"),
    [
        (["mine"], b"", "give a text or --file"),
        (["mine", "a", "--file", "latin.txt"], b"", "give a text or --file"),
        (["mine", "-"], b"a\xff", "standard input: invalid UTF-8 at byte 1"),
        (["mine", "--file", "latin.txt"], b"", "latin.txt: invalid UTF-8 at byte 0"),
        (["mine", "a\udc80"], b"", "U+DC80"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], stdin: bytes, expected: str, xmodel, tmp_path: Path):
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    code, out, err = xmodel(*arguments, stdin=stdin)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert expected in err


def test_a_missing_file(xmodel):
    code, out, err = xmodel("mine", "--file", "nowhere.txt")
    assert (code, out) == (2, "")
    assert "nowhere.txt" in err
