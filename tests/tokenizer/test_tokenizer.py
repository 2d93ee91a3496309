"""The tokenizer: lossless, exactly equal in three libraries, deterministic, and clear about what it cannot do."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodel.errors import MachineError, UserError
from xmodel.recipe.settings import Tokenizer as Settings
from xmodel.tokenizer.codec import Tokenizer
from xmodel.tokenizer.convert import BYTE, CONTROL, NORMAL, SCORE_STEP, UNKNOWN, read_pieces
from xmodel.tokenizer.train import train

TEXT = Path(__file__).parents[2] / "../shared/text"
NAMES = ["Ada", "Grace", "Lin", "Omar", "小林", "安娜", "王芳"]
THINGS = ["apple", "river", "window", "苹果", "河流", "窗户", "library"]
SYLLABLES = ["ba", "con", "de", "ing", "ment", "or", "pre", "ra", "st", "tion", "un", "ver", "语", "言", "模", "型"]


def documents() -> list[str]:
    """A few hundred short documents in English, Chinese and Python."""
    made = []
    draw = random.Random(0)
    words = ["".join(draw.choices(SYLLABLES, k=draw.choice([2, 3]))) for _ in range(400)]
    for i in range(300):
        made.append(" ".join(draw.choices(words, k=40)) + ".\n")
        name, thing = NAMES[i % 7], THINGS[i // 7 % 7]
        made.append(f"{name} put {i} of the {thing}s on the table.\n\nThen {name} went home, and the {thing} stayed.\n")
        made.append(f"{name}把{i}个{thing}放在桌子上。\n然后{name}回家了，{thing}还在那里。\r\n")
        made.append(f"def f{i}(x):\n    if x > {i}:\n        return {{'{thing}': x}}\n\treturn [x, {i}]  # {name}\n")
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train(documents(), Settings(vocab_size=600), path, seed=0)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def hugging_face(folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def automatic(folder: Path):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(folder))


TRICKY = [
    "", " ", "  ", " " * 17, " " * 5000, "\n", "\n\n\n", "\t", "\t\tx", "\r\n", "a\r\nb\rc", "\x00", "a\x00\x00b", "\ufeffa",
    "<s>", "</s>", "<unk>", "<0x0A>", "<s></s><unk><0x0A>", " <s> ", "a<s>b", "<pad>", "<0xE4><0xBD>", "\\n\\t",
    "\u2581", "\u2581\u2581", " \u2581 a\u2581", "\u2585", "a\u2585b", "\u2047", " \u2047 ", "\ufffd", "\ufffe\uffff",
    "    def f(x):\n\t\treturn  x\n", "trailing   ", "   leading", "a  b   c    d", "中文和English混合 text，标点。", "１２３ 123",
    "🤗🏳️‍🌈👨‍👩‍👧", "e\u0301 é ﬁ Ⅷ ㎏", "\u200b\u200d\u2028\u2029\x85\x0b\x0c\u3000\xa0", "\U0010ffff", "العربية हिन्दी ไทย",
    "a" * 5000, "的" * 5000, "ab" * 3000, "-" * 4000, "\u2581" * 3000, "\u2581 " * 3000, "word " * 3000, "\x00" * 1000,
]  # fmt: skip


def fuzz(count: int, seed: int) -> list[str]:
    """Random texts: any code point of any plane, white space and neighbours, and control tokens written out."""
    draw = random.Random(seed)
    scraps = [
        "<s>",
        "</s>",
        "<unk>",
        "<0x0A>",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "the",
        "的",
        " ",
        "\u2581",
        "apple",
        "苹果",
        "🤗",
        "=",
        "\ufffd",
    ]
    planes = [lambda: chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)]))]
    near = [
        lambda: chr(
            draw.choice([32, 9, 10, 13, 0, 0x2581, 0x2585, 0x3000, draw.randrange(128), 0x4E00 + draw.randrange(99)])
        )
    ]
    words = [lambda: draw.choice(scraps)]
    kinds = [planes, near, words]
    return ["".join(kind[0]() for _ in range(draw.choice([1, 3, 20, 300]))) for kind in draw.choices(kinds, k=count)]


def differences(texts: list[str], tokenizer: Tokenizer, hugging_face: tokenizers.Tokenizer, automatic) -> list[str]:
    """Texts that the three libraries do not encode alike, or that do not come back."""
    ours = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
    theirs = [encoding.ids for encoding in hugging_face.encode_batch(texts, add_special_tokens=False)]
    transformers = automatic(texts, add_special_tokens=False)["input_ids"] if texts else []
    wrong = []
    for text, a, b, c in zip(texts, ours, theirs, transformers, strict=True):
        back = tokenizer.decode(a) == text == hugging_face.decode(b) == automatic.decode(c)
        if not (a == b == c and back):
            wrong.append(text[:60])
    return wrong


def test_tricky_texts_are_equal_everywhere_and_come_back(tokenizer, hugging_face, automatic):
    assert differences(TRICKY, tokenizer, hugging_face, automatic) == []


def test_fuzz_of_all_planes(tokenizer, hugging_face, automatic):
    assert differences(fuzz(1500, seed=1), tokenizer, hugging_face, automatic) == []


@pytest.mark.parametrize("name", ["en-cpp-docs", "en-peps", "en-iotdb-docs", "zh-modern", "zh-iotdb-docs"])
def test_real_text(name, tokenizer, hugging_face, automatic):
    path = TEXT / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip("no ../shared/text")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line in stream][::40]
    lines = [line for text in texts for line in text.splitlines(keepends=True)][:2000]
    assert differences(texts + lines, tokenizer, hugging_face, automatic) == []


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_round_trip(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {0, 1, 2} & set(ids)
    assert int(tokenizer.piece_bytes[ids].sum()) == len(text.encode())


def test_the_model_file_alone_gives_the_same_ids(folder, tokenizer):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = [text for text in documents()[::7] + TRICKY if len(text) < 400 and "\u2581" not in text]
    assert [processor.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]


def test_vocabulary(folder, tokenizer):
    pieces = read_pieces((folder / "tokenizer.model").read_bytes())
    assert [(piece.text, piece.type) for piece in pieces[:3]] == [
        ("<unk>", UNKNOWN),
        ("<s>", CONTROL),
        ("</s>", CONTROL),
    ]
    assert len(pieces) == tokenizer.vocab_size == 600
    assert sum(piece.type == BYTE for piece in pieces) == 256
    assert {piece.type for piece in pieces} == {NORMAL, UNKNOWN, CONTROL, BYTE}
    assert all((piece.score / SCORE_STEP).is_integer() for piece in pieces)
    assert max(len(piece.text) for piece in pieces) <= 16
    texts = {piece.text for piece in pieces if piece.type == NORMAL}
    assert {"\n", "\t", "\u2581"} <= texts
    assert any(set(text) == {"\u2581"} and len(text) > 2 for text in texts), "indentation has pieces"
    assert all(text.isascii() and len(text) == 1 for text in texts if any(c.isdigit() for c in text)), (
        "digits stand alone"
    )
    assert all(len(tokenizer.encode(chr(c))) == 1 for c in range(128))


def test_training_is_deterministic_and_stops_at_the_sample(tmp_path):
    endless = (text for _ in range(10**9) for text in documents())
    small = Settings(vocab_size=500, sample_bytes=20_000)
    first = train(endless, small, tmp_path / "a", seed=3)
    second = train(iter(documents()), small, tmp_path / "b", seed=3)
    assert 20_000 <= first["bytes"] == second["bytes"] < 21_000
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "tokenizer-stats.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert first["bytes_per_token"] > 1
    assert first["en"]["tokens_per_character"] > 0


def test_long_lines_are_learned_from(tmp_path):
    train(["".join(random.Random(0).choices(THINGS, k=5000))], Settings(vocab_size=390), tmp_path, seed=0)
    assert len(Tokenizer.load(tmp_path).encode("window")) < len("window")


def test_text_without_spaces_still_keeps_them(tmp_path):
    train(["苹果和河流" * 9, "窗户和苹果", "河流与窗户"], Settings(vocab_size=380), tmp_path, seed=0)
    text = " a  b \u2581 苹果\n"
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(
        text, add_special_tokens=False
    ).ids == (tokenizer.encode(text))


def test_a_vocabulary_too_large_names_the_largest(tmp_path):
    with pytest.raises(UserError, match=r"vocab_size: 20,000 .* largest possible is [\d,]+$") as caught:
        train(documents(), Settings(vocab_size=20_000), tmp_path, seed=0)
    largest = int(str(caught.value).rsplit(" ", 1)[1].replace(",", ""))
    assert train(documents(), Settings(vocab_size=largest), tmp_path, seed=0)["vocab_size"] == largest
    with pytest.raises(UserError, match="largest possible"):
        train(documents(), Settings(vocab_size=largest + 1), tmp_path, seed=0)


def test_other_impossible_training(tmp_path):
    with pytest.raises(UserError, match=r"too small .* at least \d+"):
        train(documents(), Settings(vocab_size=300), tmp_path, seed=0)
    for nothing in ([], [""], ["", "\n\n"]):
        with pytest.raises(UserError, match="no text to train on"):
            train(nothing, Settings(vocab_size=500), tmp_path, seed=0)
    with pytest.raises(UserError, match="largest possible"):
        train(["a" * 10_000], Settings(vocab_size=500), tmp_path, seed=0)


def test_lone_surrogates_are_refused(tokenizer):
    with pytest.raises(UserError, match=r"U\+D800"):
        tokenizer.encode("a\ud800b")
    with pytest.raises(UserError, match=r"U\+DFFF"):
        tokenizer.encode("a" * 5000 + "\udfff")


def test_streaming_never_gives_half_a_character(tokenizer):
    text = "héllo 🤗 苹果 \u2581 zürich\n中文"
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    parts = [stream.push(i) for i in [1, *ids, 2]]
    assert "".join(parts) + stream.finish() == text
    assert not any("\ufffd" in part for part in parts)
    emoji = tokenizer.encode("🤗")
    assert len(emoji) == 4
    stream = tokenizer.stream()
    assert [stream.push(i) for i in emoji] == ["", "", "", "🤗"]
    stream = tokenizer.stream()
    assert "".join(stream.push(i) for i in emoji[:3]) == ""
    assert stream.finish() == "\ufffd"


def test_batches_equal_single_texts(tokenizer):
    texts = [*TRICKY, *fuzz(50, seed=2)]
    batch = tokenizer.encode_batch(texts, threads=2)
    assert all(ids.dtype == np.uint16 for ids in batch)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch([]) == []


def test_control_tokens_decode_to_nothing(tokenizer):
    ids = tokenizer.encode("apple")
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == "apple"


def test_bos_in_transformers(tmp_path, automatic):
    transformers = pytest.importorskip("transformers")
    assert automatic.encode("the <s>")[0] == 1
    assert automatic.decode(automatic.encode("the <s>"), skip_special_tokens=True) == "the <s>"
    assert (automatic.bos_token_id, automatic.eos_token_id, automatic.unk_token_id) == (1, 2, 0)
    train(documents()[:300], Settings(vocab_size=500), tmp_path, seed=0, add_bos=False)
    without = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert without.encode("the </s>") == Tokenizer.load(tmp_path).encode("the </s>")


def test_transformers_beside_a_llama_config_and_after_saving(folder, tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    beside = tmp_path / "export"
    beside.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (beside / name).write_bytes((folder / name).read_bytes())
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 600, "hidden_size": 64}
    (beside / "config.json").write_text(json.dumps(config))
    loaded = transformers.AutoTokenizer.from_pretrained(str(beside))
    loaded.save_pretrained(str(tmp_path / "saved"))
    again = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "saved"))
    for text in [text for text in TRICKY if len(text) < 500] + documents()[::50]:
        assert loaded.encode(text) == again.encode(text) == [1, *tokenizer.encode(text)], text
        assert again.decode(again.encode(text), skip_special_tokens=True) == text


def test_a_damaged_model_is_named(folder, tmp_path):
    with pytest.raises(MachineError, match="missing"):
        Tokenizer.load(tmp_path)
    model = (folder / "tokenizer.model").read_bytes()
    for damaged in (model[:-5], model[:2000], b"", b"no model at all", bytes(100)):
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        with pytest.raises(MachineError, match=r"tokenizer\.model"):
            Tokenizer.load(tmp_path)
