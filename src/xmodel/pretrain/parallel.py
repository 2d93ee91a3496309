"""Which device this process trains on, which of how many ranks it is, and how the model is spread over them.

The same program runs under plain python and under torchrun, on one machine or several. `pretrain.parallel`:

| setting | weights between passes | gradients | optimizer | traffic in a step |
|---|---|---|---|---|
| `ddp` | whole | whole | whole | one all-reduce |
| `zero2` | whole in a step, then shards | whole, then shards | shards | one all-gather, one reduce-scatter |
| `fsdp` | shards, one block whole at a time | shards | shards | two all-gathers and a reduce-scatter a pass |

The last two are FSDP2 (arXiv 2304.11277; `torch.distributed.fsdp.fully_shard`). Shards are float32 and travel so: sent
as bfloat16 the gains of the norms and the residual stream would lose digits that they keep on one device.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from xmodel.errors import Interrupted, MachineError, UserError
from xmodel.model.transformer import Transformer
from xmodel.recipe.batches import batch_sizes
from xmodel.recipe.settings import Pretrain


@dataclass(frozen=True)
class Place:
    """This process among all training processes."""

    rank: int
    world: int
    device: torch.device
    behind: dist.ProcessGroup | None = None  # all ranks over the CPU, for what threads do behind the training

    @property
    def first(self) -> bool:
        """Whether this rank writes files and log lines."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values


@contextmanager
def placed(settings: Pretrain) -> Iterator[Place]:
    """Find this process's place; under torchrun, join the process group and leave it at the end.

    Raises:
        UserError: the recipe asks for CUDA and there is none, or the world size does not divide the batch.
        MachineError: another rank died, or did not answer for `pretrain.timeout_minutes`.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("pretrain.device: cuda, but torch finds no CUDA device here; use auto or cpu")
    use_cuda = settings.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if use_cuda else torch.device("cpu")
    accumulation(settings, world)  # refuse before any process group exists
    if use_cuda:
        torch.cuda.set_device(device)
    if world == 1:
        yield Place(rank, world, device)
        return
    timeout, left_well = timedelta(minutes=settings.timeout_minutes), False
    try:
        dist.init_process_group("nccl" if use_cuda else "gloo", timeout=timeout, device_id=device if use_cuda else None)
        behind = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timeout))
        yield Place(rank, world, device, behind)
        left_well = True
    except Interrupted:
        left_well = True
        raise
    except RuntimeError as error:
        if not lost_another_rank(error):
            raise
        raise MachineError(
            f"rank {rank}: another training process died, or did not answer for pretrain.timeout_minutes = "
            f"{settings.timeout_minutes:g} ({' '.join(str(error).split())[:160]}); the same command goes on from the "
            "newest checkpoint, and pretrain.max_restarts lets it do so by itself"
        ) from error
    finally:
        if left_well:  # with a rank lost this would wait for it
            dist.destroy_process_group()


def lost_another_rank(error: RuntimeError) -> bool:
    """Whether the error says that a collective failed because of another process."""
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo/", "NCCL"))


def accumulation(settings: Pretrain, world: int) -> int:
    """Forward passes per device and step of `global_batch` (the stages of a batch warm-up have fewer).

    A micro-batch of 0, which is not decided yet, counts as 1.

    Raises:
        UserError: a batch is not micro_batch × world × a whole number; names micro-batches that fit.
    """
    micro, sizes = settings.micro_batch or 1, batch_sizes(settings)
    for batch in sizes:
        name = "global_batch" if batch == settings.global_batch else "batch_warmup"
        if batch % world:
            raise UserError(f"pretrain.{name}: {batch} sequences cannot be shared equally by {world} processes")
        if (batch // world) % micro:
            share = math.gcd(*(size // world for size in sizes))
            fitting = [size for size in range(1, share + 1) if share % size == 0]
            near = sorted(sorted(fitting, key=lambda size: abs(size - micro))[:3])
            raise UserError(
                f"pretrain.micro_batch: {micro} does not divide the {batch // world} sequences of each of {world} "
                f"processes ({name} {batch}); {', '.join(map(str, near))} would"
            )
    return settings.global_batch // world // micro


def distributed(model: Transformer, place: Place, settings: Pretrain) -> nn.Module:
    """The model as training calls it, spread over all ranks; the gradients of its last pass are averaged over them.

    To be called before the optimizer is made: FSDP2 puts shards (DTensor) in the place of the model's parameters.
    """
    if place.world == 1:
        return model
    if settings.parallel == "ddp":
        # The table of rotary positions is the same everywhere: not to be sent around in every pass.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["rotary"])
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    whole_between_passes = settings.parallel == "zero2"
    mesh = init_device_mesh(place.device.type, (place.world,))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh, reshard_after_forward=not whole_between_passes)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)  # embedding, head and last norm: used at both ends
    return model


def last_pass(trained: nn.Module, settings: Pretrain, last: bool) -> AbstractContextManager[None]:
    """Around a forward and backward pass: only a step's last one (`last`) has to join the ranks' gradients.

    `fsdp` joins them in every pass, so that no rank ever holds the gradients of more than one block.
    """
    if isinstance(trained, DistributedDataParallel):
        return nullcontext() if last else trained.no_sync()
    if isinstance(trained, FSDPModule) and settings.parallel == "zero2":
        trained.set_is_last_backward(last)
        trained.set_requires_gradient_sync(last)
        trained.set_reshard_after_backward(last)
    return nullcontext()


def gathered(model: Transformer) -> Transformer:
    """The model with all weights whole in this process, for evaluation: a copy where it is sharded (a collective).

    Each rank may use it by itself, as often as it likes; the shards' own hooks would wait for the other ranks.
    """
    if not isinstance(model, FSDPModule):
        return model
    with torch.device("meta"):
        copy = Transformer(model.config)
    copy.load_state_dict({name: whole(tensor).detach() for name, tensor in model.state_dict().items()}, assign=True)
    copy.rotary, copy.compute_dtype = model.rotary, model.compute_dtype
    return copy


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; a collective if it is."""
    return cast(Tensor, tensor.full_tensor()) if isinstance(tensor, DTensor) else tensor
