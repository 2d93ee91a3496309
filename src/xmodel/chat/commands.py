"""What can be typed behind a slash: one table."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from xmodel.chat.session import Message, Refused, Session
from xmodel.errors import UserError
from xmodel.files import atomic_write

NONE = ("none", "无")  # behind /seed and /system: takes it away


class Command(NamedTuple):
    """One command; `run` gets what stands behind its name. What it does is said in words.py."""

    name: str
    argument: str  # as the list of commands shows it
    run: Callable[[Session, str], None]


class Setting(NamedTuple):
    """A setting of the answers that a command changes; without a value the command shows it."""

    name: str
    field: str  # of Sampling
    kind: type[int] | type[float]
    example: str
    off: float | None = None  # the value at which it does nothing


SETTINGS = (
    Setting("temperature", "temperature", float, "0.8"),
    Setting("top-p", "top_p", float, "0.95", off=1),
    Setting("top-k", "top_k", int, "40", off=0),
    Setting("min-p", "min_p", float, "0.05", off=0),
    Setting("repetition", "repetition_penalty", float, "1.1", off=1),
    Setting("max", "max_new_tokens", int, "256"),
    Setting("seed", "seed", int, "7"),
)


def act(session: Session, text: str) -> bool:
    """Carry out a command as it was typed; False when it was to leave. Mistakes end in a note and change nothing."""
    name, _, argument = text[1:].partition(" ")
    name, _, rest = name.partition("\n")
    argument = (rest + argument).strip()
    command = COMMANDS.get(name.lower())
    try:
        if command is None:
            raise Refused(session.say("unknown", name=name, near=_near(session, name)))
        if argument and not command.argument:
            raise Refused(session.say("no_argument", name=command.name))
        command.run(session, argument)
    except Leave:
        return False
    except (Refused, UserError) as error:
        session.screen.note(str(error))
    except OSError as error:
        session.screen.note(f"{error.filename}: {error.strerror}")
    return True


def _near(session: Session, name: str) -> str:
    begin = [known for known in COMMANDS if name and known.startswith(name.lower())]
    near = begin or difflib.get_close_matches(name.lower(), COMMANDS, n=3)
    return session.say("near", names=", ".join("/" + known for known in near)) if near else ""


class Leave(Exception):
    """The person wants to leave."""


def _help(session: Session, _: str) -> None:
    rows = [(f"/{c.name} {c.argument}".rstrip(), session.say(f"/{c.name}")) for c in COMMANDS.values()]
    session.screen.show([session.say("command"), session.say("meaning")], rows)
    session.screen.note(session.say("multi_line"))


def _reset(session: Session, _: str) -> None:
    session.replace_messages(session.system, [])
    session.screen.note(session.say("forgotten"))


def _retry(session: Session, _: str) -> None:
    if not session.messages:
        raise Refused(session.say("no_turn"))
    if session.settings.temperature == 0:
        session.screen.note(session.say("same"))
    old = session.messages.pop() if session.messages[-1]["role"] == "assistant" else None
    try:
        session.answer()
    finally:
        if old and session.messages[-1]["role"] == "user":
            session.messages.append(old)


def _undo(session: Session, _: str) -> None:
    if not session.take_back():
        raise Refused(session.say("no_turn"))
    session.screen.note(session.say("undone"))


def _system(session: Session, argument: str) -> None:
    if argument:
        session.system = "" if argument in NONE else argument
        session.first = 0
    session.screen.note(session.say("set", name="/system", value=session.system or session.say("none")))


def _change(setting: Setting) -> Callable[[Session, str], None]:
    def run(session: Session, argument: str) -> None:
        if argument:
            settings = replace(session.settings, **{setting.field: _number(session, setting, argument)})
            settings.check()
            session.settings = settings
            if setting.field == "seed":
                session.drawn = 0
        session.screen.note(session.say("set", name=f"/{setting.name}", value=_value(session, setting)))

    return run


def _number(session: Session, setting: Setting, text: str) -> int | float | None:
    if setting.field == "seed" and text in NONE:
        return None
    try:
        number = setting.kind(text)
        if math.isfinite(number):
            return number
    except ValueError:
        pass
    raise Refused(session.say("number", name=setting.name, value=text, example=setting.example))


def _value(session: Session, setting: Setting) -> str:
    value = getattr(session.settings, setting.field)
    if value is None:
        return session.say("random")
    if value == setting.off:
        return f"{value:g} ({session.say('off')})"
    if setting.field == "temperature" and value == 0:
        return f"0 ({session.say('greedy')})"
    return f"{value:g}" if setting.kind is float else str(value)


def _settings(session: Session, _: str) -> None:
    partner, say = session.partner, session.say
    used = len(partner.prompt(session.seen())) if session.messages else 0
    rows = [(f"/{setting.name}", _value(session, setting)) for setting in SETTINGS]
    rows += [
        ("/system", session.system or say("none")),
        (say("model"), partner.name),
        (say("turns"), str(session.turns)),
        (say("context"), say("context_used", used=used, context=partner.context)),
    ]
    session.screen.show([say("setting"), say("value")], [(name, value.replace("\n", " ")) for name, value in rows])


def _tokens(session: Session, _: str) -> None:
    if session.last is None:
        raise Refused(session.say("no_tokens"))
    tokens, seconds = session.last
    rows = []
    for token in tokens:
        rivals = [f"{visible(session.partner.piece(other))} {_percent(logprob)}" for other, logprob in token.top]
        rows.append((visible(token.text), _percent(token.logprob), "  ".join(rivals)))
    session.screen.show([session.say(key) for key in ("token", "probability", "rivals")], rows)
    rate = f"{len(tokens) / max(seconds, 1e-9):.1f}"
    session.screen.note(session.say("speed", count=len(tokens), seconds=f"{seconds:.1f}", rate=rate))


def _percent(logprob: float | None) -> str:
    return "" if logprob is None else f"{100 * math.exp(logprob):.1f}%"


def visible(piece: bytes) -> str:
    """A token's bytes in one line: spaces and line ends as signs, half characters as hexadecimal digits."""
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return "".join(f"<{byte:02X}>" for byte in piece)
    return text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥") or "∅"


