"""What commands do, what the model gets to see, and what is kept."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import Scripted

from xmodel.chat.commands import COMMANDS, act
from xmodel.chat.keyboard import Turn, read_turn
from xmodel.chat.screen import Screen
from xmodel.chat.session import Session
from xmodel.chat.talk import converse, is_command
from xmodel.chat.words import WORDS, Words, locale_language
from xmodel.console import width
from xmodel.inference.sampling import Sampling


def make(*answers: str, language: str = "en", settings: Sampling | None = None, **partner: Any) -> Session:
    screen = Screen(False, io.StringIO(), io.StringIO())
    return Session(Scripted(answers, **partner), settings or Sampling(), screen, Words(language))


def give(session: Session, *turns: str) -> tuple[str, str]:
    """Answers and what commands print, and notes, of these turns."""
    out, err = io.StringIO(), io.StringIO()
    session.screen.out, session.screen.err = out, err
    lines = iter("\n".join(turns).split("\n"))

    def line(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    converse(session, lambda: read_turn(line))
    return out.getvalue(), err.getvalue()


def contents(session: Session) -> list[str]:
    return [message["content"] for message in session.messages]


def prompts(session: Session) -> list[str]:
    return [prompt for prompt, _ in session.partner.asked]  # type: ignore[attr-defined]


def test_turns_follow_one_another() -> None:
    session = make(" Hello there. \n", "你好。\n\n", "again")
    out, err = give(session, "hi", "", "你好", "/retry", "/undo", "/undo", "/undo")
    assert out == "Hello there.\n你好。\nagain\n"
    assert prompts(session) == ["u:hi", "u:hia:Hello there.u:你好", "u:hia:Hello there.u:你好"]
    assert err.splitlines() == [
        "At temperature 0 the same answer comes again; /temperature 0.8 varies it.",
        "The last turn is taken back.",
        "The last turn is taken back.",
        "There is no turn yet.",
    ]
    assert session.messages == []


def test_verbatim_text_is_kept_as_it_is() -> None:
    session = make(" upon\n a time\n\n", "!", verbatim=True)
    out, _ = give(session, "Once", "there")
    assert out == " upon\n a time\n\n!\n"
    assert prompts(session)[1] == "Once upon\n a time\n\nthere"


def test_the_oldest_turns_are_left_out_and_that_is_said() -> None:
    session = make(*["12345"] * 9, context=40, settings=Sampling(max_new_tokens=100))
    _, err = give(session, *(f"turn{i}" for i in range(5)))
    # A turn and its answer take 7 + 7 tokens, and a quarter of 40 is left free: 7 + 14 fit, 7 + 28 do not.
    assert prompts(session)[-1] == "u:turn3a:12345u:turn4"
    assert [line for line in err.splitlines() if "oldest" in line] == [
        f"The context of 40 tokens is full: the model no longer sees the oldest {i - 1} of {i + 1} turns."
        for i in (2, 3, 4)
    ]
    assert len(session.messages) == 10  # but nothing is lost
    give(session, "/system s")
    give(session, "x")
    assert prompts(session)[-1] == "s:su:turn4a:12345u:x"
    err = give(session, "y" * 50, "z")[1]
    assert "This turn takes 55 tokens and the context holds 40" in err
    assert contents(session)[-2:] == ["z", "12345"]
    assert prompts(session)[-1] == "s:su:turn4a:12345u:xa:12345u:z"  # what the model saw before that, it still sees
    give(session, "y" * 34)  # leaves less than a quarter, but something
    assert prompts(session)[-1] == "s:su:" + "y" * 34


def test_an_answer_without_words_takes_the_turn_back() -> None:
    session = make("fine", "  \n", "")
    _, err = give(session, "a", "b", "/retry")
    assert err.splitlines()[0] == "The model says nothing to that; the turn is taken back."
    assert contents(session) == ["a", "fine"]  # also when it was to be answered anew
    session = make("half", finish="error")
    assert "The engine failed" in give(session, "a")[1]
    assert contents(session) == ["a", "half"]


@pytest.mark.parametrize(
    ("context", "note"),
    [(8, "[cut off: the context of 8 tokens is full]"), (99, "[cut off after 2 tokens; /max N allows more]")],
)
def test_why_an_answer_is_cut_off(context: int, note: str) -> None:
    session = make("a b", finish="length", context=context, settings=Sampling(max_new_tokens=2))
    assert give(session, "1234")[1].strip() == note


def test_settings_reach_the_engine_and_seeds_differ_by_answer() -> None:
    session = make(*"abcdef")
    lines = ["/temperature 0.8", "/top-p 0.9", "/top-k 40", "/min-p 0.05", "/repetition 1.1", "/max 7", "/seed 5"]
    _, err = give(session, *lines, "x", "/retry", "/seed 5", "y", "/seed none", "z")
    settings = [settings for _, settings in session.partner.asked]  # type: ignore[attr-defined]
    assert settings[0] == Sampling(7, 0.8, 40, 0.9, 0.05, 1.1, seed=5, stop=("u:",), logprobs=3)
    assert [given.seed for given in settings] == [5, 6, 5, None]
    assert err.splitlines() == [f"{line.replace(' ', ' is ', 1)}" for line in lines] + [
        "/seed is 5",
        "/seed is new each time",
    ]


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("/temprature 1", "/temprature: no such command, the nearest: /temperature; /help lists all"),
        ("/re", "/re: no such command, the nearest: /reset, /retry, /repetition; /help"),
        ("/xyzzy", "/xyzzy: no such command; /help lists all"),
        ("/temperature hot", "/temperature hot: a number is needed, such as 0.8"),
        ("/temperature nan", "/temperature nan: a number is needed, such as 0.8"),
        ("/temperature -1", "temperature is -1.0; it has to be a number, 0 (greedy) or more"),
        ("/top-p 1.5", "top_p is 1.5; it has to be a number above 0 and at most 1 (all tokens)"),
        ("/max 0", "max_new_tokens is 0; it has to be a whole number, at least 1"),
        ("/top-k 1.5", "/top-k 1.5: a number is needed, such as 40"),
        (
            "/seed 99999999999999999999999",
            "seed is 99999999999999999999999; it has to be a whole number of at most 64 bits",
        ),
        ("/reset now", "/reset takes nothing behind it."),
        ("/save", "/save needs the name of a file."),
        ("/load /no/such", "/no/such: No such file or directory"),
        ("/save /dev/null/file", "/dev/null"),
        ("/tokens", "There is no answer of the model yet."),
        ("/retry", "There is no turn yet."),
    ],
)
def test_mistakes_are_said_and_change_nothing(line: str, note: str) -> None:
    session = make()
    out, err = give(session, line)
    assert err.startswith(note)
    assert err.count("\n") == 1
    assert (out, session.settings, session.messages) == ("", Sampling(), [])


def test_what_is_a_command() -> None:
    assert [is_command(text) for text in ("/top-p 1", "/HELP", "/重置", "/usr/bin/python", "/", "// no", "a /help", "/etc.")] == [
        True, True, True, False, False, False, False, False
    ]  # fmt: skip


def test_several_lines_make_a_turn() -> None:
    session = make(*"abcdef")
    give(
        session,
        "one\\",
        "two \\",
        "three",
        '"""first',
        "",
        '  second"""',
        '"""/help"""',
        '"""',
        "/quit",
        '"""',
        "end\\",
    )
    assert contents(session)[::2] == ["one\ntwo \nthree", "first\n\n  second", "/help", "/quit", "end"]
    with pytest.raises(EOFError):
        read_turn(lines_of([]))
    assert read_turn(lines_of(['"""open', "end"])) == Turn("open\nend", True)


