"""Where a conversation is shown: a terminal, or plain streams of a pipe."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from xmodel.chat.wrap import NARROWEST, Wrapper, shown, wrap
from xmodel.console import clip, table, width

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class Screen:
    """Answers and notes.

    On a terminal everything is wrapped and goes to standard output; notes are dim, unless NO_COLOR is set. Elsewhere
    answers and what commands print go to standard output as they are, and notes to standard error.

    Attributes:
        terminal: whether a person sits there.
    """

    def __init__(self, terminal: bool, out: IO[str] | None = None, err: IO[str] | None = None) -> None:
        self.out, self.err = out or sys.stdout, err or sys.stderr
        self.terminal = terminal
        self.colours = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._wrapper = Wrapper(self.columns)
        self._safe = terminal or self.out.isatty()
        self._at_start = True

    def columns(self) -> int:
        """Columns of the terminal, now."""
        return shutil.get_terminal_size().columns

    def stream(self, text: str) -> None:
        """Show what has come of an answer."""
        if not text:
            return
        piece = self._wrapper.push(text) if self.terminal else shown(text) if self._safe else text
        self._write(piece)

    def end(self) -> None:
        """End an answer: the cursor stands at the beginning of a line."""
        self._write(self._wrapper.finish())
        if not self._at_start:
            self._write("\n")
        self._wrapper.column, self._at_start = 0, True

    def note(self, text: str) -> None:
        """Say something that is no answer."""
        if not self.terminal:
            print(text, file=self.err, flush=True)
            return
        lines = wrap(text, self.columns())
        print(DIM + lines + PLAIN if self.colours else lines, file=self.out, flush=True)

    def show(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table that was asked for; on a terminal its last column is broken into lines."""
        lines = [list(row) for row in rows]
        if self.terminal:
            before = sum(
                2 + max(width(cell) for cell in column) for column in list(zip(headers, *rows, strict=True))[:-1]
            )
            room, lines = max(self.columns() - before, NARROWEST), []
            for *cells, last in rows:
                parts = wrap(last, room).split("\n")
                lines += [[*cells, parts[0]], *([*[""] * len(cells), part] for part in parts[1:])]
        for line in table(headers, lines).splitlines():
            print(clip(line, self.columns()) if self.terminal else line, file=self.out)
        self.out.flush()

    def _write(self, piece: str) -> None:
        if piece:
            self.out.write(piece)
            self.out.flush()
            self._at_start = piece.endswith("\n")

    @contextlib.contextmanager
    def listening(self, stop: Callable[[], Any]) -> Iterator[None]:
        """Within the block Ctrl-C calls `stop` instead of raising, and keys that are pressed do not show.

        Only on a terminal: a pipe's Ctrl-C ends the command.
        """
        if not self.terminal:
            yield
            return
        before = signal.signal(signal.SIGINT, lambda *_: stop())
        try:
            with _no_echo():
                yield
        finally:
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def opening(text: str) -> Iterator[None]:
    """Show a line while the block works, on a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    print(clip(text, shutil.get_terminal_size().columns - 1), end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _no_echo() -> Iterator[None]:
    """Keys that are pressed within the block wait for the next prompt unseen."""
    try:
        import termios
    except ImportError:  # not a POSIX system
        yield
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(keyboard, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
