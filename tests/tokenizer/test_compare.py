"""Tokenizers side by side: every figure against one counted by hand or by another implementation."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opened import Opened, trained

from xmodel import cli as command_line
from xmodel.errors import UserError
from xmodel.tokenizer.compare import AnyTokenizer, Document, compare, language_of, script, units
from xmodel.tokenizer.compare_output import draw, tables

LINES = [
    f"The {thing} near the old {place} doesn't move, says {name}; it's {n} metres long."
    for n, (thing, place, name) in enumerate(
        [
            (a, b, c)
            for a in ("river", "boat", "letter", "forest")
            for b in ("market", "bridge", "window")
            for c in ("Ann", "Bo")
        ]
    )
] + ["窗户旁边的苹果在河流里。", "他们在市场看见了河流。", "苹果和窗户，河流和森林！"] * 8
KEEPING = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False}


@pytest.fixture(scope="module")
def keeping() -> Opened:
    """Loses nothing but the white space that SentencePiece itself cannot keep."""
    extra = {"user_defined_symbols": ["\n", "\t"], "byte_fallback": True, "hard_vocab_limit": False}
    return Opened(trained(LINES, vocab_size=420, **KEEPING, **extra), "keeping")


@pytest.fixture(scope="module")
def folding() -> Opened:
    """SentencePiece's defaults: NFKC, white space collapsed, no byte fallback."""
    model = trained(LINES, vocab_size=120, normalization_rule_name="nmt_nfkc", hard_vocab_limit=False)
    return Opened(model, "folding")


class ByHand:
    """A tokenizer whose every encoding is written down."""

    def __init__(self, encodings: dict[str, list[int]], pieces: list[bytes] | None = None) -> None:
        hand = ["\ufffd", "", "The", " c", "at", " sat", "\udce4", "\udcbd", "\udca0", "好吗", ".", "x"]
        self.encodings, self.name, self.unk_id = encodings, "by hand", 0
        self.pieces = pieces or [piece.encode("utf-8", "surrogateescape") for piece in hand]
        self.vocab_size, self.byte_ids = len(self.pieces), np.array([] if pieces else [6, 7, 8], np.int64)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(self.encodings[text], np.uint16) for text in texts]

    def decode(self, ids: Any) -> str:
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", "replace")


def documents(*texts: str, language: str = "en", category: str = "web") -> list[Document]:
    return [Document(f"doc-{number}", text, language, category) for number, text in enumerate(texts)]


def group(found: dict[str, Any], language: str = "all", category: str = "all", tokenizer: int = 0) -> dict[str, Any]:
    rows = found["tokenizers"][tokenizer]["groups"]
    return next(row for row in rows if (row["language"], row["category"]) == (language, category))


def test_figures_counted_by_hand():
    tokenizer = ByHand({"The cat sat.": [2, 3, 4, 5, 10], "你好吗": [6, 7, 8, 9], "好": [0]})
    batches = [
        [Document("1", "The cat sat.", "en", "book")],
        [Document("2", "你好吗", "zh", "web"), Document("3", "好", "zh", "chat")],
    ]
    found = compare({"hand": tokenizer}, batches, rounds=2)
    assert found["text"][0] == {"language": "all", "category": "all", "documents": 3, "characters": 16, "bytes": 24}
    english = group(found, "en", "book")
    assert english["tokens_per_character"] == 5 / 12
    assert english["bytes_per_token"] == 12 / 5
    assert (english["words"], english["tokens_per_word"], english["continued_words"]) == (3, 4 / 3, 1 / 3)
    assert english["tokens_per_han_character"] is None
    chinese = group(found, "zh", "web")
    assert (chinese["tokens"], chinese["byte_share"], chinese["unknown_share"]) == (4, 3 / 4, 0)
    assert (chinese["han_characters"], chinese["tokens_per_han_character"]) == (3, 4 / 3)
    assert chinese["continued_han_characters"] == 1 / 3
    assert chinese["tokens_per_word"] is None
    assert group(found, "zh", "chat")["unknown_share"] == 1
    both = group(found, "zh")
    assert (both["tokens"], both["tokens_per_character"], both["unknown_share"]) == (5, 5 / 4, 1 / 5)
    assert group(found)["tokens"] == 10
    (row,) = found["tokenizers"]
    assert (row["lossless"], row["documents_changed"]) == (False, 1)
    assert row["first_difference"] == {
        "document": "3", "line": 1, "character": 1, "text": "好", "decoded": "\ufffd",
    }  # fmt: skip
    use = row["scripts"]
    assert use["Latin"] == {"pieces": 5, "used": 4, "token_share": 4 / 10}
    assert use["Han"] == {"pieces": 1, "used": 1, "token_share": 1 / 10}
    assert use["bytes"] == {"pieces": 3, "used": 3, "token_share": 3 / 10}
    assert use["special"] == {"pieces": 2, "used": 1, "token_share": 1 / 10}
    assert use["punctuation"]["pieces"] == 1
    assert row["never_used"] == 1
    assert row["encode_mb_per_second"] > 0
    assert row["decode_mb_per_second"] > 0


