"""Held-out loss, in evaluation mode and without recompiling for its shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from xmodel.model.transformer import Transformer
from xmodel.pretrain.data import ValidationData
from xmodel.pretrain.parallel import Place


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, and no recompilation for its many shapes."""
    model.eval()
    torch.compiler.set_stance("force_eager")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.compiler.set_stance("default")
        model.train()


def validate(model: Transformer, data: ValidationData, place: Place) -> list[dict[str, Any]]:
    """Loss (nats per token) and bits per UTF-8 byte of the held-out text, by language; shared among the ranks."""
    rows = []
    for language in data.windows:
        total = torch.zeros((), dtype=torch.float64, device=place.device)
        for inputs in data.batches(language, place.rank, place.world):
            total += model.loss(**{name: tensor.to(place.device) for name, tensor in inputs.items()})
        nats = place.sum(total).item()
        tokens, size = data.tokens[language], data.bytes[language]
        rows.append({"language": language, "loss": nats / tokens, "bits_per_byte": nats / math.log(2) / size})
    return rows
