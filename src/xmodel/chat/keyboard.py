"""Where turns come from: lines with editing and history on a terminal, plain lines from a pipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from xmodel.files import atomic_write

PROMPT, MORE = "> ", ". "
BLOCK = '"""'
KEPT = 1000  # lines of history


class Turn(NamedTuple):
    """What a person entered; a block is always text, never a command."""

    text: str
    block: bool


def read_turn(line: Callable[[str], str]) -> Turn:
    """One turn: a line, more where a line ends in a backslash, or a block between triple quotes.

    Args:
        line: gives the next line behind a prompt; raises EOFError where there is none.

    Raises:
        EOFError: the input has ended. Within a turn its end ends the turn.
    """
    first = line(PROMPT)
    if first.lstrip().startswith(BLOCK):
        return Turn("\n".join(_block(first.lstrip().removeprefix(BLOCK), line)).strip("\n"), True)
    lines = [first]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(line(MORE))
        except EOFError:
            break
    return Turn("\n".join(lines).strip(), False)


def _block(first: str, line: Callable[[str], str]) -> Iterator[str]:
    current = first
    while not current.rstrip().endswith(BLOCK):
        yield current
        try:
            current = line(MORE)
        except EOFError:
            return
    yield current.rstrip().removesuffix(BLOCK)


def plain_line(prompt: str) -> str:
    """The next line of standard input; a pipe gets no prompt."""
    if not (text := sys.stdin.readline()):
        raise EOFError
    return text.removesuffix("\n").removesuffix("\r")


def state_file() -> Path | None:
    """Where what was typed is kept: in the user's state directory (XDG); None for a user without a home."""
    home = Path(os.environ.get("XDG_STATE_HOME") or "")
    if not home.is_absolute():
        try:
            home = Path.home() / ".local" / "state"
        except RuntimeError:
            return None
    return home / "xmodel" / "chat_history"


class Editor:
    """Lines from a terminal. Where Python has readline: editing, history across sessions, commands by Tab.

    The history is a file of one JSON string a line, for its owner's eyes only. A line is added as soon as it is typed,
    so a killed session loses nothing, and two at a time do not overwrite each other.

    Attributes:
        trouble: why the history is not kept; None where it is.
    """

    def __init__(self, path: Path | None, commands: list[str]) -> None:
        self.path, self.trouble = path, None
        try:
            import readline
        except ImportError:
            self._readline = None
            return
        self._readline = readline
        readline.set_auto_history(False)
        readline.set_completer_delims(" ")
        readline.set_completer(lambda text, state: [*(name for name in commands if name.startswith(text)), None][state])
        readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
        readline.clear_history()
        try:
            self._load()
        except FileNotFoundError:
            pass
        except OSError as error:
            self.trouble = str(error)

    def line(self, prompt: str) -> str:
        """Read one line behind a prompt; EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C."""
        text = input(prompt)
        if self._readline and text.strip():
            size = self._readline.get_current_history_length()
            if size == 0 or self._readline.get_history_item(size) != text:
                self._readline.add_history(text)
                self._append(text)
        return text

    def _load(self) -> None:
        if self.path is None:
            return
        lines, kept = self.path.read_text(encoding="utf-8", errors="replace").splitlines(), []
        for text in lines[-KEPT:]:
            try:
                entry = json.loads(text)
            except json.JSONDecodeError:  # cut off by a kill
                continue
            if isinstance(entry, str):
                kept.append(entry)
                self._readline.add_history(entry)  # pyright: ignore[reportOptionalMemberAccess]
        if len(lines) > 2 * KEPT:
            with atomic_write(self.path, "w") as stream:
                os.fchmod(stream.fileno(), 0o600)
                stream.writelines(json.dumps(entry) + "\n" for entry in kept)

    def _append(self, text: str) -> None:
        if self.path is None or self.trouble:
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.fchmod(handle, 0o600)
                os.write(handle, (json.dumps(text) + "\n").encode())
            finally:
                os.close(handle)
        except OSError as error:
            self.trouble = str(error)