WORD = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏ]+(?:['’][A-Za-zÀ-ÖØ-öø-ɏ]+)*")


def counted_slowly(tokenizer: AnyTokenizer, text: str) -> dict[str, float]:
    """The same figures byte by byte: which token each byte belongs to, looked up for every word and Han character."""
    owner: list[int] = []
    for number, i in enumerate(tokenizer.encode_batch([text])[0].tolist()):
        owner += [number] * len(tokenizer.pieces[i])
    offset = [len(text[:i].encode()) for i in range(len(text) + 1)]
    words = [set(owner[offset[m.start()] : offset[m.end()]]) for m in WORD.finditer(text)]
    han = [set(owner[offset[m.start()] : offset[m.end()]]) for m in re.finditer("[一-鿿]", text)]
    return {
        "words": len(words),
        "word_tokens": sum(map(len, words)),
        "continued": sum(len(tokens) > 1 for tokens in words),
        "han": len(han),
        "han_tokens": len(set().union(*han)),
        "continued_han": sum(len(tokens) > 1 for tokens in han),
    }


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([*"aTé'’ \n\t.,;5窗户河龘🤗", "river", "doesn't", "河流", "  ", "naïve"]), max_size=40))
def test_words_and_han_characters_equal_a_slow_count(keeping: Opened, parts: list[str]):
    text = "".join(parts)
    assert b"".join(keeping.pieces[i] for i in keeping.encode_batch([text])[0]) == text.encode()
    expected = counted_slowly(keeping, text)
    found = group(compare({"a": keeping}, [documents(text)], rounds=0))
    assert (found["words"], found["han_characters"]) == (expected["words"], expected["han"])
    if expected["words"]:
        assert found["tokens_per_word"] == expected["word_tokens"] / expected["words"]
        assert found["continued_words"] == expected["continued"] / expected["words"]
    if expected["han"]:
        assert found["tokens_per_han_character"] == expected["han_tokens"] / expected["han"]
        assert found["continued_han_characters"] == expected["continued_han"] / expected["han"]


def test_units_leave_white_space_out_of_their_places():
    words, han = units("I don't \n see 你 'x'")
    assert words.tolist() == [[0, 1, 6, 13], [0, 5, 8, 13]]
    assert han.tolist() == [[9], [11]]
    assert [len(part) for part in units("")] == [2, 2]


def test_a_tokenizer_that_folds_is_caught_and_measured_on_what_it_read(folding: Opened, keeping: Opened):
    texts = ["The river near the bridge.", "The ｒｉｖｅｒ\n  near  ﬁve", "河流里的龘。"]
    found = compare({"folding": folding, "keeping": keeping}, [documents(*texts)], rounds=0)
    row, exact = found["tokenizers"]
    assert exact["lossless"]
    assert exact["first_difference"] is None
    assert not row["lossless"]
    assert row["documents_changed"] == 2
    assert row["first_difference"] == {
        "document": "doc-1", "line": 1, "character": 5,
        "text": "The ｒｉｖｅｒ\n  near  ﬁve"[:24], "decoded": "The river near five",
    }  # fmt: skip
    english = group(compare({"folding": folding}, [documents(texts[1])], rounds=0))
    assert english["words"] == 4  # The river near five
    assert english["tokens_per_word"] == counted_slowly(folding, " The river near five")["word_tokens"] / 4
    assert group(found, tokenizer=0)["unknown_share"] > 0
    assert group(found, tokenizer=0)["byte_share"] == 0
    assert group(found, tokenizer=1)["unknown_share"] == 0
    assert group(found, tokenizer=1)["byte_share"] > 0
    printed = tables(found)
    assert "folding changes 2 of 3 documents; the first: doc-1, line 1, character 5" in printed
    assert "folding *" in printed
    assert "keeping *" not in printed


