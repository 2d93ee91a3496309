"""Conversations as prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
from tiny import make_model

from xmodel.inference.sampling import SettingError
from xmodel.inference.subjects import Subject
from xmodel.inference.templates import _controls, _encode, chat_prompt, chat_stops, end_ids

TURNS = [
    {"role": "user", "content": "Mira went </s> to"},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": "why"},
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "[{{ m.role }}]{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def base(tokenizer) -> Subject:
    return Subject(make_model(tokenizer.vocab_size), tokenizer, True, "tiny", None, {})


@pytest.fixture
def chat(base: Subject, tmp_path: Path) -> Subject:
    pytest.importorskip("jinja2")
    config = {"chat_template": TEMPLATE, "bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    return base._replace(folder=tmp_path)


def test_a_base_model_gets_turns_in_the_language_of_the_last(base: Subject) -> None:
    ids = chat_prompt(base, TURNS)
    assert ids[0] == base.tokenizer.bos_id
    text = base.tokenizer.decode(ids)
    assert text == "User: Mira went </s> to\nAssistant: Paris\nUser: why\nAssistant:"
    chinese = chat_prompt(
        base, [{"role": "system", "content": "好好回答。"}, {"role": "user", "content": "小林去哪？"}]
    )
    assert base.tokenizer.decode(chinese) == "好好回答。\n用户：小林去哪？\n助手："
    mixed = chat_prompt(base, [TURNS[0], TURNS[1], {"role": "user", "content": "为什么？"}])
    assert base.tokenizer.decode(mixed).endswith("助手：Paris\n用户：为什么？\n助手：")
    assert "\nUser:" in chat_stops(base)
    assert "\n用户：" in chat_stops(base)
    assert end_ids(base) == {2}


def test_a_chat_model_gets_its_own_template_and_text_stays_text(chat: Subject) -> None:
    ids = chat_prompt(chat, TURNS)
    assert ids[0] == 1
    assert ids.count(2) == 3  # of the template; the user's </s> is spelt in pieces
    assert chat.tokenizer.decode(ids) == "[user]Mira went </s> to[assistant]Paris[user]why[assistant]"
    assert chat_stops(chat) == ()
    assert end_ids(chat) == {2, 5}
    with pytest.raises(SettingError, match="no system here"):
        chat_prompt(chat, [{"role": "system", "content": "x"}])


def test_a_template_may_be_one_of_several_or_a_file(chat: Subject) -> None:
    assert chat.folder is not None
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ messages[0].content }}!"}]
    (chat.folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert chat.tokenizer.decode(chat_prompt(chat, [{"role": "user", "content": "hi"}])) == "hi!"
    (chat.folder / "chat_template.jinja").write_text("{{ messages[0].content }}?")
    assert chat.tokenizer.decode(chat_prompt(chat, [{"role": "user", "content": "hi"}])) == "hi?"


def test_templates_are_rendered_as_transformers_renders_them(chat: Subject) -> None:
    render = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    source = (
        "{% for m in messages %}\n    {% if m.role == 'user' %}\n[{{ m.content }}]\n    {% endif %}\n{% endfor %}\n."
    )
    assert chat.folder is not None
    (chat.folder / "chat_template.jinja").write_text(source)
    ours = chat.tokenizer.decode(chat_prompt(chat, TURNS))
    assert ours == render([TURNS], chat_template=source)[0][0]


@pytest.mark.parametrize("source", ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}"])
def test_a_template_is_a_stranger_s_program(chat: Subject, source: str) -> None:
    """It reaches nothing of Python's behind the values that it is given, and does not change them."""
    assert chat.folder is not None
    (chat.folder / "chat_template.jinja").write_text(source)
    with pytest.raises(SettingError, match="refuses them"):
        chat_prompt(chat, [{"role": "user", "content": "hi"}])


def test_of_control_tokens_the_longest_is_meant() -> None:
    class Letters:
        texts: ClassVar = {0: "<s>", 1: "<s><s>", 2: "x"}
        pieces: ClassVar = [b"", b"", b"x"]

        def encode(self, text: str) -> list[int]:
            return [100 + ord(character) for character in text]

    controls = _controls(Letters())
    assert _encode(Letters(), "x<s><s>x<s>", controls, "\ue000") == [100 + ord("x"), 1, 100 + ord("x"), 0]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ([{"role": "robot", "content": "x"}], r"messages\[0\]: role is 'robot'"),
        ([TURNS[0], {"role": "user"}], r"messages\[1\]: content is NoneType"),
    ],
)
def test_mistakes(base: Subject, messages, message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        chat_prompt(base, messages)
    assert caught.value.field == "messages"
