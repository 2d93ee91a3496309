"""A real pseudo-terminal with a program in it: what is typed goes in as keys, what comes out is read until it is there."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path
from types import TracebackType

REPOSITORY = Path(__file__).parents[2]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r")


class Terminal:
    """A program on a terminal of so many columns; `with` ends it."""

    def __init__(self, *command: object, columns: int = 80, **environment: str) -> None:
        self.output = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._read = 0  # of the output: what was waited for already
        inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        env = inherited | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "INPUTRC": "/dev/null"} | environment
        env["PYTHONPATH"] = f"{REPOSITORY / 'src'}:{REPOSITORY / 'tests' / 'chat'}"
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests were started in the background
            os.execve(sys.executable, [sys.executable, *map(str, command)], env)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def interrupt(self) -> None:
        """Ctrl-C at the prompt: a moment after it, since CPython's readline misses one just before it begins to wait."""
        time.sleep(0.5)
        self.type("\x03")

    def wait(self, text: str, seconds: float = 30) -> str:
        """Everything that came since the last wait, up to and with `text`, without the escapes."""
        end = time.monotonic() + seconds
        while (place := (clean := self.clean()).find(text, self._read)) < 0:
            assert time.monotonic() < end, f"{text!r} did not come; after {clean[self._read - 200 :]!r}"
            if select.select([self._master], [], [], 0.2)[0]:
                self.output += self._receive()
        start, self._read = self._read, place + len(text)
        return clean[start : self._read]

    def clean(self) -> str:
        return ESCAPES.sub("", self.output)

    def leave(self, seconds: float = 30) -> int:
        """Wait for the program's end; its exit code."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self._master], [], [], 0.1)[0]:
                self.output += self._receive()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError(f"still there; at the end {self.clean()[-300:]!r}")

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self._master)[3] & termios.ECHO)

    def _receive(self) -> str:
        try:
            return self._decoder.decode(os.read(self._master, 65536))
        except OSError:  # the program has ended
            return ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        os.close(self._master)