def test_a_token_that_stands_for_nothing_is_no_part_of_a_word():
    found = group(compare({"a": ByHand({" cat": [3, 1, 4]})}, [documents(" cat")], rounds=0))
    assert (found["tokens"], found["tokens_per_word"]) == (3, 2)


def test_the_place_of_a_difference_is_line_and_character():
    class Dropping(ByHand):
        def decode(self, ids: Any) -> str:
            return "ab\ncd"

    tokenizer = Dropping({"ab\ncde": [11]})
    (row,) = compare({"a": tokenizer}, [documents("ab\ncde")], rounds=0)["tokenizers"]
    assert (row["first_difference"]["line"], row["first_difference"]["character"]) == (2, 3)


def test_pieces_without_spaces_that_change_the_text_give_no_word_figures():
    pieces = ["\ufffd".encode(), b"the", b"cat", "窗户".encode()]  # as WordPiece without case: where does a word end?
    found = group(compare({"a": ByHand({"The cat 窗户": [1, 2, 3]}, pieces)}, [documents("The cat 窗户")], rounds=0))
    assert (found["tokens"], found["words"], found["tokens_per_word"]) == (3, 0, None)
    assert found["tokens_per_han_character"] == 1 / 2
    found = group(compare({"a": ByHand({"the cat": [1, 2]}, pieces)}, [documents("the cat")], rounds=0))
    assert (found["words"], found["tokens_per_word"]) == (2, 1)


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_nothing_to_measure_is_null_and_no_error(keeping: Opened, texts: list[str]):
    found = compare({"a": keeping}, [documents(*texts)])
    assert found["text"][0]["documents"] == len(texts)
    figures = group(found)
    assert figures["tokens"] == 0
    assert figures["tokens_per_character"] is figures["byte_share"] is figures["tokens_per_word"] is None
    assert found["tokenizers"][0]["lossless"]
    assert found["tokenizers"][0]["encode_mb_per_second"] is None
    assert "–" in tables(found)
    json.dumps(found)


def test_text_without_chinese(keeping: Opened):
    found = compare({"a": keeping}, [documents("The river.", "The boat.")], rounds=0)
    assert [row["language"] for row in found["text"]] == ["all", "en", "en"]
    assert group(found)["tokens_per_han_character"] is None
    lines = tables(found).splitlines()
    assert lines[2].startswith("en "), "one language is not repeated as all"
    assert lines[3] == ""


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        ("the", "Latin"), (" the", "Latin"), ("é", "Latin"), ("e\u0301", "Latin"), ("的", "Han"), ("𠀀", "Han"), ("々", "Han"),
        ("7", "digits"), ("２", "digits"), (" 7", "digits"), (".", "punctuation"), ("，", "punctuation"), (" =", "punctuation"),
        (" ", "white space"), ("    ", "white space"), ("\n", "white space"), ("\u3000", "white space"), ("の", "other"),
        ("я", "other"), ("的a", "mixed"), ("don't", "mixed"), ("\n    x", "Latin"), (").\n\n", "punctuation"), ("\n  ", "white space"), ("a b", "mixed"), ("", "special"),
    ],
)  # fmt: skip
def test_scripts_of_pieces(piece: str, expected: str):
    assert script(piece.encode()) == expected


def test_parts_of_characters_are_bytes():
    assert script(b" \xe4\xb8") == "bytes"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "en"),
        ("123", "en"),
        ("hello", "en"),
        ("你好", "zh"),
        ("a" * 9 + "你", "zh"),
        ("a" * 10 + "你", "en"),
        ("привет", "en"),
    ],
)
def test_language_by_share_of_han(text: str, expected: str):
    assert language_of(text) == expected


