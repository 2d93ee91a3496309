"""The command line as a person meets it: exit codes, one-line mistakes, tracebacks for bugs only, true references."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from command import TINY, xmodel

from xmodel import cli as command_line
from xmodel.errors import Interrupted, MachineError, UserError

DOCS = Path(__file__).parents[1] / "docs" / "reference"
RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("weights sum to 0.9"), 2),
        (MachineError("a file is damaged"), 1),
        (Interrupted("stopped"), 75),
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device"), 1),
        (PermissionError(13, "Permission denied", "x.jsonl"), 1),
        (IsADirectoryError(21, "Is a directory", "folder"), 2),
        (FileNotFoundError(2, "No such file or directory", "/proc/out.json.partial"), 2),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(command_line.cli, "main", fail)
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    assert stopped.value.code == code
    text = capsys.readouterr().err
    assert text.startswith("xmodel: ")
    assert len(text.splitlines()) == 1


def test_a_bug_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line.cli, "main", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command_line.main()


@pytest.mark.parametrize("what", ["cli", "recipe"])
def test_references_in_the_docs_are_true(what: str) -> None:
    made = CliRunner().invoke(command_line.cli, ["reference", what]).output
    assert (DOCS / f"{what}.md").read_text(encoding="utf-8") == made, (
        f"run: xmodel reference {what} > docs/reference/{what}.md"
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_pass_their_check(path: Path) -> None:
    result = CliRunner().invoke(command_line.cli, ["recipe", "check", str(path), "--json"])
    assert result.exit_code == 0, result.output
    assert "parameters" in json.loads(result.output)


def test_recipe_show_writes_a_recipe_that_means_the_same(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    shown = CliRunner().invoke(command_line.cli, ["recipe", "show", str(tmp_path / "tiny.yaml"), "seed=9"]).output
    (tmp_path / "shown.yaml").write_text(shown)
    again = CliRunner().invoke(command_line.cli, ["recipe", "show", str(tmp_path / "shown.yaml")]).output
    assert again == shown
    assert "seed: 9" in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml"),
        (["run", "."], "not a run directory (it has no recipe.yaml)"),
        (["tokens", "{tiny}", "--dir", "{tmp}/new"], "tokens builds on corpus, tokenizer, which do not stand"),
        (["generate", "{tmp}", "hello"], "neither a run directory"),
        (["run", "{tiny}", "--redo", "teach", "--dir", "{tmp}/new"], "the stages are corpus, tokenizer"),
        (["init", "--text", "{tmp}/nothing", "--hours", "1"], "nothing"),
    ],
)
def test_mistakes(arguments: list[str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    filled = [part.format(tmp=tmp_path, tiny=tmp_path / "tiny.yaml") for part in arguments]
    result = xmodel(*filled)
    assert result.returncode == 2, result.stderr
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
