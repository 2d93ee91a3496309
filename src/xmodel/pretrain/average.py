"""An exponential moving average of the weights, which is evaluated and exported in their place.

Averaging over the last steps does what a lower learning rate would do, without one: Polyak averaging; for language
models see Kaddour (LAWA, arXiv 2306.03241) and Hägele et al. (arXiv 2405.18392, section 4). With every step in it,
and not every k-th checkpoint, it needs one copy of the weights.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from xmodel.recipe.settings import Pretrain

Average = dict[str, Tensor]  # by the parameters' names; on their devices, and sharded as they are


def start_average(model: nn.Module, settings: Pretrain) -> Average:
    """A copy of the weights, from which the average goes on; empty when the recipe asks for none."""
    if settings.average == "none":
        return {}
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@torch.no_grad()
def update_average(average: Average, model: nn.Module, step: int, settings: Pretrain) -> None:
    """Move the average towards the weights after step `step`; nothing to do for an empty one.

    Early on the decay is (1 + step) / (10 + step), so that the initial weights are soon forgotten. It is a function of
    the step alone, so that a run that goes on does the same.
    """
    if average:
        decay = min(settings.average_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in model.parameters()], 1 - decay)


@contextmanager
def in_place_of_weights(average: Mapping[str, Tensor], model: nn.Module) -> Iterator[None]:
    """Within, the model has the average as its weights; afterwards exactly its own again."""
    if not average:
        yield
        return
    weights = [p.detach() for p in model.parameters()]
    own = [w.clone() for w in weights]
    torch._foreach_copy_(weights, list(average.values()))
    try:
        yield
    finally:
        torch._foreach_copy_(weights, own)
