"""The conversation from its first line to its last: what is read, and what becomes of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from xmodel.chat.commands import COMMANDS, act
from xmodel.chat.keyboard import Editor, Turn, plain_line, read_turn, state_file
from xmodel.chat.screen import Screen
from xmodel.chat.session import Partner, Session
from xmodel.chat.words import Words

if TYPE_CHECKING:
    from xmodel.inference.sampling import Sampling


def talk(partner: Partner, settings: Sampling, say: Words, system: str = "") -> None:
    """Talk until the person leaves or the input ends: on a terminal line by line, else each line of a pipe a turn.

    Args:
        settings: of the answers, checked; commands change them for the rest of the conversation.
        say: the interface in a language.
        system: what the model is told before all turns.
    """
    for stream in (sys.stdin, sys.stdout):  # what a locale cannot write becomes a question mark, not the end
        stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    screen = Screen(terminal)
    session = Session(partner, settings, screen, say, system)
    line = plain_line
    if terminal:
        editor = Editor(state_file(), [f"/{name}" for name in COMMANDS])
        line = editor.line
        for text in (*partner.introduction(say), say("hint")):
            screen.note(text)
        if editor.trouble:
            screen.note(say("no_history", reason=editor.trouble))
    converse(session, lambda: read_turn(line))


def converse(session: Session, read: Callable[[], Turn]) -> None:
    """Take turns until the person leaves; `read` gives the next one, and raises EOFError at the end of the input."""
    impatient = False  # Ctrl-C was the last thing that came
    while True:
        try:
            turn = read()
            impatient = False
            if turn.text and (turn.block or not is_command(turn.text)):
                session.ask(turn.text)
            elif turn.text and not act(session, turn.text):
                return
        except EOFError:
            if session.screen.terminal:
                session.screen.note("")
            return
        except KeyboardInterrupt:  # at the prompt, or hardly before it
            if not session.screen.terminal:
                raise
            session.screen.note("")
            if impatient:
                return
            impatient = True
            session.screen.note(session.say("again"))


def is_command(text: str) -> bool:
    """Whether a turn is meant for the program: /word, and not a path such as /usr/bin."""
    word = text.split(maxsplit=1)[0]
    return word.startswith("/") and word[1:].replace("-", "").isalnum()
