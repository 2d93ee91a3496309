"""The house rules that a reader relies on: who may import whom, and what a command may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "xmodel"
BASE = {"errors", "files", "console", "recipe", "hardware"}
MAY_IMPORT = {  # room -> rooms that it may know, besides itself
    "errors": set(),
    "files": {"errors"},
    "console": {"errors", "files"},
    "hardware": {"errors"},
    "recipe": BASE,
    "corpus": BASE,
    "tokenizer": BASE,
    "model": BASE,
    "tokens": BASE | {"tokenizer"},
    "pretrain": BASE | {"model", "tokens"},
    "inference": BASE | {"model", "tokenizer"},
    "evaluate": BASE | {"model", "tokenizer", "inference"},
    "export": BASE | {"model", "tokenizer"},
    "importing": BASE | {"model", "tokenizer"},
    "compare": BASE | {"model", "inference"},
    "chat": BASE | {"inference"},
    "report": BASE,
    "status": BASE,
    "plan": BASE | {"model"},
    "survey": BASE | {"corpus"},
    "init": BASE | {"survey", "model", "pretrain"},
}
SEES_ALL = {"run", "stages", "cli", "__main__", "__init__"}


def imports(path: Path) -> set[str]:
    """Top-level names of every module that a file imports, at any depth of its functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_arrows_run_one_way() -> None:
    offences = []
    for path in SOURCE.rglob("*.py"):
        here = room(path)
        if here in SEES_ALL:
            continue
        known = {name.split(".")[1] for name in imports(path) if name.startswith("xmodel.")}
        rooms = {name for name in known if (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file()}
        offences += [f"{path.relative_to(SOURCE)} imports {name}" for name in rooms - MAY_IMPORT[here] - {here}]
    assert not offences


def test_corpus_and_recipe_never_import_torch() -> None:
    for here in ("corpus", "recipe", "report", "tokenizer", "plan", "status.py", "hardware.py"):
        paths = (SOURCE / here).rglob("*.py") if (SOURCE / here).is_dir() else [SOURCE / here]
        for path in paths:
            assert not {name for name in imports(path) if name.split(".")[0] == "torch"}, path


def test_every_room_is_documented() -> None:
    for folder in (path for path in SOURCE.rglob("*") if path.is_dir() and list(path.glob("*.py"))):
        assert (folder / "__init__.py").is_file(), folder
    for path in SOURCE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no docstring"


@pytest.mark.parametrize("module", ["xmodel.cli", "xmodel.run", "xmodel.stages", "xmodel.recipe"])
def test_command_line_loads_nothing_heavy(module: str) -> None:
    heavy = ("torch", "numpy", "pyarrow", "numba", "transformers", "matplotlib", "sentencepiece")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
