"""Weights in a pickle (`.bin`), read by torch's weights-only reader: it builds tensors and runs no code."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from xmodel.errors import MachineError, UserError


def unpickled(path: Path) -> Iterator[tuple[str, Tensor]]:
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
