"""A recipe file and overrides to a resolved Recipe, or every problem at once.

    load_recipe(Path("recipes/quickstart.yaml"), ["pretrain.steps=2k", "corpus.sources.sandbox-en.weight=0.4"])

Later wins: defaults of `settings`, then the file named by `extends`, the file itself, the overrides.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from pathlib import Path

from xmodel.errors import UserError
from xmodel.recipe.checks import check
from xmodel.recipe.convert import Reading, build
from xmodel.recipe.presets import expand
from xmodel.recipe.settings import Recipe, source_lists
from xmodel.recipe.tree import apply_overrides, read_tree

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # OWNER/NAME; a folder of that name comes before it


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, convert, resolve and check a recipe.

    Args:
        path: the YAML file. Relative paths in it start from its own folder.
        overrides: `SETTING=VALUE`, dotted; list items by name or index. Relative paths in them start from the current
            folder.

    Raises:
        UserError: something is wrong; the message has one line for each problem, with its file and line.
    """
    path = Path(path)
    reading = Reading(file=str(path))
    tree = apply_overrides(read_tree(path, reading.problems), overrides, reading.problems)
    return _finish(build(Recipe, tree, "", reading), path.parent, reading)


def resolve(recipe: Recipe, folder: Path | None = None) -> Recipe:
    """Resolve and check a Recipe that was made in Python; relative paths start from `folder`, or the current one.

    Raises:
        UserError: one line for each problem. Types and bounds of single settings are not checked.
    """
    return _finish(copy.deepcopy(recipe), folder or Path.cwd(), Reading())


def _finish(recipe: Recipe, folder: Path, reading: Reading) -> Recipe:
    recipe.model = expand(recipe.model, recipe.tokenizer.vocab_size)
    _resolve_paths(recipe, folder, reading)
    check(recipe, reading)
    if reading.problems:
        raise UserError("\n".join(dict.fromkeys(reading.problems)))
    return recipe


def _resolve_paths(recipe: Recipe, folder: Path, reading: Reading) -> None:
    """Make all paths (corpus.root, sources, other runs) absolute, each from the folder of the file that has it."""

    def written_in(path: str) -> Path:
        place = reading.place(path)
        return place.folder if place else folder

    def absolute(base: Path, path: str) -> str:
        return os.path.normpath(base.absolute() / Path(path).expanduser())

    corpus = recipe.corpus
    root = Path(absolute(written_in("corpus.root"), corpus.root)) if corpus.root else None
    for section, sources in source_lists(corpus).items():
        for index, source in enumerate(sources):
            base = root or written_in(f"corpus.{section}[{index}].paths")
            if source.reader in ("jsonl", "parquet", "text", "code"):
                source.paths = [absolute(base, path) for path in source.paths]
            elif source.reader == "hf":
                local = {path: absolute(base, path) for path in source.paths}
                on_hub = {path for path in local if HUB_ID.fullmatch(path) and not Path(local[path]).exists()}
                source.paths = [path if path in on_hub else local[path] for path in source.paths]
    corpus.benchmarks = [absolute(root or written_in("corpus.benchmarks"), path) for path in corpus.benchmarks]
    corpus.index = absolute(root or written_in("corpus.index"), corpus.index) if corpus.index else ""
    tokenizer = recipe.tokenizer
    if tokenizer.path:
        local = absolute(written_in("tokenizer.path"), tokenizer.path)
        on_hub = HUB_ID.fullmatch(tokenizer.path.partition("@")[0]) and not Path(local).exists()
        tokenizer.path = tokenizer.path if on_hub else local
    for key in ("branch_from", "init_from"):
        if path := getattr(recipe.pretrain, key):
            setattr(recipe.pretrain, key, absolute(written_in(f"pretrain.{key}"), path))
    corpus.root = str(root or os.path.normpath(folder.absolute()))