def _save(session: Session, argument: str) -> None:
    path = _path(session, "save", argument)
    if path.exists() and path.resolve() not in session.own_files:
        raise Refused(session.say("exists", path=argument))
    system = [{"role": "system", "content": session.system}] if session.system else []
    messages = system + session.messages
    with atomic_write(path, "w") as stream:
        stream.writelines(json.dumps(message, ensure_ascii=False) + "\n" for message in messages)
    session.own_files.add(path.resolve())
    session.screen.note(session.say("saved", count=len(messages), path=argument))


def _load(session: Session, argument: str) -> None:
    path = _path(session, "load", argument)
    messages = read_messages(path)
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
    session.replace_messages(system, messages[1:] if system else messages)
    session.own_files.add(path.resolve())
    session.screen.note(session.say("loaded", count=len(messages), path=argument))
    if session.messages and session.messages[-1]["role"] == "user":
        session.answer()


def _path(session: Session, name: str, argument: str) -> Path:
    if not argument:
        raise Refused(session.say("file_needed", name=name))
    return Path(os.path.expanduser(argument))  # noqa: PTH111 - Path.expanduser raises for an unknown user


def read_messages(path: Path) -> list[Message]:
    """The messages of a file of JSON lines: {"role": ..., "content": ...}.

    Raises:
        UserError: a line is no message, or the turns are not in turn.
    """
    messages: list[Message] = []
    expected = {"system", "user"}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            role, content = row["role"], row["content"]
            (role + content).encode()  # texts, and such as UTF-8 can represent
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f'{path}:{number}: no message; a line is {{"role": "user", "content": "text"}}') from None
        if role not in expected:
            raise UserError(f"{path}:{number}: role {role!r}; here it has to be {' or '.join(sorted(expected))}")
        messages.append({"role": role, "content": content})
        expected = {"assistant"} if role == "user" else {"user"}
    return messages


def _quit(session: Session, _: str) -> None:
    raise Leave


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("help", "", _help),
        Command("reset", "", _reset),
        Command("retry", "", _retry),
        Command("undo", "", _undo),
        Command("system", "TEXT", _system),
        *(Command(setting.name, "X" if setting.kind is float else "N", _change(setting)) for setting in SETTINGS),
        Command("settings", "", _settings),
        Command("tokens", "", _tokens),
        Command("save", "FILE", _save),
        Command("load", "FILE", _load),
        Command("quit", "", _quit),
    )
}
