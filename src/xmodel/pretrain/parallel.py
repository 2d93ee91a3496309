"""Which device this process trains on, and which of how many ranks it is. The same under plain python and torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from xmodel.errors import UserError
from xmodel.recipe.settings import Pretrain


@dataclass(frozen=True)
class Place:
    """This process among all training processes."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this rank writes files and log lines."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values


@contextmanager
def placed(settings: Pretrain) -> Iterator[Place]:
    """Find this process's place; under torchrun, join the process group and leave it at the end.

    Raises:
        UserError: the recipe asks for CUDA and there is none, or the world size does not divide the batch.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("pretrain.device: cuda, but torch finds no CUDA device here; use auto or cpu")
    use_cuda = settings.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if use_cuda else torch.device("cpu")
    accumulation(settings, world)  # refuse before any process group exists
    if use_cuda:
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if use_cuda else "gloo", device_id=device if use_cuda else None)
    try:
        yield Place(rank, world, device)
    finally:
        if world > 1:
            dist.destroy_process_group()


def accumulation(settings: Pretrain, world: int) -> int:
    """Forward passes per device and step. A micro-batch of 0, which is not decided yet, counts as 1.

    Raises:
        UserError: global_batch is not micro_batch × world × a whole number; names micro-batches that fit.
    """
    batch, micro = settings.global_batch, settings.micro_batch or 1
    if batch % world:
        raise UserError(f"pretrain.global_batch: {batch} sequences cannot be shared equally by {world} processes")
    if (batch // world) % micro:
        share = batch // world
        fitting = [size for size in range(1, share + 1) if share % size == 0]
        near = sorted(sorted(fitting, key=lambda size: abs(size - micro))[:3])
        raise UserError(
            f"pretrain.micro_batch: {micro} does not divide the {share} sequences of each of {world} processes "
            f"(global_batch {batch}); {', '.join(map(str, near))} would"
        )
    return batch // world // micro