# ── The command ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def xmodel(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    keeping: Opened,
    folding: Opened,
):
    """The command line in this process: (exit code, output, errors); `keeping` and `folding` are its tokenizers."""
    others: Any = types.ModuleType("xmodel.tokenizer.others")
    others.open_tokenizer = {"keeping": keeping, "folding": folding}.__getitem__
    monkeypatch.setitem(sys.modules, "xmodel.tokenizer.others", others)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["xmodel", "tokenizer", "compare", *arguments])
        with pytest.raises(SystemExit) as stopped:
            command_line.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


def test_compare_prints_tables_and_json(xmodel, tmp_path: Path):
    rows = [
        {"id": "a", "text": "The river.", "language": "eng", "category": "book"},
        {"id": "a", "text": "The boat\0.", "category": "news"},
        {"text": "河流。", "language": "zh-CN"},
        {"content": "no text"},
    ]
    with gzip.open(tmp_path / "mine.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "notes.md").write_text("森林和苹果\n")
    table = pa.table({"id": ["1"], "text": ["A letter"], "language": ["en"], "source": ["s"], "category": ["mail"]})
    (tmp_path / "validation").mkdir()
    pq.write_table(table, tmp_path / "validation" / "en.parquet")
    pq.write_table(table.select(["text"]), tmp_path / "validation" / "other.parquet")
    texts = ["--text", "mine.jsonl.gz", "notes.md", "validation"]
    code, out, err = xmodel("keeping", "folding", "--json", "--published", "--rounds", "1", *texts)
    assert code == 0, err
    found = json.loads(out)
    assert {(row["language"], row["category"]): row["documents"] for row in found["text"]} == {
        ("all", "all"): 6,
        ("en", "all"): 4, ("en", "book"): 1, ("en", "mail"): 1, ("en", "news"): 1, ("en", "validation"): 1,
        ("zh", "all"): 2, ("zh", "mine"): 1, ("zh", "notes"): 1,
    }  # fmt: skip
    assert found["records_left_out"] == {"no_text": 1}
    assert [row["name"] for row in found["tokenizers"]] == ["keeping", "folding"]
    assert set(found["tokenizers"][0]) == {
        "name", "vocab_size", "groups", "lossless", "documents_changed", "first_difference", "never_used", "scripts",
        "encode_mb_per_second", "decode_mb_per_second",
    }  # fmt: skip
    assert found["published"]["tokenizers"][3] == {
        "name": "Xmodel-LM",
        "vocab_size": 32_000,
        "tokens_per_character": 0.3841,
    }

    code, out, err = xmodel("keeping", "folding", "--published", "--rounds", "0", *texts)
    assert code == 0, err
    assert "  book" in out
    assert "records left out: 1 of them no_text" in out
    assert "Published, on other text" in out
    assert "0.3841" in out
    code, out, err = xmodel("keeping", "--rounds", "0", *texts)
    assert "0.3841" not in out


def test_compare_draws(xmodel, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("The  river 河流")
    for name, beginning in (("a.svg", b"<?xml"), ("a.png", b"\x89PNG"), ("a.pdf", b"%PDF")):
        code, _, err = xmodel("keeping", "folding", "--text", "notes.txt", "--rounds", "0", "--plot", name)
        assert code == 0, err
        assert (tmp_path / name).read_bytes().startswith(beginning)
    drawn = (tmp_path / "a.svg").read_text()
    assert all(word in drawn for word in ("Tokens per character", "keeping", "folding (lossy)", "white space"))


def test_chinese_names_are_drawn_without_a_warning(tmp_path: Path, keeping: Opened, recwarn: pytest.WarningsRecorder):
    found = compare({"分词": keeping}, [documents("The river.", category="散文")], rounds=0)
    draw(found, tmp_path / "a.png")
    draw(found, tmp_path / "a.svg")
    assert "分词" in (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_drawing_is_the_same_twice(tmp_path: Path, keeping: Opened):
    found = compare({"a": keeping}, [documents("The river.")], rounds=0)
    for name in ("one.svg", "two.svg"):
        draw(found, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    with pytest.raises(UserError, match=r"--plot .*one\.xls: .*\.svg"):
        draw(found, tmp_path / "one.xls")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["keeping", "--text", "nowhere.jsonl"], "--text nowhere.jsonl: no such file"),
        (["keeping", "--text", "nowhere/*.jsonl"], "no such file"),
        (["keeping", "--text", "empty"], "the folder holds no JSON lines, Parquet or text file"),
        (["keeping", "--text", "empty.jsonl"], "holds no document"),
        (["keeping", "--text", "other.jsonl"], "no_text; --text-field names the text's field"),
        (["keeping", "--text", "other.parquet"], "set --text-field to the text's field"),
        (["keeping", "--text", "broken.parquet"], "not a Parquet file"),
        (["keeping", "--text", "latin.txt"], "1 of them not_utf8"),
        (["keeping", "keeping", "--text", "good.txt"], "keeping: named twice"),
        (["keeping", "--text", "good.txt", "--plot", "a.gif"], "--plot a.gif: cannot be drawn"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(arguments: list[str], expected: str, xmodel, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "other.jsonl").write_text('{"content": "x"}\n')
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "broken.parquet").write_text("PAR1 or not")
    pq.write_table(pa.table({"content": ["x"]}), tmp_path / "other.parquet")
    code, out, err = xmodel(*arguments)
    assert code == 2
    assert out == ""
    told = [line for line in err.splitlines() if not line.startswith("comparing:")]
    assert len(told) == 1, err
    assert expected in told[0]


def test_another_field_and_texts_named_one_by_one(xmodel, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"content": "The river"}\n')
    (tmp_path / "b.jsonl").write_text('{"content": "The boat"}\n')
    arguments = ["--text", "a.jsonl", "--text=b.jsonl", "--text-field", "content", "--json", "--rounds", "0", "keeping"]
    code, out, err = xmodel(*arguments)
    assert code == 0, err
    assert [row["category"] for row in json.loads(out)["text"]] == ["all", "all", "a", "b"]


@pytest.mark.parametrize(
    "command", [["tokenizer", "--help"], ["tokenizer", "compare", "--help"], ["tokenizer", "show", "--help"]]
)
def test_help_loads_nothing_heavy_and_has_examples(command: list[str]):
    heavy = ("torch", "numpy", "pyarrow", "numba", "transformers", "tokenizers", "matplotlib", "sentencepiece", "yaml")
    code = (
        f"import sys; from xmodel.cli import cli; cli({command}, standalone_mode=False);"
        f"print('loaded', [name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("loaded []\n")
    assert "Examples:" in result.stdout


def test_train_is_what_a_run_by_itself_means():
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        command_line.cli(["tokenizer", "nowhere.yaml"], standalone_mode=False)
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        command_line.cli(["tokenizer", "train", "nowhere.yaml"], standalone_mode=False)


def test_real_tokenizers_from_the_command_line(tmp_path: Path, folding: Opened):
    pytest.importorskip("xmodel.tokenizer.others")
    from command import xmodel as in_its_own_process

    from xmodel.recipe.settings import Tokenizer as Settings
    from xmodel.tokenizer.train import train

    train([*LINES, Path(__file__).read_text()], Settings(vocab_size=600), tmp_path / "run" / "tokenizer", seed=0)
    (tmp_path / "theirs.model").write_bytes(folding.processor.serialized_model_proto())
    (tmp_path / "text.txt").write_text("The  river\n河流")
    names = [tmp_path / "run", tmp_path / "theirs.model"]
    result = in_its_own_process(
        "tokenizer", "compare", *names, "--text", tmp_path / "text.txt", "--json", "--rounds", 1
    )
    assert result.returncode == 0, result.stderr
    assert [row["lossless"] for row in json.loads(result.stdout)["tokenizers"]] == [True, False]
    result = in_its_own_process("tokenizer", "show", tmp_path / "run", "The river 河流", "--json")
    assert json.loads(result.stdout)["lossless"]
