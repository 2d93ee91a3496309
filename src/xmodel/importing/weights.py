"""Weights from the files of others into one safetensors file, a tensor at a time.

The files are mapped, not read: what is held in memory is the tensor at hand, so a model of any size can be copied. A
pickle (`.bin`) is unpickled by torch's weights-only reader, which builds tensors and runs no code.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xmodel.errors import MachineError, UserError
from xmodel.files import read_json, write_json
from xmodel.model.checkpoint_io import CONFIG, DERIVED, INDEX, WEIGHTS, read_tensors
from xmodel.model.config import to_hf
from xmodel.model.transformer import Transformer
from xmodel.recipe.settings import Model

PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # as safetensors writes them
LIKELY = (WEIGHTS, INDEX, PICKLE, PICKLE_INDEX)

Tensors = Callable[
    [], Iterator[tuple[str, Tensor]]
]  # every call goes through all of them again; mapped, so for nothing


def find_weights(folder: Path) -> tuple[list[str], Tensors]:
    """The files that hold a folder's weights, and how to go through them; safetensors come before pickles.

    Raises:
        UserError: there are none.
        MachineError: a shard that the index names is missing, or the index is damaged.
    """
    for name in LIKELY:
        if (folder / name).is_file():
            files: list[str] = _shards(folder / name) if name.endswith(".json") else [name]
            if missing := [file for file in files if not (folder / file).is_file()]:
                raise MachineError(
                    f"{folder}: {len(missing)} of {len(files)} files are missing that {name} names, "
                    f"the first is {missing[0]}; copy the folder again"
                )
            if name in (WEIGHTS, INDEX):
                return files, partial(read_tensors, folder, average=False)
            return files, partial(_all_unpickled, [folder / file for file in files])
    seen = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise UserError(f"{folder}: holds no weights ({' or '.join(LIKELY)}); it holds {seen}")


def copy_weights(config: Model, tensors: Tensors, where: Path, folder: Path) -> dict[str, Any]:
    """Write config.json and model.safetensors of a model into `folder`, from the tensors of `where`.

    The number format stays as it is. Rotary frequencies, which follow from the configuration, and a stored copy of a
    tied head are left out.

    Returns:
        parameters, and dtype: the formats of the tensors.

    Raises:
        UserError: the tensors are not those of the shape, or are quantised.
        MachineError: a file is damaged, or a tensor holds infinities or values that are not numbers.
    """
    with torch.device("meta"):
        expected = {name: list(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}

    def wanted() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors():
            if not name.endswith(DERIVED) and not (config.tied_embeddings and name == "lm_head.weight"):
                yield name, tensor

    found: dict[str, tuple[torch.dtype, int]] = {}
    for name, tensor in wanted():
        if name not in expected:
            raise UserError(
                f"{where}: tensor {name} has no place in the {config.layers}-layer Llama of its {CONFIG}; "
                "other architectures (biases, experts, adapters) cannot be imported"
            )
        if list(tensor.shape) != expected[name]:
            raise UserError(
                f"{where}: tensor {name} has shape {list(tensor.shape)}, but {CONFIG} makes it {expected[name]}"
            )
        if tensor.dtype not in DTYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{where}: tensor {name} is {kind}; import takes float32, bfloat16 and float16")
        found[name] = tensor.dtype, tensor.numel()
    if missing := sorted(expected.keys() - found.keys()):
        raise UserError(f"{where}: {len(missing)} tensors of its {CONFIG} are missing, the first is {missing[0]}")
    starts = _write_header(folder / WEIGHTS, found, expected)
    with open(folder / WEIGHTS, "r+b") as stream:
        for name, tensor in wanted():
            if not torch.isfinite(tensor.sum(dtype=torch.float32)):  # no mask as large as the tensor
                raise MachineError(f"{where}: tensor {name} holds values that are not finite; the file is damaged")
            stream.seek(starts[name])
            stream.write(tensor.contiguous().view(torch.uint8).numpy().data)  # bytes as they are
    kinds = sorted({str(dtype).removeprefix("torch.") for dtype, _ in found.values()})
    main = max(found.values(), key=lambda entry: entry[1])[0]  # of the largest tensor
    torch_dtype = str(main).removeprefix("torch.")
    write_json(folder / CONFIG, to_hf(config) | {"dtype": torch_dtype, "torch_dtype": torch_dtype})
    return {"parameters": sum(size for _, size in found.values()), "dtype": " and ".join(kinds)}


def _write_header(
    path: Path, found: dict[str, tuple[torch.dtype, int]], shapes: dict[str, list[int]]
) -> dict[str, int]:
    """Begin a safetensors file: its header, and room for the tensors; where each of them starts."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(found, key=lambda name: (-found[name][0].itemsize, name)):  # so that all lie aligned
        dtype, size = found[name]
        end = offset + size * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": shapes[name], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + offset)
    return {name: 8 + len(text) + header[name]["data_offsets"][0] for name in found}


def _shards(index: Path) -> list[str]:
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise MachineError(f"{index}: damaged (it has no weight_map)")
    files = sorted(set(map(str, names.values())))
    if outside := [file for file in files if Path(file).name != file]:
        raise UserError(f"{index}: names {outside[0]}, which is not a file beside it")
    return files


def _all_unpickled(paths: list[Path]) -> Iterator[tuple[str, Tensor]]:
    for path in paths:
        yield from _unpickled(path)


def _unpickled(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a `.bin` file, mapped where its format allows (torch 1.6 and later).

    Raises:
        UserError: the pickle asks for anything but tensors; nothing of it was run.
        MachineError: the file is cut off or no pickle.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global|class) [`']?([\w.]+)", str(error))
        if found:
            raise UserError(
                f"{path}: refused: its pickle wants to run {found[1]}, and weights need no code; nothing of it was run"
            ) from None
        raise MachineError(f"{path}: damaged, or not a file of weights ({_first_line(error)})") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise MachineError(f"{path}: damaged, or not a file of weights ({_first_line(error)})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: is no state dict (tensors by their names)")
    for name in list(state):
        yield name, state.pop(name)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
