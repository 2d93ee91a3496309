"""A folder that Hugging Face transformers, vLLM and others take as it is: Llama or Qwen3 in safetensors."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from xmodel.errors import MachineError
from xmodel.export.card import model_card
from xmodel.files import write_json
from xmodel.model.checkpoint_io import write_config
from xmodel.model.weight_stream import stored_weights, write_safetensors
from xmodel.recipe.settings import Export
from xmodel.tokenizer.codec import Tokenizer

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
)  # the run's: they add <s> or not


def export_hf(run_folder: Path, checkpoint: Path, folder: Path, settings: Export, loaded_as: str = "PATH") -> None:
    """Write a checkpoint of a run, its tokenizer and a model card with the run's figures into an existing `folder`.

    The weights go from file to file tensor by tensor: memory is that of the largest tensor, whatever the model.

    Args:
        checkpoint: folder with config.json and model.safetensors.
        settings: number format, size of a shard, licence.
        loaded_as: what the card says to load, OWNER/NAME of the hub if it goes there.

    Raises:
        UserError: the checkpoint is not one.
        MachineError: a file of the run is missing or damaged.
    """
    tokenizer = Tokenizer.load(run_folder / "tokenizer")
    weights, dtype = stored_weights(checkpoint), DTYPES[settings.dtype]
    write_safetensors(folder, weights.shapes, weights.tensors(dtype), dtype, settings.shard_size)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}  # of somebody else's, not 1 and 2
    write_config(weights.config, dtype, folder, **ids)
    for name in TOKENIZER_FILES:
        source = run_folder / "tokenizer" / name
        if not source.is_file():
            if name == "tokenizer.model" and (run_folder / "tokenizer" / "codec.json").is_file():
                continue  # a tokenizer.json of somebody else (tokenizer.path), which has no such file
            raise MachineError(f"{source}: missing; `xmodel tokenizer {run_folder} --redo tokenizer` makes it again")
        shutil.copyfile(source, folder / name)
    write_json(folder / "generation_config.json", ids | {"pad_token_id": tokenizer.eos_id})
    (folder / "README.md").write_text(model_card(run_folder, checkpoint, settings, loaded_as), encoding="utf-8")
