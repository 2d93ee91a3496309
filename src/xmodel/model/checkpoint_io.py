"""A model folder: config.json and safetensors, as Hugging Face transformers has them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xmodel.errors import MachineError, UserError
from xmodel.files import read_object, write_json
from xmodel.model.config import from_hf, to_hf
from xmodel.model.pickles import unpickled
from xmodel.model.transformer import Transformer
from xmodel.recipe.settings import Model

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
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
    write_config(config, next(iter(state.values())).dtype, folder)


def write_config(config: Model, dtype: torch.dtype, folder: Path, **more: Any) -> None:
    """Write config.json for weights of this dtype; `more` replaces or adds fields."""
    name = str(dtype).removeprefix("torch.")
    write_json(folder / CONFIG, to_hf(config) | {"dtype": name, "torch_dtype": name} | more)


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
    model = described_model(folder)
    expected = model.state_dict()
    state: dict[str, Tensor] = {}
    for name, tensor in read_tensors(folder, average):
        if belongs(name, tensor.shape, expected, folder):
            state[name] = tensor.to(device, dtype)
    check_complete(state, expected, folder)
    model.load_state_dict(state, assign=True)
    model.rotary = model.rotary.to(device)
    model.compute_dtype = dtype
    return model.eval()


def described_model(folder: Path) -> Transformer:
    """The model of a folder's config.json, on the meta device: shapes without memory.

    Raises:
        UserError: there is no config.json, or it is not a Llama's.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no {CONFIG}; a checkpoint folder holds {CONFIG} and {WEIGHTS}")
    with torch.device("meta"):
        return Transformer(from_hf(read_object(folder / CONFIG)))


def belongs(name: str, shape: Sequence[int], expected: Mapping[str, Tensor], folder: Path) -> bool:
    """Whether a stored tensor is a parameter of the model; False for what follows from others.

    Raises:
        UserError: the model has no such parameter, or one of another shape.
    """
    if name.endswith(DERIVED) or (name == "lm_head.weight" and name not in expected):
        return False
    if name not in expected:
        layers = sum(known.endswith(".input_layernorm.weight") for known in expected)
        raise UserError(f"{folder}: tensor {name} has no place in the {layers}-layer model of its {CONFIG}")
    if list(shape) != list(expected[name].shape):
        raise UserError(
            f"{folder}: tensor {name} has shape {list(shape)}, but {CONFIG} makes it {list(expected[name].shape)}"
        )
    return True


def check_complete(found: Mapping[str, Any], expected: Mapping[str, Tensor], folder: Path) -> None:
    """Raise UserError when parameters of the model are not among those found."""
    if missing := sorted(expected.keys() - found.keys()):
        raise UserError(f"{folder}: {len(missing)} tensors of its {CONFIG} are missing, the first is {missing[0]}")


def read_tensors(folder: Path, average: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder's files of weights, one after another, on the CPU. No code in a pickle is run."""
    for file in weight_files(folder, average, pickles=True):
        if file.suffix == ".bin":
            yield from unpickled(file)
            continue
        with open_weights(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dictionary)
                yield name, tensors.get_tensor(name)


def weight_files(folder: Path, average: bool = True, pickles: bool = False) -> list[Path]:
    """The files that hold a folder's weights; where it has several kinds, those that transformers takes.

    Args:
        average: the averaged weights of a checkpoint, where it has them.
        pickles: also `.bin` files, where there are no safetensors.

    Raises:
        UserError: there are none, or an index names files elsewhere.
        MachineError: an index is damaged, or names files that are missing.
    """
    names = (*((AVERAGE,) if average else ()), WEIGHTS, INDEX, *((PICKLE, PICKLE_INDEX) if pickles else ()))
    name = next((name for name in names if (folder / name).is_file()), None)
    if name is None:
        seen = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise UserError(f"{folder}: holds no weights ({WEIGHTS}, or shards with {INDEX}); it holds {seen}")
    if not name.endswith(".json"):
        return [folder / name]
    places = read_object(folder / name).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise MachineError(f"{folder / name}: damaged (it has no weight_map)")
    files = sorted(set(map(str, places.values())))
    if outside := [file for file in files if Path(file).name != file]:
        raise UserError(f"{folder / name}: names {outside[0]}, which is not a file beside it")
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise MachineError(
            f"{folder}: {len(missing)} of {len(files)} files are missing that {name} names, "
            f"the first is {missing[0]}; copy the folder again"
        )
    return [folder / file for file in files]


@contextmanager
def open_weights(file: Path) -> Iterator[Any]:
    """A safetensors file, open for reading; MachineError where it is missing or damaged."""
    try:
        with safe_open(file, framework="pt", device="cpu") as tensors:
            yield tensors
    except FileNotFoundError:
        raise MachineError(f"{file}: missing") from None
    except (SafetensorError, json.JSONDecodeError) as error:
        raise MachineError(f"{file}: damaged ({error})") from None
