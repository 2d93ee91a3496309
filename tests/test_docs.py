"""What README.md and docs/ show can be typed, and their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from xmodel.cli import cli

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted(
    [REPOSITORY / "README.md", *REPOSITORY.glob("*/README.md"), *REPOSITORY.glob("docs/*.md")]
)  # docs/reference is generated
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`xmodel ([^`]*)`")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


def commands(text: str) -> list[list[str]]:
    """Every `xmodel ...` of a page: lines of its blocks, behind a prompt or not, and what stands in back quotes."""
    lines = [line.strip() for kind, block in FENCE.findall(text) if kind != "python" for line in joined(block)]
    plain = FENCE.sub("", text)
    found = [match[1] for line in lines if (match := re.match(r"(?:\$ )?(?:\S*=\S+ )?(?:\S*/)?xmodel (.*)", line))]
    found += [line.split("| xmodel ")[1] for line in lines if "| xmodel " in line]
    found += [re.sub(r"\s+", " ", each) for each in INLINE.findall(plain)]
    return [words for each in found if (words := shlex.split(each, comments=True))]


def joined(block: str) -> list[str]:
    return re.sub(r"\\\n\s*", "", block).splitlines()


def mistake(words: list[str]) -> str | None:
    """What the command line would not know of these words; values are not looked at."""
    command: click.Command = cli
    context = click.Context(cli, info_name="xmodel", **cli.context_settings)  # commands keep the help option made here
    while isinstance(command, click.Group):
        word = words[0] if words else ""
        if word.startswith("-") or not word:
            break
        if word not in command.commands:
            if not hasattr(command, "default") or (not re.search("[./:]", word) and not word.isupper()):
                return f"no command {word!r} in {context.command_path!r}"
            word, words = command.default, ["", *words]  # `xmodel export RUN`
        command, words = command.commands[word], words[1:]
        context = click.Context(command, info_name=word, parent=context)
    known = {name for option in command.get_params(context) for name in (*option.opts, *option.secondary_opts)}
    wrong = [word for word in words if re.match("--?[a-z]", word) and word.split("=")[0] not in known]
    return f"no option {wrong[0]} of {context.command_path!r}" if wrong else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_commands_and_links(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    shown = [words for words in commands(text) if "|" not in " ".join(words[:2])]
    assert [f"{' '.join(words)}: {said}" for words in shown if (said := mistake(words))] == []
    links = [link.split("#")[0] for link in LINK.findall(FENCE.sub("", text)) if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


def test_the_check_sees_mistakes() -> None:
    text = "```console\n$ xmodel generat x\n$ A=b .venv/bin/xmodel chat x --temprature 1\n$ echo | xmodel chat x\n```\n`xmodel export\nRUN`"
    assert [mistake(words) for words in commands(text)] == [
        "no command 'generat' in 'xmodel'", "no option --temprature of 'xmodel chat'", None, None,
    ]  # fmt: skip
