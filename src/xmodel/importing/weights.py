"""Weights from the files of others into one safetensors file, a tensor at a time.

The files are mapped, not read: what is held in memory is the tensor at hand, so a model of any size can be copied.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xmodel.errors import MachineError, UserError
from xmodel.files import write_json
from xmodel.model.checkpoint_io import CONFIG, DERIVED, WEIGHTS, read_tensors, weight_files
from xmodel.model.config import to_hf
from xmodel.model.transformer import Transformer
from xmodel.recipe.settings import Model

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # as safetensors writes them

Tensors = Callable[
    [], Iterator[tuple[str, Tensor]]
]  # every call goes through all of them again; mapped, so for nothing


def find_weights(folder: Path) -> tuple[list[str], Tensors]:
    """The files that hold a folder's weights, and how to go through them. Raises as `weight_files`."""
    files = [file.name for file in weight_files(folder, average=False, pickles=True)]
    return files, partial(read_tensors, folder, average=False)


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