def lines_of(lines: list[str]) -> Any:
    rest: Iterator[str] = iter(lines)

    def line(_: str) -> str:
        for text in rest:
            return text
        raise EOFError

    return line


def test_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    session = make("Hello 世界", "ok", "sure")
    give(session, "/system be brief", "你好\\", "line two", f"/save {path}")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "你好\nline two"},
        {"role": "assistant", "content": "Hello 世界"},
    ]
    assert "世界" in path.read_text(encoding="utf-8")
    _, err = give(session, "more", f"/save {path}")  # its own file may be written again
    assert err.endswith(f"5 messages saved in {path}\n")
    other = make("Hi")
    before = path.read_bytes()
    assert "exists already" in give(other, f"/save {path}")[1]
    assert path.read_bytes() == before
    give(other, f"/load {path}", "new")
    assert other.system == "be brief"
    assert prompts(other) == ["s:be briefu:你好\nline twoa:Hello 世界u:morea:oku:new"]
    path.write_text('{"role": "user", "content": "what?"}\n\n')
    assert give(session, f"/load {path}")[0] == "sure\n"  # a question at the end is answered
    assert contents(session) == ["what?", "sure"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "2: no message; a line is"),
        ('["user", "a"]', "2: no message"),
        ('{"role": "user"}', "2: no message"),
        ('{"role": "user", "content": 3}', "2: no message"),
        ('{"role": "assistant", "content": "\\ud800"}', "2: no message"),
        ('{"role": "user", "content": "again"}', "2: role 'user'; here it has to be assistant"),
        ('{"role": "robot", "content": "a"}', "2: role 'robot'; here"),
        ('{"role": [], "content": "a"}', "2: no message"),
    ],
)
def test_bad_files_change_nothing(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"role": "user", "content": "a"}\n' + line + "\n")
    session = make("fine")
    give(session, "hi")
    assert f"bad.jsonl:{message}" in give(session, f"/load {path}")[1]
    assert contents(session) == ["hi", "fine"]


