"""A folder that Hugging Face transformers, vLLM and others take as it is: LlamaForCausalLM in safetensors."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from xmodel.errors import MachineError
from xmodel.export.card import model_card
from xmodel.files import read_json, write_json
from xmodel.model.checkpoint_io import load_model, save_model
from xmodel.recipe.settings import Export
from xmodel.tokenizer.codec import Tokenizer

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
)  # the run's: they add <s> or not


def export_hf(run_folder: Path, checkpoint: Path, folder: Path, settings: Export) -> None:
    """Write a checkpoint of a run, its tokenizer and a model card with the run's figures into an existing `folder`.

    Args:
        checkpoint: folder with config.json and model.safetensors.
        settings: number format and licence.

    Raises:
        UserError: the checkpoint is not one.
        MachineError: a file of the run is missing or damaged.
    """
    tokenizer = Tokenizer.load(run_folder / "tokenizer")
    model = load_model(checkpoint, dtype=DTYPES[settings.dtype])
    save_model(model, folder)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}  # of somebody else's, not 1 and 2
    write_json(folder / "config.json", read_json(folder / "config.json") | ids)
    for name in TOKENIZER_FILES:
        source = run_folder / "tokenizer" / name
        if not source.is_file():
            if name == "tokenizer.model" and (run_folder / "tokenizer" / "codec.json").is_file():
                continue  # a tokenizer.json of somebody else (tokenizer.path), which has no such file
            raise MachineError(f"{source}: missing; `xmodel tokenizer {run_folder} --redo tokenizer` makes it again")
        shutil.copyfile(source, folder / name)
    write_json(folder / "generation_config.json", ids | {"pad_token_id": tokenizer.eos_id})
    (folder / "README.md").write_text(model_card(run_folder, checkpoint, settings), encoding="utf-8")
