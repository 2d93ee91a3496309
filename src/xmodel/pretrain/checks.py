"""What can be told before a model is made: batch, tokens and checkpoint have to fit the recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xmodel.console import count, log
from xmodel.errors import UserError
from xmodel.files import read_json
from xmodel.pretrain.branch import initial_weights
from xmodel.pretrain.checkpoint_files import STATE, refuse_other
from xmodel.pretrain.data import TrainingData
from xmodel.pretrain.parallel import accumulation
from xmodel.recipe.batches import samples_through
from xmodel.recipe.phases import mixture
from xmodel.recipe.settings import Recipe
from xmodel.tokens.shards import open_sources, verify

VERIFIED_BYTES = 4 << 30  # of shards that are verified without being asked: seconds; 4 TB would take an hour
MANY_EPOCHS = 4  # repeating text pays up to about here (arXiv 2305.16264)


def check_before(recipe: Recipe, tokens_folder: Path, run_folder: Path, world: int) -> TrainingData:
    """Refuse what cannot be trained.

    Returns:
        the data, opened.

    Raises:
        UserError: the world size does not divide the batch, token ids that the model has no embedding for, or a
            checkpoint of another shape, tokenizer or version.
        MachineError: a shard is missing or cut off.
    """
    accumulation(recipe.pretrain, world)
    manifest = read_json(tokens_folder / "manifest.json")
    if manifest["vocab_size"] > recipe.model.vocab_size:
        raise UserError(
            f"model.vocab_size: {recipe.model.vocab_size:,}, but {tokens_folder} has ids of a tokenizer with "
            f"{manifest['vocab_size']:,} pieces; set it to at least that"
        )
    saved = sorted((run_folder / "checkpoints").glob("step-*[0-9]"))
    if saved and (saved[-1] / STATE).is_file():
        refuse_other(saved[-1], recipe.model, manifest.get("tokenizer"))
    else:
        initial_weights(recipe, manifest.get("tokenizer"))
    length = recipe.model.context_length
    data = TrainingData(tokens_folder, mixture(recipe), recipe.seed, length, recipe.pretrain.packing)
    for name, source in open_sources(tokens_folder).items():
        if name not in data.sources:
            continue
        ids = source.read(0, min(source.tokens, 1 << 20))
        if (largest := int(np.max(ids))) >= recipe.model.vocab_size:
            raise UserError(
                f"model.vocab_size: {recipe.model.vocab_size:,}, but source {name!r} of {tokens_folder} has the id "
                f"{largest:,}; it was encoded with another tokenizer: run the tokens stage again (--redo tokens)"
            )
    return data


def log_epochs(recipe: Recipe, data: TrainingData) -> None:
    """Say how often each source will be read."""
    epochs = data.epochs(samples_through(recipe.pretrain.steps, recipe.pretrain))
    shown = ", ".join(f"{name} {count(round(times, 2))}" for name, times in epochs.items())
    often = [name for name, times in epochs.items() if times > MANY_EPOCHS]
    warning = f"; more than {MANY_EPOCHS} teach little: {', '.join(often)}" if often else ""
    log(f"pretrain: epochs of each source: {shown}{warning}")


def verify_tokens(recipe: Recipe, tokens_folder: Path, rank: int, world: int) -> None:
    """Compare checksums of the shards as `pretrain.verify_tokens` says; the ranks share the files out.

    Raises:
        MachineError: names the file that is damaged.
    """
    asked = recipe.pretrain.verify_tokens
    files = sorted(file for file in tokens_folder.rglob("*") if file.is_file())
    if asked == "always" or (asked == "auto" and sum(file.stat().st_size for file in files) <= VERIFIED_BYTES):
        verify(tokens_folder, rank, world)
