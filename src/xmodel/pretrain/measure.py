"""How fast this machine trains: the real passes and the real update, timed on random tokens for some seconds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import torch

from xmodel.console import count, log
from xmodel.errors import UserError
from xmodel.hardware import Gpu, of_device
from xmodel.model.counts import flops_per_token, parameters
from xmodel.model.transformer import compile_model
from xmodel.pretrain.flops import peak_flops
from xmodel.pretrain.optim import clip_grad_norm, guarded_step, make_optimizer
from xmodel.pretrain.training import DTYPES, new_model
from xmodel.recipe.presets import PRESETS, expand
from xmodel.recipe.settings import Model, Recipe

STATE_BYTES = 24  # a parameter's weight, gradient and moments in float32, and what a pass makes of it
SLOWEST_PASS = 1 / 8  # of the time given
EXPECTED_MFU = 0.3  # for choosing a shape that this machine can do in time
SHORT = 512  # tokens of a sequence of a smaller shape


def measure(recipe: Recipe, seconds: float = 20.0) -> dict[str, Any]:
    """Time forward, backward, clipping and AdamW in the recipe's precision on this machine's device.

    A GPU runs the recipe's shape and micro-batch (a smaller one where that does not fit). A CPU that is too slow for it
    runs the largest preset of the same family that it can do in time, one sequence at a time.

    Returns:
        gpu (of this machine, as a row of the table), same_shape, model, micro_batch, compiled, pass_seconds,
        update_seconds, tokens_per_second and mfu_palm of whole steps with the recipe's batch on this one device.

    Raises:
        UserError: not even one sequence fits.
    """
    train = recipe.pretrain
    device = torch.device("cuda" if train.device != "cpu" and torch.cuda.is_available() else "cpu")
    dtype = DTYPES[train.precision]
    peak, peak_source = peak_flops(device, dtype)
    shape, micro = recipe.model, train.micro_batch or 1
    if device.type == "cpu":
        shape = smaller_shape(shape, peak, seconds)
        micro = micro if shape == recipe.model and in_time(shape, peak, seconds, micro) else 1
    compiled = train.compile == "on" or (train.compile == "auto" and device.type == "cuda")
    log(
        f"plan: measures {count(parameters(shape)['total'])} parameters at {shape.context_length} tokens on "
        f"{device.type} for about {seconds:.0f}s{', after compiling' if compiled else ''}"
    )
    model = new_model(shape, train, recipe.seed, device)
    optimizer = make_optimizer(model, train)
    if compiled:
        compile_model(model)

    def one_pass() -> None:
        rows_BT = torch.randint(shape.vocab_size, (micro, shape.context_length + 1), device=device)
        (model(rows_BT[:, :-1], targets_BT=rows_BT[:, 1:]) / rows_BT[:, 1:].numel()).backward()

    def update() -> None:
        guarded_step(optimizer, clip_grad_norm(model.parameters(), train.clip))

    while True:
        try:
            one_pass()
            break
        except torch.OutOfMemoryError:
            if micro == 1:
                raise UserError("plan --measure: one sequence does not fit into this GPU's memory") from None
            micro //= 2
            optimizer.zero_grad()
            torch.cuda.empty_cache()
    pass_seconds = _timed(one_pass, 0.8 * seconds, device)
    update_seconds = _timed(update, 0.2 * seconds, device)
    passes = train.global_batch * recipe.model.context_length / (micro * shape.context_length)
    speed = passes * micro * shape.context_length / (passes * pass_seconds + update_seconds)
    return {
        "gpu": _this_machine(device, peak),
        "peak_source": peak_source,
        "same_shape": shape == recipe.model,
        "model": asdict(shape),
        "micro_batch": micro,
        "compiled": compiled,
        "pass_seconds": pass_seconds,
        "update_seconds": update_seconds,
        "tokens_per_second": speed,
        "mfu_palm": speed * flops_per_token(shape, shape.context_length)[0] / peak,
    }


def smaller_shape(model: Model, peak: float, seconds: float) -> Model:
    """The shape itself, or the largest preset whose pass over one sequence this machine can do in the time given."""

    if in_time(model, peak, seconds):
        return model
    bare = replace(model, layers=0, heads=0, kv_heads=0, hidden=0, ffn=0, position_table=0)
    bare.context_length = min(model.context_length, SHORT)
    total = parameters(model)["total"]
    ladder = [expand(replace(bare, preset=name), model.vocab_size) for name in PRESETS]
    smaller = [shape for shape in ladder if parameters(shape)["total"] <= total]
    return next((shape for shape in reversed(smaller) if in_time(shape, peak, seconds)), ladder[0])


def in_time(shape: Model, peak: float, seconds: float, micro: int = 1) -> bool:
    """Whether this CPU can be expected to do several passes in the time given, and holds the model."""
    flops = flops_per_token(shape, shape.context_length)[1] * shape.context_length * micro
    fits = STATE_BYTES * parameters(shape)["total"] < _memory() / 2
    return fits and flops / (EXPECTED_MFU * peak) < SLOWEST_PASS * seconds


def _timed(work: Callable[[], None], seconds: float, device: torch.device) -> float:
    """Median seconds of `work`, after one time that does not count."""
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 4 or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return median(times[1:])


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _this_machine(device: torch.device, peak: float) -> Gpu:
    """This machine's device as a row of the table: its peak is the one that MFU is a share of."""
    if device.type == "cpu":
        return Gpu("this CPU", "cpu", peak, None, float(_memory()), 0.0, None)
    name = torch.cuda.get_device_name(device)
    known = of_device(name)
    memory = float(torch.cuda.get_device_properties(device).total_memory)
    return known._replace(memory=memory) if known else Gpu(name, "unknown", peak, None, memory, 0.0, None)
