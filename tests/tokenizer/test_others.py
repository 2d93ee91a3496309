"""Other people's tokenizers: read as they are, taken into a run, and refused with a reason."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from test_tokenizer import documents

from xmodel.errors import MachineError, UserError
from xmodel.recipe.settings import Tokenizer as Settings
from xmodel.tokenizer.adopt import adopt
from xmodel.tokenizer.codec import Tokenizer
from xmodel.tokenizer.others import JsonTokenizer, OurTokenizer, SentencePieceTokenizer, open_tokenizer
from xmodel.tokenizer.train import train

TEXTS = [
    "The apple  fell.\n\tThen Ada went home", "小林回家了，苹果 1234。", " lead", "🤗 é \u2581", "<s> </s>", "", "def f(x):\n    return x",
]  # fmt: skip
SIZE = 450


def sentencepiece_model(path: Path, **options: object) -> Path:
    """A model as other people train them."""
    written = io.BytesIO()
    lines = (line for text in documents() for line in text.split("\n"))
    told = {"vocab_size": SIZE, "minloglevel": 2, **options}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=written, **told)  # type: ignore
    path.write_bytes(written.getvalue())
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """As the published tokenizer was trained; SentencePiece's defaults; Llama 2's kind; whole words."""
    folder = tmp_path_factory.mktemp("models")
    fallback = {"byte_fallback": True, "split_digits": True, "normalization_rule_name": "identity"}
    return {
        "published": sentencepiece_model(folder / "p.model", **fallback, user_defined_symbols=["\\n", "\\t"]),
        "defaults": sentencepiece_model(folder / "d.model"),
        "bpe": sentencepiece_model(folder / "b.model", **fallback, model_type="bpe", remove_extra_whitespaces=False),
        "word": sentencepiece_model(folder / "w.model", model_type="word", vocab_size=60),
    }


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's kind, with a control token."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(documents(), trainer)
    path = tmp_path_factory.mktemp("gpt") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(documents(), Settings(vocab_size=SIZE), folder / "tokenizer", seed=0)
    return folder


@pytest.mark.parametrize("name", ["published", "defaults", "bpe", "word"])
def test_a_model_is_read_as_sentencepiece_reads_it(models, name):
    opened = open_tokenizer(models[name])
    peer = sentencepiece.SentencePieceProcessor(model_file=str(models[name]))
    ids = opened.encode_batch(TEXTS)
    assert [found.tolist() for found in ids] == peer.encode(TEXTS)
    assert {found.dtype for found in ids} == {np.dtype(np.uint16)}
    assert [opened.decode(found) for found in ids] == [peer.decode(found.tolist()) for found in ids]
    assert (opened.vocab_size, opened.unk_id) == (peer.get_piece_size(), 0)
    assert opened.name == models[name].stem
    assert opened.pieces[1:3] == [b"", b""]
    assert [opened.pieces[i] for i in opened.byte_ids] == (
        [bytes([b]) for b in range(256)] if name in "published bpe" else []
    )


def test_byte_level_pieces_are_bytes(byte_level):
    opened = open_tokenizer(byte_level.parent)
    assert isinstance(opened, JsonTokenizer)
    for text, ids in zip(TEXTS, opened.encode_batch(TEXTS), strict=True):
        assert b"".join(opened.pieces[i] for i in ids) == text.encode()
        assert opened.decode(ids) == text
    assert (opened.vocab_size, opened.unk_id, opened.eos_id, opened.bos_id) == (SIZE, None, 0, None)
    assert opened.pieces[0] == b""
    assert 0 not in opened.encode("a <|endoftext|> b"), "a control token that a text spells stays text"
    assert {opened.pieces[i] for i in opened.byte_ids} == {bytes([b]) for b in range(128, 256)}


def test_ours_by_run_by_folder_and_by_file(ours):
    exact = Tokenizer.load(ours / "tokenizer")
    for where in (ours, str(ours / "tokenizer")):
        opened = open_tokenizer(where)
        assert isinstance(opened, OurTokenizer)
        assert opened.name == ours.name
        assert opened.byte_ids.tolist() == list(range(16, 272))
    by_json = open_tokenizer(ours / "tokenizer" / "tokenizer.json")
    for text in TEXTS:
        assert opened.encode(text) == by_json.encode(text) == exact.encode(text)
        assert by_json.decode(by_json.encode(text)) == text
    assert by_json.pieces == exact.pieces
    assert (by_json.bos_id, by_json.eos_id, by_json.unk_id) == (1, 2, 0)


def test_a_run_takes_one_of_ours(ours, tmp_path):
    figures = adopt(documents(), Settings(path=str(ours), vocab_size=SIZE), tmp_path, add_bos=False)
    assert (tmp_path / "tokenizer.model").read_bytes() == (ours / "tokenizer" / "tokenizer.model").read_bytes()
    assert json.loads((tmp_path / "tokenizer.json").read_text())["post_processor"] is None
    assert isinstance(open_tokenizer(tmp_path), OurTokenizer)
    assert figures["en"]["bytes_per_token"] > 1


@pytest.mark.parametrize("name", ["published", "defaults", "bpe"])
def test_a_run_takes_a_model_and_converts_it(models, tmp_path, name):
    figures = adopt(documents(), Settings(path=str(models[name]), vocab_size=SIZE), tmp_path)
    assert figures["converted_texts_compared"] == 1000
    # The defaults (NFKC, unknown characters without bytes) are not exact, and the figures say how often.
    assert figures["converted_texts_that_differ"] <= (5 if name == "defaults" else 0)
    taken = Tokenizer.load(tmp_path)
    assert (taken.bos_id, taken.eos_id, taken.vocab_size) == (1, 2, SIZE)
    peer = sentencepiece.SentencePieceProcessor(model_file=str(models[name]))
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ["The apple fell", " two  spaces ", "小林回家了\\n。", "x\ny"]:
        assert taken.encode(text) == peer.encode(text) == plain.encode(text, add_special_tokens=False).ids, text
        if 0 not in peer.encode(text):  # SentencePiece shows an unknown character as " ⁇ "
            assert plain.decode(peer.encode(text)) == peer.decode(peer.encode(text))
    assert plain.encode("a").ids[0] == 1


def test_a_run_takes_a_tokenizer_json(byte_level, tmp_path):
    settings = Settings(path=str(byte_level), vocab_size=SIZE)
    with pytest.raises(UserError, match=r"no beginning-of-text token \(bos\); set tokens\.bos: false"):
        adopt(documents(), settings, tmp_path)
    adopt(documents(), settings, tmp_path, add_bos=False)
    assert (tmp_path / "tokenizer.json").read_bytes() == byte_level.read_bytes()
    taken = Tokenizer.load(tmp_path)
    assert taken.eos_id == 0
    assert int(taken.piece_bytes[taken.encode(TEXTS[0])].sum()) == len(TEXTS[0].encode())
    stream = taken.stream()
    assert "".join(stream.push(i) for i in taken.encode("🤗 é")) + stream.finish() == "🤗 é"


def test_what_a_run_cannot_use(models, byte_level, tmp_path):
    def refusal(path: Path, size: int = SIZE) -> str:
        with pytest.raises(UserError) as caught:
            adopt(documents(), Settings(path=str(path), vocab_size=size), tmp_path / "out", add_bos=False)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "of type word; a run can use unigram and bpe" in refusal(models["word"], 60)
    assert f"32,000, but {models['bpe']} has 450; set it to that" in refusal(models["bpe"], 32_000)
    endless = sentencepiece_model(tmp_path / "endless.model", eos_id=-1)
    assert "no end-of-text token (eos)" in refusal(endless)
    content = json.loads(byte_level.read_text())
    content["model"] = {"type": "WordLevel", "vocab": {f"w{n}": n for n in range(70_000)}, "unk_token": "w0"}
    (tmp_path / "large.json").write_text(json.dumps(content | {"added_tokens": []}))
    assert "70,000 pieces; token ids are stored in 16 bits, at most 65,536 fit" in refusal(tmp_path / "large.json")


def test_files_that_are_no_tokenizer(models, byte_level, tmp_path):
    def message(where: object) -> str:
        with pytest.raises(UserError) as caught:
            open_tokenizer(where)  # type: ignore
        return str(caught.value)

    model = models["bpe"].read_bytes()
    for number, damaged in enumerate(
        [model[:-7], model[:3000], b"", b"word2vec 300\n", pickle.dumps({"a": 1}), bytes(99)]
    ):
        path = tmp_path / f"{number}.model"
        path.write_bytes(damaged)
        assert message(path) == f"{path}: truncated, or not a SentencePiece model"
    for damaged in (byte_level.read_bytes()[:-9], b"", b"[]", b'{"a": 1}'):
        (tmp_path / "x.json").write_bytes(damaged)
        assert "x.json: truncated, or not a tokenizer.json" in message(tmp_path / "x.json")
    assert "6 .model files: name one of them" in message(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "has neither a tokenizer.json nor a .model file" in message(tmp_path / "empty")
    assert "no such file or folder" in message("/nowhere/at/all")
    assert "no such file or folder" in message("nothing.model")
    with pytest.raises(UserError, match=r"U\+DFFF"):
        open_tokenizer(models["bpe"]).encode("a\udfff")
    with pytest.raises(UserError, match=r"U\+D800"):
        open_tokenizer(byte_level).encode("\ud800")


def test_names_on_the_hub(monkeypatch, byte_level, models, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def download(name, *, revision, allow_patterns):
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(byte_level.parent)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert open_tokenizer("openai/gpt2@abc").vocab_size == SIZE
    assert (asked["name"], asked["revision"]) == ("openai/gpt2", "abc")
    assert {"tokenizer.json", "*.model"} <= set(asked["patterns"])

    def offline(name, **_):
        raise OSError("no route\nto host")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(
        MachineError, match=r"^gpt2: no such .* here, and the hub could not be asked for it \(no route\)$"
    ):
        open_tokenizer("gpt2")

    def unreachable(name, **_):
        raise RuntimeError("a long story") from ConnectionError("refused")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(MachineError, match=r"^gpt2: no such .* here, and the hub cannot be reached$"):
        open_tokenizer("gpt2")

    def unknown(name, **_):
        raise hub.errors.HFValidationError("no such name")

    monkeypatch.setattr(hub, "snapshot_download", unknown)
    with pytest.raises(UserError, match="a name on the hub is OWNER/NAME"):
        open_tokenizer("nobody/nothing")


def test_a_cached_snapshot_is_named_as_on_the_hub(models, tmp_path):
    folder = tmp_path / "models--some--body" / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(models["published"].read_bytes())
    opened = open_tokenizer(folder)
    assert isinstance(opened, SentencePieceTokenizer)
    assert opened.name == "some/body"
