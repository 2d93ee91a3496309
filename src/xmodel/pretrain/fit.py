"""Does a micro-batch fit into memory? Found out before step 1: by dry runs on CUDA, by arithmetic on a CPU."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from xmodel.console import log
from xmodel.errors import UserError
from xmodel.model.counts import parameters
from xmodel.model.documents import model_inputs
from xmodel.model.memory import How, saved_at_the_end, saved_per_token, weight_copies
from xmodel.pretrain.parallel import Place
from xmodel.recipe.batches import batch_sizes
from xmodel.recipe.settings import Model, Pretrain

CPU_SHARE = 0.5  # of the memory that is free on a CPU: training is not alone there, and nothing catches an overrun
OPTIMIST = 1.5  # a trial may be this much larger than the estimate, which is an upper bound for a compiled block


def fit_micro_batch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    shape: Model,
    settings: Pretrain,
    place: Place,
    document_end: int | None = None,
) -> int:
    """The micro-batch of this run: that of the recipe, if it fits; with `micro_batch: 0` the largest that does.

    Forward and backward passes of full size show it (and errors of compilation) before step 1; memory that the
    optimizer will take at its first step is kept free meanwhile. On a CPU one pass runs, and memory is estimated:
    there, too much does not fail but makes the machine crawl. All ranks call this and get the same answer.

    Args:
        model: as it will be trained: compiled, wrapped, with gradients empty.
        document_end: as for `model_inputs`.

    Raises:
        UserError: the recipe's micro-batch does not fit; names the largest that does.
    """
    share, wanted = math.gcd(*batch_sizes(settings)) // place.world, settings.micro_batch
    fixed, each = memory_estimate(shape, settings)
    # Gradients are as large as this rank's weights; the first step of the optimizer makes two moments of that size.
    local = (getattr(p, "to_local", lambda p=p: p)() for p in model.parameters())  # FSDP's parameters are shards
    gradients = sum(tensor.nbytes for tensor in local)
    moments = 0 if optimizer.state else 2 * gradients
    if place.device.type == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(place.device)[0]
        fitting = max(1, int(OPTIMIST * (free - moments - gradients) / each))
    else:
        fitting = int((CPU_SHARE if wanted == 0 else 1) * (available_memory() / _ranks_here(place) - fixed) / each)
    fitting = agreed_least(fitting, place)

    def fits(micro: int) -> bool:
        if place.device.type == "cpu" and micro > fitting:
            return False
        passed = dry_run(model, micro, shape.context_length, place.device, moments, document_end)
        return agreed_least(int(passed), place) > 0

    if wanted and fits(wanted):
        return wanted
    most = min(wanted - 1, fitting) if wanted else fitting
    found = largest_fitting([micro for micro in divisors(share) if micro <= max(most, 1)], fits)
    if found is None:
        raise UserError(
            f"pretrain.micro_batch: not even one sequence of {shape.context_length} tokens fits into memory (about "
            f"{(fixed + each) / 1e9:.3g} GB); use a smaller model, more devices or activation_checkpointing=full"
        )
    if wanted:
        raise UserError(
            f"pretrain.micro_batch: {wanted} sequences of {shape.context_length} tokens do not fit into memory; "
            f"the largest that does is {found}"
        )
    log(f"pretrain: micro-batch of {found}, the largest divisor of {share} that fits")
    return found


def largest_fitting(candidates: Iterable[int], fits: Callable[[int], bool]) -> int | None:
    """The largest candidate that fits, tried from the largest down; None when none does."""
    return next((micro for micro in sorted(candidates, reverse=True) if fits(micro)), None)


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def memory_estimate(shape: Model, settings: Pretrain) -> tuple[int, int]:
    """Bytes that a training step takes: whatever the micro-batch is, and for each of its sequences.

    Weights, gradients and two moments in float32, copies of the weights as the products take them, the head's gradient,
    which is made whole before it is added; and activations as an eager step keeps them: a compiled one keeps less.
    """
    how = How(settings.precision, compiled=False, checkpointing=settings.activation_checkpointing)
    at_once = shape.layers if how.checkpointing == "none" else 1  # blocks whose copies of the weights live together
    per_token, once = saved_at_the_end(shape, how)
    per_token += saved_per_token(shape, how) * shape.layers
    if how.checkpointing != "none":  # what the backward pass makes again of the block that it is in
        per_token += saved_per_token(shape, how._replace(checkpointing="none"))
    fixed = 16 * parameters(shape)["total"] + weight_copies(shape, how) * at_once + once
    return fixed, per_token * shape.context_length


def dry_run(
    model: nn.Module,
    micro: int,
    length: int,
    device: torch.device,
    reserved: int = 0,
    document_end: int | None = None,
) -> bool:
    """One forward and backward pass of full size; False when it runs out of memory. Gradients are empty afterwards.

    Args:
        reserved: bytes to keep free meanwhile, on CUDA.
    """
    started = time.perf_counter()
    try:
        _pass(model, micro, length, device, reserved, document_end)
    except torch.OutOfMemoryError:
        passed = False
    else:
        passed = True
    # The exception held the frames, and they the tensors: only now can the memory be given back.
    for parameter in model.parameters():
        parameter.grad = None
    if not passed:
        gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    seconds, outcome = time.perf_counter() - started, "passed" if passed else "ran out of memory"
    log(f"pretrain: dry run of {micro} x {length} tokens {outcome} in {seconds:.1f}s")
    return passed


def _pass(
    model: nn.Module, micro: int, length: int, device: torch.device, reserved: int, document_end: int | None
) -> None:
    held = torch.empty(reserved if device.type == "cuda" else 0, dtype=torch.uint8, device=device)
    rows_BT1 = torch.zeros(micro, length + 1, dtype=torch.int64, device=device)
    quiet = getattr(model, "no_sync", contextlib.nullcontext)  # of DistributedDataParallel
    with quiet():
        model(**model_inputs(rows_BT1, document_end)).backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    del held


def agreed_least(value: int, place: Place) -> int:
    """The least value of all ranks."""
    if place.world == 1:
        return value
    values = torch.zeros(place.world, dtype=torch.int64, device=place.device)
    values[place.rank] = value
    return int(place.sum(values).min())


def available_memory() -> int:
    """Bytes of main memory that a process may still take, by the kernel's and the container's account."""
    info = Path("/proc/meminfo")
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    limit, used, parts = (group / f"memory.{name}" for name in ("max", "current", "stat"))
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        split = dict(line.split() for line in parts.read_text().splitlines()) if parts.exists() else {}
        dropped = int(split.get("inactive_file", 0))  # cached files: they give way
        free = min(free, int(most) - int(used.read_text()) + dropped)
    return max(free, 0)


def _ranks_here(place: Place) -> int:
    """Ranks that share this machine's memory, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", place.world))
