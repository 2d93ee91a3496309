"""`xmodel chat` with a real model behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from command import xmodel
from terminal import Terminal
from tiny import make_model, train_tokenizer

from xmodel.chat.partner import ModelPartner
from xmodel.chat.words import Words
from xmodel.cli import cli
from xmodel.errors import UserError
from xmodel.inference.engine import Engine
from xmodel.inference.generate import generate_text
from xmodel.inference.subjects import open_subject
from xmodel.inference.templates import chat_prompt
from xmodel.inference.text import encode_prompt
from xmodel.model.checkpoint_io import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model of the smallest kind."""
    folder = tmp_path_factory.mktemp("export") / "hf"
    folder.mkdir()
    train_tokenizer(folder, bos=False)
    save_model(make_model(420, seed=3), folder)
    return folder


def chat(folder: object, *options: object, turns: str) -> Result:
    arguments = ["chat", str(folder), *map(str, options)]
    result = CliRunner().invoke(cli, arguments, input=turns, catch_exceptions=False, standalone_mode=False)
    assert result.exception is None
    return result


def test_raw_is_plain_continuation(folder: Path) -> None:
    """Greedily, what the model says is what `generate_text` says, turn after turn."""
    subject = open_subject(str(folder))

    def continued(text: str) -> str:
        pieces = generate_text(subject.model, subject.tokenizer, text, bos=subject.bos, max_new_tokens=6)
        return "".join(pieces)

    first = continued("Mira went")
    second = continued("Mira went" + first + "小林")
    result = chat(folder, "--raw", "--temperature", 0, "--max-new-tokens", 6, turns="Mira went\n小林\n")
    assert result.stdout.replace("\n", "") == (first + second).replace("\n", "")


def test_a_seed_makes_a_conversation_repeatable(folder: Path) -> None:
    options = ("--temperature", 1, "--max-new-tokens", 8, "--language", "en")
    turns = "Mira\n/retry\n小林\n/settings\n"
    first, again, other = (chat(folder, *options, "--seed", seed, turns=turns).stdout for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert len(set(first.splitlines()[:2])) == 2  # a second try is another answer
    assert "/seed         7\n" in first


def test_the_frame_is_said_and_used(folder: Path, tmp_path: Path) -> None:
    subject = open_subject(str(folder))
    messages = [{"role": "system", "content": "brief"}, {"role": "user", "content": "你好"}]
    with Engine(subject, rows=1) as engine:
        framed, raw = ModelPartner(subject, engine), ModelPartner(subject, engine, raw=True)
        assert framed.prompt(messages) == chat_prompt(subject, messages)
        assert raw.prompt(messages) == encode_prompt(subject.tokenizer, "brief你好", subject.bos)
        assert raw.stops() == ()
        for language, words in (("en", "A base model: it continues text."), ("zh", "基座模型，只会续写文本")):
            title, frame = framed.introduction(Words(language))
            assert "float32" in title
            assert words in frame
            assert "用户：" in frame
            assert "User:" in frame
            assert all(stop.strip() in frame for stop in framed.stops())
            assert "--raw" in raw.introduction(Words(language))[1]
        assert framed.piece(10**6) == b""
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}>"}))
    try:
        templated = ModelPartner(open_subject(str(folder)), engine)
        assert templated.stops() == ()
        assert "template" in templated.introduction(Words("en"))[1]
    finally:
        (folder / "tokenizer_config.json").unlink()


def test_int8_weights(folder: Path) -> None:
    """A tiny random model is not changed much by them: the same words come first."""
    exact, small = (
        chat(folder, "--raw", "--weights", w, "--temperature", 0, "--max-new-tokens", 4, turns="Mira\n")
        for w in ("auto", "int8")
    )
    assert exact.stdout[:2] == small.stdout[:2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", -1], "temperature is -1.0; it has to be"),
        (["--top-p", 0], "top_p is 0"),
        (["--max-new-tokens", 0], "max_new_tokens is 0; it has to be"),
        (["--step", 3], "has no checkpoint of a step"),
        (["--device", "gpu"], "device 'gpu'"),
    ],
)
def test_wrong_options(folder: Path, options: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        chat(folder, *options, turns="x\n")


def test_on_a_terminal(folder: Path, tmp_path: Path) -> None:
    arguments = ("-m", "xmodel", "chat", folder, "--temperature", 0, "--max-new-tokens", 5, "--raw")
    with Terminal(*arguments, columns=60, LC_ALL="C.UTF-8", LANG="zh_CN", XDG_STATE_HOME=str(tmp_path)) as terminal:
        started = terminal.wait("\n> ")
        assert f"opening {folder}"[:59] in started
        assert "float32 on cpu" in started.replace("\n", " ")
        terminal.type("Mira went\r")
        terminal.wait("[cut off after 5 tokens; /max N allows more]\n> ")
        terminal.type("/tokens\r")
        table = terminal.wait("tokens/s\n> ").splitlines()
        assert len([line for line in table if "%" in line]) >= 5
        terminal.type("\x04")
        assert terminal.leave() == 0


def test_the_command_as_a_process(folder: Path) -> None:
    result = xmodel("chat", folder / "nothing", LC_ALL="zh_CN.UTF-8")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "no such folder" in result.stderr
