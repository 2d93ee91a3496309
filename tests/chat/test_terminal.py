"""A chat on a real terminal: keys go in, and what a person sees comes out."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import REPOSITORY, Terminal

from xmodel.chat.commands import COMMANDS
from xmodel.console import width

SCRIPTED = Path(__file__).with_name("scripted.py")
CTRL_C, CTRL_D, CTRL_W, UP, LEFT, BACKSPACE = "\x03", "\x04", "\x17", "\x1b[A", "\x1b[D", "\x7f"
POEM = "床前明月光，疑是地上霜。举头望明月，低头思故乡。" * 2
LONG = " ".join(f"word{number}" for number in range(400))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def history(state: Path) -> list[str]:
    lines = (state / "xmodel" / "chat_history").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_session(state: Path) -> None:
    """Streaming, wrapped wide text, Ctrl-C in an answer and at the prompt, editing of Chinese, Tab, history."""
    answers = (POEM, LONG, "=", "=", "=")
    with Terminal(SCRIPTED, *answers, "--delay", "0.01", columns=30, XDG_STATE_HOME=str(state)) as terminal:
        started = terminal.wait("\n> ")
        assert "scripted: 3 parameters" in started.replace("\n", "")
        assert max(map(width, started.splitlines())) <= 30

        terminal.type("念一首诗\r")
        terminal.wait("\n")
        lines = terminal.wait("\n> ").splitlines()[:-1]
        assert "".join(lines) == POEM
        assert all(27 <= width(line) <= 30 for line in lines[:-1])
        assert not [line for line in lines if line[0] in "，。"]

        terminal.type("count\r")
        terminal.wait("word9 ")
        assert not terminal.echoes()  # keys that are pressed now do not show in the answer
        terminal.type(CTRL_C)
        rest = terminal.wait("[stopped]\n> ")
        assert "word300" not in rest

        terminal.type("中文字" + BACKSPACE * 2 + "国" + LEFT + "间\r")  # characters, not bytes or columns
        assert terminal.wait("中间国\n> ").endswith("\n中间国\n> ")
        terminal.type("/temper\t 0.5\r")
        terminal.wait("/temperature is 0.5\n> ")
        terminal.type(UP + UP + "！\r")
        terminal.wait("\n中间国！\n> ")
        terminal.type('"""\r/quit\r  two\r"""\r')
        terminal.wait("\n/quit\n  two\n> ")

        terminal.type("half a line")
        terminal.wait("half a line")
        terminal.interrupt()
        assert "Ctrl-C once more" in terminal.wait("leaves.\n> ")
        terminal.type("/undo\r")
        terminal.wait("taken back.\n> ")
        terminal.interrupt()
        terminal.wait("leaves.\n> ")
        terminal.interrupt()
        assert terminal.leave() == 0
        assert terminal.echoes()
    file = state / "xmodel" / "chat_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    kept = ["念一首诗", "count", "中间国", "/temperature 0.5", "中间国！", '"""', "/quit", "  two", '"""', "/undo"]
    assert history(state) == kept

    with Terminal(SCRIPTED, "=", "--language", "zh", XDG_STATE_HOME=str(state), NO_COLOR="1") as terminal:
        terminal.wait("Ctrl-D 退出。\n> ")
        terminal.type(UP * 8 + "\r")
        terminal.wait("\n中间国\n> ")
        terminal.type("/help\r")
        rows = [line for line in terminal.wait("任意多行。\n> ").splitlines() if line.startswith("/") and " " in line]
        assert len(rows) == len(COMMANDS)
        assert max(map(width, rows)) <= 80
        terminal.type(CTRL_D)
        assert terminal.leave() == 0
        assert "\x1b[2m" not in terminal.output
    assert history(state) == [*kept, "中间国", "/help"]


def test_an_impatient_person_stays_in_the_conversation(state: Path) -> None:
    with Terminal(SCRIPTED, LONG, "=", "--delay", "0.01", XDG_STATE_HOME=str(state)) as terminal:
        terminal.wait("\n> ")
        terminal.type("count\r")
        terminal.wait("word9 ")
        for _ in range(3):
            terminal.type(CTRL_C)  # the first stops the answer; the others come then, or at the prompt, or in between
        assert "word300" not in terminal.wait("[stopped]")
        terminal.type("\r")
        terminal.wait("> \n> ")
        terminal.type("still here\r")
        assert terminal.wait("\nstill here\n> ").count("still here") == 2  # as it was typed, and the answer to it
        terminal.type(CTRL_D)
        assert terminal.leave() == 0
    assert history(state) == ["count", "still here"]


def pipe(text: bytes, *answers: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    env = {"PATH": "", "PYTHONPATH": f"{REPOSITORY / 'src'}:{SCRIPTED.parent}", "HOME": "/nowhere"} | environment
    return subprocess.run(
        [sys.executable, str(SCRIPTED), *answers], input=text, capture_output=True, env=env, check=False
    )


def test_a_pipe() -> None:
    lines = ["你好", "", "a\\", "b", "/nope", "/settings", '"""', "/x", '"""', "last\udc80"]
    result = pipe("\r\n".join(lines).encode(errors="surrogateescape"), *["="] * 4)
    assert result.returncode == 0
    out = result.stdout.decode()
    assert out.startswith("你好\na\nb\nsetting ")
    assert out.endswith("\n/x\nlast\ufffd\n")
    said = '/nope: no such command; /help lists all (text that begins with / goes between """)\n'
    assert result.stderr.decode() == said
    assert "\x1b" not in out
    assert "> " not in out


def test_a_locale_that_cannot_write_everything() -> None:
    result = pipe(b"x\n", "café 中", PYTHONIOENCODING="latin-1")
    assert (result.returncode, result.stdout) == (0, "café ?\n".encode("latin-1"))


def test_history_that_cannot_be_kept_or_read(tmp_path: Path) -> None:
    (tmp_path / "xmodel").mkdir()
    (tmp_path / "xmodel" / "chat_history").mkdir()  # a folder where the file should be
    with Terminal(SCRIPTED, "=", XDG_STATE_HOME=str(tmp_path)) as terminal:
        terminal.wait("What you type is not kept for the next time: ")
        terminal.type("hi\r")
        terminal.wait("\nhi\n> ")
        terminal.type("/quit\r")
        assert terminal.leave() == 0
    (tmp_path / "xmodel" / "chat_history").rmdir()
    (tmp_path / "xmodel" / "chat_history").write_text('"one"\n{"cut o\n7\n"two"\n' + '"three"\n' * 2500)
    with Terminal(SCRIPTED, "=", XDG_STATE_HOME=str(tmp_path)) as terminal:
        terminal.wait("\n> ")
        terminal.type(UP + " x\r")
        terminal.wait("\nthree x\n> ")
    assert history(tmp_path) == ["three"] * 1000 + ["three x"]
