"""What turns a conversation into a prompt: a chat model's own template, or a plain frame of turns for a base model.

A chat model's folder ships its template (`chat_template` in tokenizer_config.json, or a file chat_template.jinja); it
is somebody else's program, so it runs in jinja2's sandbox. A base model has none: its prompt is the turns, each with
the name of its speaker, in the language of the last message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from xmodel.errors import UserError
from xmodel.files import read_json
from xmodel.inference.sampling import SettingError
from xmodel.inference.subjects import Subject
from xmodel.inference.text import encode_prompt

ROLES = ("system", "user", "assistant")
NAMES = {"en": {"user": "User: ", "assistant": "Assistant:"}, "zh": {"user": "用户：", "assistant": "助手："}}
HAN = re.compile("[\u3400-\u9fff]")


def chat_prompt(subject: Subject, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The token ids of a conversation, up to where the assistant's next turn begins.

    Args:
        messages: each with "role" (system, user or assistant) and "content" (text).

    Raises:
        SettingError: of the field "messages": none, an unknown role, no text, or what the model's template refuses.
        UserError: the template needs jinja2, which is not installed.
    """
    _check(messages)
    source = _template(subject)
    if source is None:
        return encode_prompt(subject.tokenizer, plain_frame(messages), subject.bos)
    controls = _controls(subject.tokenizer)
    mark = next(chr(code) for code in range(0xE000, 0xF900) if not any(chr(code) in text for text in _texts(messages)))
    safe = [dict(message, content=_break(message["content"], controls, mark)) for message in messages]
    return _encode(subject.tokenizer, _render(subject, source, safe), controls, mark)


def chat_stops(subject: Subject) -> tuple[str, ...]:
    """Texts that end the assistant's turn: the next turn of the plain frame; none where the model has a template.

    A chat model ends its turn with a token of its own, see `end_ids`.
    """
    if _template(subject) is not None:
        return ()
    return tuple("\n" + names[role].strip() for names in NAMES.values() for role in ("user", "assistant"))


def end_ids(subject: Subject) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's end of text, and those that generation_config.json names."""
    found = {subject.tokenizer.eos_id} - {None}
    folder = subject.folder
    for name in ("generation_config.json", "config.json"):
        if folder is not None and (folder / name).is_file():
            named = read_json(folder / name).get("eos_token_id")
            found |= set(named if isinstance(named, list) else [named]) - {None}
    return frozenset(found)


def plain_frame(messages: Sequence[Mapping[str, Any]]) -> str:
    """A base model's prompt: `User: …` and `Assistant: …` on lines of their own, in the last message's language."""
    last = str(messages[-1]["content"])
    names = NAMES["zh" if HAN.search(last) else "en"]
    turns = [
        (names.get(message["role"], "") + (" " if names is NAMES["en"] and message["role"] == "assistant" else ""))
        + message["content"].strip()
        for message in messages
    ]
    return "\n".join([*turns, names["assistant"]])


def _check(messages: Sequence[Mapping[str, Any]]) -> None:
    if not messages:
        raise SettingError("messages", "messages is empty; a conversation has one at least")
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise SettingError("messages", f"{where}: role is {role!r}; it has to be {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise SettingError("messages", f"{where}: content is {type(content).__name__}; it has to be text")


def _template(subject: Subject) -> str | None:
    """The source of the folder's chat template; None for a base model."""
    folder = subject.folder
    if folder is None:
        return None
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    config = _tokenizer_config(folder)
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in found}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def _render(subject: Subject, source: str, messages: Sequence[Mapping[str, Any]]) -> str:
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise UserError("the chat template of this model needs `pip install xmodel[serve]` (jinja2)") from None

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: date.today().strftime(form)
    try:
        return environment.from_string(source).render(
            messages=[dict(message) for message in messages], add_generation_prompt=True, **_special(subject)
        )
    except TemplateError as error:
        raise SettingError("messages", f"messages: the model's chat template refuses them ({error})") from None


def _texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    return [message["content"] for message in messages]


def _controls(tokenizer: Any) -> dict[str, int]:
    """The control tokens by their spelling, the longest first."""
    found = {text: number for number, text in tokenizer.texts.items() if text and not tokenizer.pieces[number]}
    return {text: found[text] for text in sorted(found, key=len, reverse=True)}


def _break(text: str, controls: Mapping[str, int], mark: str) -> str:
    """A user's text with a mark inside whatever spells a control token, so that it stays text."""
    for control in controls:
        text = text.replace(control, control[:1] + mark + control[1:])
    return text


def _encode(tokenizer: Any, text: str, controls: Mapping[str, int], mark: str) -> list[int]:
    """Ids of a rendered conversation: what spells a control token is that token, except where there is a mark in it."""
    ids: list[int] = []
    by_itself = any(list(tokenizer.encode(control)) == [number] for control, number in controls.items())
    pattern = "|".join(map(re.escape, controls))
    for part in text.split(mark):  # apart, no two parts spell a control token
        if by_itself or not controls:
            ids += tokenizer.encode(part) if part else []
            continue
        for piece in re.split(f"({pattern})", part):
            if piece:
                ids += [controls[piece]] if piece in controls else tokenizer.encode(piece)
    return ids


def _special(subject: Subject) -> dict[str, str]:
    """The texts of control tokens, as templates name them: bos_token, eos_token ..."""
    found = {}
    for key, value in _tokenizer_config(subject.folder or Path()).items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            found[key] = text
    return found
