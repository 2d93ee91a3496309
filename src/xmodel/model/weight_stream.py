"""Weights that pass from folder to folder tensor by tensor, so that a model need not fit in memory to be written anew.

What `checkpoint_io` does for a model that is in memory, this does for one that is not: the headers of safetensors files
say what there is, each tensor is read when it is its turn, and the file that is written begins with a header made from
the shapes alone (https://huggingface.co/docs/safetensors: 8 bytes of length, JSON of names to dtype, shape and offsets,
then the tensors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from xmodel.files import write_json
from xmodel.model.checkpoint_io import (
    INDEX,
    WEIGHTS,
    belongs,
    check_complete,
    described_model,
    open_weights,
    weight_files,
)
from xmodel.recipe.settings import Model

DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class StoredWeights(NamedTuple):
    """The parameters of a folder; each is read from its file when it is asked for."""

    config: Model
    shapes: dict[str, tuple[int, ...]]  # in the order of the model's state dict
    read: Callable[[str], Tensor]  # name -> the tensor as it is stored, on the CPU

    def tensors(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """Every parameter in turn, in `dtype`."""
        for name in self.shapes:
            yield self.read(name).to(dtype)


def stored_weights(folder: Path, average: bool = True) -> StoredWeights:
    """What a folder with config.json and safetensors holds, checked by the files' headers alone.

    Args:
        average: take the averaged weights where the folder has them.

    Raises:
        UserError, MachineError: as `load_model`.
    """
    model = described_model(folder)
    expected = model.state_dict()
    files: dict[str, Path] = {}
    for file in weight_files(folder, average):
        with open_weights(file) as stored:
            for name in stored.keys():  # noqa: SIM118 (not a dictionary)
                if belongs(name, stored.get_slice(name).get_shape(), expected, folder):
                    files[name] = file
    check_complete(files, expected, folder)

    def read(name: str) -> Tensor:
        # Opened for each: the file is mapped into memory, and its pages count as ours until the mapping is dropped,
        # which is when the tensor is.
        with open_weights(files[name]) as stored:
            return stored.get_tensor(name)

    return StoredWeights(model.config, {name: tuple(tensor.shape) for name, tensor in expected.items()}, read)


def write_safetensors(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], tensors: Iterator[Tensor], dtype: torch.dtype, most: int
) -> None:
    """Write model.safetensors into an existing `folder`; above `most` bytes in shards, with their index.

    A shard is at most `most` bytes of tensors, or one tensor that is larger. Names are those that transformers expects.

    Args:
        shapes: of every tensor, by name.
        tensors: contiguous, in the order of `shapes` and of `dtype`; each may be freed when the next is asked for.
    """
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    room = most
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= size
    count = len(shards)
    named = [WEIGHTS] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for file, names in zip(named, shards, strict=True):
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in names:
            start, end = end, end + sizes[name]
            header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shapes[name]), "data_offsets": [start, end]}
        written = json.dumps(header, separators=(",", ":")).encode()
        written += b" " * (-len(written) % 8)  # tensors begin at a multiple of 8 bytes
        with open(folder / file, "wb") as stream:
            stream.write(len(written).to_bytes(8, "little") + written)
            for name in names:
                tensor = next(tensors)
                assert tensor.shape == shapes[name]
                assert tensor.dtype == dtype
                tensor.contiguous().view(torch.uint8).numpy().tofile(stream)
                del tensor  # before the next one is made
    if count > 1:
        places = {name: file for file, names in zip(named, shards, strict=True) for name in names}
        total = {"total_size": sum(sizes.values()), "total_parameters": sum(map(math.prod, shapes.values()))}
        write_json(folder / INDEX, {"metadata": total, "weight_map": places})
