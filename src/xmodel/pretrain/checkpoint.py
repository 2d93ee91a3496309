"""Checkpoints: a model folder that transformers can read, the optimizer's state beside it, a manifest over all.

    step-000000100/  config.json  model.safetensors  optimizer.safetensors  state.json  manifest.json
                     average.safetensors where the recipe asks for an average of the weights

A checkpoint is written under a temporary name, synced and renamed; the manifest holds the size and checksum of every
file. Reading goes from the newest to the oldest and takes the first that is whole, and says so when it passes one over.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from xmodel.console import log
from xmodel.errors import MachineError, UserError
from xmodel.files import PARTIAL, atomic_folder, checksum, read_json, write_json
from xmodel.model.checkpoint_io import AVERAGE, load_model, save_model
from xmodel.model.transformer import Transformer
from xmodel.pretrain.average import Average

MANIFEST, OPTIMIZER, STATE = "manifest.json", "optimizer.safetensors", "state.json"


def save_checkpoint(
    folder: Path,
    step: int,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
    average: Average | None = None,
) -> Path:
    """Write `folder`/step-N atomically, then remove all but the `keep` newest."""
    path = folder / f"step-{step:09d}"
    with atomic_folder(path) as partial:
        save_model(model, partial)
        save_file(_optimizer_tensors(model, optimizer), partial / OPTIMIZER)
        if average:
            save_file({name: tensor.to("cpu").contiguous() for name, tensor in average.items()}, partial / AVERAGE)
        write_json(partial / STATE, {"step": step} | state)
        files = sorted(file for file in partial.iterdir() if file.is_file())
        write_json(partial / MANIFEST, {f.name: {"bytes": f.stat().st_size, "checksum": checksum(f)} for f in files})
    for old in sorted(folder.glob("step-*[0-9]"))[:-keep]:
        shutil.rmtree(old)
    for leftover in folder.glob(f"*{PARTIAL}"):
        shutil.rmtree(leftover)
    return path


def checkpoints(folder: Path) -> Iterator[Path]:
    """Whole checkpoints, newest first; a damaged one is passed over, aloud."""
    for path in sorted(folder.glob("step-*[0-9]"), reverse=True):
        fault = damage(path)
        if fault is None:
            yield path
        else:
            log(f"checkpoint {path.name} is damaged ({fault}); going back to the one before")


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    return next(checkpoints(folder), None)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file has the size and checksum of the manifest."""
    try:
        manifest = read_json(path / MANIFEST)
    except MachineError as error:
        return str(error)
    for name, expected in manifest.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, not {expected['bytes']}"
        if checksum(file) != expected["checksum"]:
            return f"{name} does not have its checksum"
    return None


def load_checkpoint(
    path: Path, model: Transformer, optimizer: torch.optim.Optimizer, average: Average | None = None
) -> dict[str, Any]:
    """Load weights, optimizer state and average into place; returns what was saved as `state`, with `step`.

    Raises:
        UserError: the checkpoint belongs to a model of another shape.
    """
    saved = load_model(path, average=False)
    if (theirs := _shape(saved)) != (ours := _shape(model)):
        changed = ", ".join(f"{key} {theirs[key]} -> {ours[key]}" for key in ours if theirs[key] != ours[key])
        raise UserError(f"{path}: a checkpoint of another shape ({changed}); use another run directory")
    model.load_state_dict(saved.state_dict())
    parameters = dict(model.named_parameters())
    for key_name, tensor in load_file(path / OPTIMIZER).items():
        key, _, name = key_name.partition(".")
        # fused AdamW keeps its step count on the parameter's device, like the moments
        optimizer.state[parameters[name]][key] = tensor.to(parameters[name].device)
    if average:
        for name, tensor in load_file(path / AVERAGE).items():
            average[name].copy_(tensor)
    return read_json(path / STATE)


def _shape(model: Transformer) -> dict[str, Any]:
    config = model.config
    names = ("vocab_size", "layers", "heads", "kv_heads", "hidden", "ffn", "tied_embeddings", "qk_norm")
    return {name: getattr(config, name) for name in names}


def _optimizer_tensors(model: Transformer, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{key}.{name}": value.detach().to("cpu").contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
