"""Conversations as prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import make_model

from xmodel.inference.sampling import SettingError
from xmodel.inference.subjects import Subject
from xmodel.inference.templates import chat_prompt, chat_stops, end_ids

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
