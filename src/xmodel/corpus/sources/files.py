"""Which files a source means: paths, folders, patterns, and the folders in which Hugging Face data sets stand."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xmodel.errors import UserError
from xmodel.recipe.settings import Source

CODE = (
    ".c .cc .cpp .cs .css .cu .go .h .hpp .java .jl .js .kt .lua .m .php .pl .py .r .rb .rs .scala .sh .sql .swift .ts"
)
SUFFIXES = {  # what a folder is searched for
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "parquet": (".parquet",),
    "text": (".txt", ".md", ".rst"),
    "code": tuple(CODE.split()),
}
# The files of a data set folder, and the reader of each; files of JSON may be called .json there.
FORMATS = {".parquet": "parquet", ".arrow": "arrow"}
FORMATS |= {f"{name}{packed}": "jsonl" for name in (".jsonl", ".json") for packed in ("", ".gz", ".zst")}
# How load_dataset finds the split in a file's path when nothing else says it.
SPLITS = {"train": ("train", "training"), "validation": ("validation", "valid", "dev", "val")}
SPLITS |= {"test": ("test", "testing", "eval", "evaluation")}


def expand(pattern: str, suffixes: tuple[str, ...], key: str) -> list[Path]:
    """The files that a path, folder or pattern means, sorted.

    Args:
        key: the recipe key it stands at, for messages.

    Raises:
        UserError: none, or one cannot be read.
    """
    path = Path(pattern)
    names = " or ".join(suffixes)
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            found = in_folder(path, suffixes)
            if not found:
                raise UserError(f"{key}: the folder {pattern} holds no {names} file; name others by a glob pattern")
            return found
        if not glob.has_magic(pattern):
            raise UserError(f"{key}: {pattern} does not exist; paths start from corpus.root")
        matches = sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - Path.glob takes no absolute pattern
        found = [file for match in matches for file in ([match] if match.is_file() else in_folder(match, suffixes))]
    except OSError as error:
        raise UserError(f"{key}: {error.filename or pattern} cannot be read ({error.strerror})") from None
    if not found:
        raise UserError(f"{key}: the pattern {pattern} matches no file; paths start from corpus.root")
    return found


def in_folder(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files below a folder that end so, hidden ones left out, sorted."""
    hidden = (path for path in folder.rglob("*") if path.name.endswith(suffixes) and path.is_file())
    return sorted(path for path in hidden if not any(part.startswith(".") for part in path.relative_to(folder).parts))


# ── Hugging Face folders ─────────────────────────────────────────────────────────────────────────────────────────────


def is_hub_id(source: Source, path: str) -> bool:
    """Whether a path of an hf source is a data set of the hub: no local folder, and written OWNER/NAME."""
    return source.reader == "hf" and not Path(path).is_absolute()


def dataset_files(folder: Path, source: Source, key: str) -> list[Path]:
    """The files of one split of a data set in a local folder.

    Folders that are understood: of `save_to_disk` (one data set, or a folder for each split), and those that
    `load_dataset` takes: `configs` of README.md, else the split's name in the files' paths, else all files.

    Raises:
        UserError: no such split or subset, or no file in a format that is read.
    """
    if not folder.is_dir():
        return expand(str(folder), tuple(FORMATS), key)
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        if source.split not in splits:
            raise UserError(f"{key}: {folder} has no split {source.split!r}; it has {', '.join(splits) or 'none'}")
        folder = folder / source.split
    if (folder / "state.json").is_file():
        names = [entry["filename"] for entry in _json(folder / "state.json").get("_data_files", [])]
        return _existing([folder / name for name in names], key, folder)
    stated = _of_card(folder, source, key)
    if stated is not None:
        return stated
    if source.subset:
        if not (folder / source.subset).is_dir():
            subsets = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())[:12])
            raise UserError(f"{key}: {folder} has no subset {source.subset!r}; it has the folders {subsets or 'none'}")
        folder = folder / source.subset
    found = in_folder(folder, tuple(FORMATS))
    if not found:
        raise UserError(f"{key}: the folder {folder} holds no {', '.join(FORMATS)} file")
    by_split: dict[str, list[Path]] = {}
    for path in found:
        by_split.setdefault(split_of(path, folder), []).append(path)
    if set(by_split) == {""}:
        return found
    if source.split not in by_split:
        names = ", ".join(sorted(filter(None, by_split)))
        raise UserError(f"{key}: {folder} has no split {source.split!r}; it has {names}")
    return by_split[source.split]


def split_of(path: Path, folder: Path) -> str:
    """The split that the path of a file names, or ""."""
    words = re.split(r"[^a-z0-9]+", path.relative_to(folder).as_posix().lower())
    return next((split for split, names in SPLITS.items() if any(name in words for name in names)), "")


def _of_card(folder: Path, source: Source, key: str) -> list[Path] | None:
    """The files that the front matter of README.md gives to the subset and split; None where it says nothing."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    match = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    if not match:
        return None
    import yaml

    try:
        configs = (yaml.safe_load(match[1]) or {}).get("configs") or []
    except (yaml.YAMLError, AttributeError):
        return None
    configs = [config for config in configs if isinstance(config, dict) and config.get("data_files")]
    if not configs:
        return None
    names = [str(config.get("config_name", "default")) for config in configs]
    chosen = source.subset or next((n for n, c in zip(names, configs, strict=True) if c.get("default")), None)
    chosen = chosen or ("default" if "default" in names else names[0])
    if chosen not in names:
        raise UserError(f"{key}: {folder} has no subset {chosen!r}; it has {', '.join(names[:12])}")
    files = configs[names.index(chosen)]["data_files"]
    if isinstance(files, str) or not any(isinstance(entry, dict) for entry in files):
        files = [{"split": "train", "path": files}]
    paths = {str(entry["split"]): entry["path"] for entry in files}
    if source.split not in paths:
        raise UserError(f"{key}: {folder} has no split {source.split!r}; it has {', '.join(paths)}")
    patterns = paths[source.split] if isinstance(paths[source.split], list) else [paths[source.split]]
    found = [file for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file()]
    if not found:
        raise UserError(f"{key}: README.md of {folder} names {', '.join(patterns)}, and no such file is there")
    return found


def _existing(found: Iterable[Path], key: str, folder: Path) -> list[Path]:
    paths = list(found)
    for path in paths:
        if not path.is_file():
            raise UserError(f"{key}: {path} is missing, which {folder / 'state.json'} names; copy the folder again")
    if not paths:
        raise UserError(f"{key}: {folder / 'state.json'} names no data file")
    return paths


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path}: not JSON; save the data set again") from None
    return found if isinstance(found, dict) else {}