def test_tokens_settings_and_help_are_tables() -> None:
    session = make("Hi 世")
    out, err = give(session, "x", "/tokens")
    assert out.splitlines()[1:] == [
        "token  probability  most likely",
        "─────  ───────────  ──────────────────",
        "Hi␣          50.0%  H 50.0%  中 12.5%",
        "世           50.0%  世 50.0%  中 12.5%",
    ]
    assert err.startswith("2 tokens in ")
    out, _ = give(session, "/settings")
    assert "context" in out
    assert "9 of 10000 tokens" in out
    assert "/temperature  0 (greedy)" in out
    for language in ("en", "zh"):
        session = make(language=language)
        out, _ = give(session, "/help")
        rows = out.splitlines()[2:]
        assert [row.split()[0] for row in rows] == [f"/{name}" for name in COMMANDS]
        assert len({width(row[: row.index(WORDS[row.split()[0]][language == "zh"])]) for row in rows}) == 1


def test_half_characters_are_hexadecimal() -> None:
    from xmodel.chat.commands import visible

    assert [visible(piece) for piece in (b"\xe4\xb8", b" a\n", b"", "中".encode())] == ["<E4><B8>", "␣a↵", "∅", "中"]


def test_every_sentence_is_there_in_both_languages() -> None:
    import string

    assert {f"/{name}" for name in COMMANDS} == {key for key in WORDS if key.startswith("/")}
    for key, (english, chinese) in WORDS.items():
        names = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in (english, chinese)]
        assert names[0] == names[1], key
        assert english.isascii(), key
        assert any("\u4e00" <= character <= "\u9fff" for character in chinese), key
    assert give(make(language="zh"), "/temp", "/quit", "never")[1].startswith(
        "/temp：没有这个命令，最接近的是 /temperature；"
    )


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LC_MESSAGES": "zh_TW", "LANG": "en_GB"}, "zh"),
        ({"LC_ALL": "", "LANG": "zh"}, "zh"),
    ],
)
def test_the_language_follows_the_locale(environment: dict[str, str], language: str) -> None:
    assert locale_language(environment) == language


def test_a_command_over_several_lines() -> None:
    session = make()
    act(session, "/system first\nsecond line")
    assert session.system == "first\nsecond line"
