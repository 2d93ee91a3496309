"""A model folder: config.json and safetensors, as Hugging Face transformers has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xmodel.errors import MachineError, UserError
from xmodel.files import read_json, write_json
from xmodel.model.config import from_hf, to_hf
from xmodel.model.transformer import Transformer
from xmodel.recipe.settings import Model

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
AVERAGE = "average.safetensors"  # in a checkpoint of a run with `pretrain.average`: what is evaluated and exported
DERIVED = ".rotary_emb.inv_freq"  # old Llama checkpoints store the rotary frequencies, which follow from the config


def save_model(model: Transformer, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write config.json and model.safetensors into an existing `folder` (not atomic: the caller renames it).

    Args:
        dtype: number format of the weights in the file; None: as they are.
    """
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_weights(model.config, state, folder)


def save_weights(config: Model, state: dict[str, Tensor], folder: Path) -> None:
    """Write config.json and the tensors of a state dict, on the CPU, as model.safetensors; see `save_model`."""
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    torch_dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
    write_json(folder / CONFIG, to_hf(config) | {"dtype": torch_dtype, "torch_dtype": torch_dtype})


def load_model(
    folder: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", average: bool = True
) -> Transformer:
    """A model from a folder with config.json and model.safetensors (or shards with an index), in evaluation mode.

    Args:
        average: take the averaged weights where the folder has them; False: those that training goes on with.
        dtype: of parameters and of `compute_dtype`.

    Raises:
        UserError: the folder is not a checkpoint, or its tensors do not fit its config.json.
        MachineError: a file is missing or damaged.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no {CONFIG}; a checkpoint folder holds {CONFIG} and {WEIGHTS}")
    config = from_hf(read_json(folder / CONFIG))
    with torch.device("meta"):
        model = Transformer(config)
    expected = model.state_dict()
    state: dict[str, Tensor] = {}
    for name, tensor in read_tensors(folder, average):
        if name.endswith(DERIVED) or (config.tied_embeddings and name == "lm_head.weight"):
            continue
        if name not in expected:
            raise UserError(f"{folder}: tensor {name} has no place in the {config.layers}-layer model of its {CONFIG}")
        if tensor.shape != expected[name].shape:
            stored, wanted = list(tensor.shape), list(expected[name].shape)
            raise UserError(f"{folder}: tensor {name} has shape {stored}, but {CONFIG} makes it {wanted}")
        state[name] = tensor.to(device, dtype)
    if missing := sorted(expected.keys() - state.keys()):
        raise UserError(f"{folder}: {len(missing)} tensors of its {CONFIG} are missing, the first is {missing[0]}")
    model.load_state_dict(state, assign=True)
    model.rotary = model.rotary.to(device)
    model.compute_dtype = dtype
    return model.eval()


def read_tensors(folder: Path, average: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder's safetensors files, one after another, on the CPU."""
    if average and (folder / AVERAGE).is_file():
        files = [AVERAGE]
    elif (folder / INDEX).is_file():
        files = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    elif (folder / WEIGHTS).is_file():
        files = [WEIGHTS]
    else:
        raise UserError(f"{folder}: neither {WEIGHTS} nor {INDEX}; a checkpoint folder holds one of them")
    for file in files:
        try:
            with safe_open(folder / file, framework="pt", device="cpu") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dictionary)
                    yield name, tensors.get_tensor(name)
        except FileNotFoundError:
            raise MachineError(f"{folder / file}: missing, though {INDEX} names it") from None
        except (SafetensorError, json.JSONDecodeError) as error:
            raise MachineError(f"{folder / file}: damaged ({error})") from None
