"""The folders that hold checkpoints: their manifests, which one is the newest whole one, which are kept, which fit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from xmodel.console import log
from xmodel.errors import MachineError, UserError
from xmodel.files import PARTIAL, checksum, read_json, write_json
from xmodel.model.checkpoint_io import CONFIG
from xmodel.model.config import from_hf
from xmodel.pretrain.parallel import Place
from xmodel.recipe.settings import Model

FORMAT = 2  # of the folder; 1 had the optimizer in one safetensors file
MANIFEST, OPTIMIZER, STATE = "manifest.json", "optimizer", "state.json"
HERE = Place(0, 1, torch.device("cpu"))  # one process by itself

T = TypeVar("T")
ForGood = Callable[[int], bool]  # step -> whether retention never reaches its checkpoint


def checkpoints(folder: Path) -> Iterator[Path]:
    """Whole checkpoints, newest first; a damaged one is passed over, aloud."""
    for path in sorted(folder.glob("step-*[0-9]"), reverse=True):
        fault = damage(path)
        if fault is None:
            yield path
        else:
            log(f"checkpoint {path.name} is damaged ({fault}); going back to the one before")


def newest_checkpoint(folder: Path, place: Place = HERE) -> Path | None:
    """The newest whole checkpoint, or None. The first rank looks, and all ranks get its answer."""
    found = next(checkpoints(folder), None) if place.first else None
    step = place.sum(torch.tensor(_step(found) + 1 if found else 0, device=place.device)).item() - 1
    return folder / f"step-{step:09d}" if step >= 0 else None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file has the size and checksum of the manifest."""
    try:
        manifest = read_json(path / MANIFEST)
    except MachineError as error:
        return str(error)

    def fault(file: Path) -> str | None:
        name = file.relative_to(path)
        expected = manifest[str(name)]
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, not {expected['bytes']}"
        return None if checksum(file) == expected["checksum"] else f"{name} does not have its checksum"

    return next(filter(None, _in_threads(fault, [path / name for name in manifest])), None)


def refuse_other(path: Path, config: Model, tokenizer: str | None) -> None:
    """Look at a checkpoint's description alone.

    Args:
        tokenizer: fingerprint of the tokens' tokenizer, None when it is not known.

    Raises:
        UserError: the checkpoint belongs to a model of another shape, to another tokenizer, or to another version.
    """
    state = read_json(path / STATE)
    if (found := state.get("format", 1)) != FORMAT:
        raise UserError(
            f"{path}: a checkpoint of format {found}, this version of xmodel reads format {FORMAT}; go on with the "
            "version that wrote it (run.json names its code_revision), or use another run directory"
        )
    theirs, ours = _shape(from_hf(read_json(path / CONFIG))), _shape(config)
    if theirs != ours:
        changed = ", ".join(f"{key} {theirs[key]} -> {ours[key]}" for key in ours if theirs[key] != ours[key])
        raise UserError(f"{path}: a checkpoint of another shape ({changed}); use another run directory")
    if tokenizer and (known := state.get("tokenizer")) and known != tokenizer:
        raise UserError(
            f"{path}: trained on tokens of another tokenizer ({known}, the tokens now are of {tokenizer}); bring back "
            "that tokenizer, or use another run directory"
        )


def _shape(config: Model) -> dict[str, Any]:
    names = ("vocab_size", "layers", "heads", "kv_heads", "hidden", "ffn", "tied_embeddings", "qk_norm")
    return {name: getattr(config, name) for name in names}


def sums(folder: Path, place: Place) -> dict[str, dict[str, Any]]:
    """Size and checksum of the files that this rank has written."""
    mine = list(folder.glob(f"{OPTIMIZER}/__{place.rank}_*"))
    if place.first:
        mine += [*folder.glob("*"), folder / OPTIMIZER / ".metadata"]
    mine = sorted(file for file in mine if file.is_file())
    found = _in_threads(lambda file: {"bytes": file.stat().st_size, "checksum": checksum(file)}, mine)
    return {str(file.relative_to(folder)): entry for file, entry in zip(mine, found, strict=True)}


def seal(folder: Path, step: int, tokenizer: str) -> None:
    """Make a checkpoint without an optimizer of a model folder: `load_checkpoint` then begins the optimizer anew.

    Args:
        tokenizer: fingerprint of the tokenizer that the model's ids are of.
    """
    write_json(
        folder / STATE,
        {"format": FORMAT, "step": step, "interval": [0.0, 0.0], "left_out": [], "tokenizer": tokenizer},
    )
    files = sorted(file for file in folder.iterdir() if file.is_file())
    found = _in_threads(lambda file: {"bytes": file.stat().st_size, "checksum": checksum(file)}, files)
    write_json(folder / MANIFEST, {file.name: entry for file, entry in zip(files, found, strict=True)})


def _in_threads(work: Callable[[Path], T], files: Iterable[Path]) -> list[T]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing does not hold Python's lock
        return list(pool.map(work, files))


def never(step: int) -> bool:
    return False


def remove_old(folder: Path, keep: int, for_good: ForGood) -> None:
    """Remove all checkpoints but the `keep` newest and those of the steps that are kept for good."""
    for old in sorted(folder.glob("step-*[0-9]"))[:-keep]:
        if not for_good(_step(old)):
            doomed = old.with_name(old.name + PARTIAL)
            os.replace(old, doomed)  # so that a kill leaves no half of it under its name
            shutil.rmtree(doomed)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
