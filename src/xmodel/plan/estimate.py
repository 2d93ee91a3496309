"""A plan: what a recipe's training takes on given GPUs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from xmodel.errors import UserError
from xmodel.hardware import GPUS, Gpu
from xmodel.model.counts import flops_per_token, parameters
from xmodel.model.memory import How
from xmodel.plan.memory import GB, by_part, largest_micro_batch
from xmodel.recipe.presets import PRESETS, expand
from xmodel.recipe.settings import Model, Recipe

# PaLM MFU in bfloat16 that a plan assumes where nothing was measured, and why.
ASSUMED_MFU = {
    "hopper": (0.48, "published at about 1B: MosaicML 0.40, nanochat 0.50, Xmodel-LM 0.55"),
    "ampere": (0.55, "published at about 1B on A100: TinyLlama 0.56, MosaicML 0.56"),
}
ASSUMED_OTHERWISE = (0.40, "nothing published for this family; --measure finds out")
# Smaller models reach less: MosaicML's table (A100 40GB, sequence 2048) as shares of its 1B's MFU, by parameters.
SMALLER = ((125e6, 0.76), (356e6, 0.87), (760e6, 0.94), (1e9, 1.0))
FP8_SPEEDUP = 1.17  # over bfloat16, as others report for tensorwise scaling on Hopper
RECOMPUTE = {"none": 1.0, "selective": 0.97, "full": 0.76}  # speed left: full repeats the blocks' forward pass
POWER_SHARE = 0.85  # of the board power at most that training draws: an assumption


@dataclass(frozen=True)
class Setup:
    """What the training is planned on."""

    gpu: Gpu
    gpus: int
    how: How
    mfu: float  # PaLM, a share of the bf16 peak
    mfu_source: str
    scales: bool = False  # an assumed MFU is that of a 1B; smaller models reach less
    power_share: float = POWER_SHARE
    price: float | None = None  # of a GPU for an hour


def make_setup(
    recipe: Recipe,
    gpu: Gpu,
    gpus: int,
    *,
    precision: str | None = None,
    checkpointing: Any = None,
    parallel: str | None = None,
    mfu: tuple[float, str] | None = None,
    power_share: float = POWER_SHARE,
    price: float | None = None,
) -> Setup:
    """A setup with what the recipe and the table say where nothing else is given.

    Raises:
        UserError: the GPU has no such arithmetic.
    """
    precision = precision or recipe.pretrain.precision
    if precision == "fp32" and mfu is None:
        raise UserError("pretrain.precision: fp32 has no peak in the table of GPUs; plan with bf16, or with --measure")
    if precision == "fp8" and gpu.fp8 is None:
        raise UserError(f"--precision fp8: {gpu.name} has no fp8 arithmetic; use bf16")
    shared: str = parallel or recipe.pretrain.parallel
    again: Any = checkpointing or recipe.pretrain.activation_checkpointing
    how = How(precision, recipe.pretrain.compile != "off", again, shared, gpus)
    share, source = mfu or assumed_mfu(gpu, precision)
    return Setup(gpu, gpus, how, share, source, mfu is None, power_share, price)


def assumed_mfu(gpu: Gpu, precision: str = "bf16") -> tuple[float, str]:
    """The PaLM MFU that a plan assumes for about 1B parameters, as a share of the bf16 peak, and why."""
    share, source = ASSUMED_MFU.get(gpu.family, ASSUMED_OTHERWISE)
    if precision == "fp8":
        return share * FP8_SPEEDUP, f"assumed; {source}; in fp8 {FP8_SPEEDUP} times that, as others report"
    return share, f"assumed; {source}"


def by_size(parameters: float) -> float:
    """What share of a 1B's MFU a model reaches, between the sizes of `SMALLER`; below them, no less is known."""
    for (small, low), (large, high) in pairwise(SMALLER):
        if parameters < large:
            place = math.log(max(parameters, small) / small) / math.log(large / small)
            return low + (high - low) * place
    return 1.0


def plan(recipe: Recipe, setup: Setup) -> dict[str, Any]:
    """The plan as plain data: bytes, FLOP, seconds, kWh.

    Raises:
        UserError: the batch cannot be shared out; or not even one sequence fits, with what would.
    """
    model, train, gpu = recipe.model, recipe.pretrain, setup.gpu
    share = sequences_each(train.global_batch, setup.gpus)
    largest = largest_micro_batch(model, share, gpu.memory, setup.how)
    if not largest:
        raise UserError(_does_not_fit(recipe, setup, share))
    micro = train.micro_batch if train.micro_batch and share % train.micro_batch == 0 else largest
    tokens_per_step = train.global_batch * model.context_length
    tokens = tokens_per_step * train.steps
    palm, causal = flops_per_token(model, model.context_length)
    mfu = setup.mfu * (by_size(parameters(model)["total"]) if setup.scales else 1.0)
    speed = mfu * gpu.bf16 / palm * RECOMPUTE[setup.how.checkpointing]
    seconds = tokens / (speed * setup.gpus)
    hours = setup.gpus * seconds / 3600
    counts = parameters(model)
    return {
        "recipe": recipe.name,
        "gpu": gpu._asdict(),
        "gpus": setup.gpus,
        "how": setup.how._asdict(),
        "parameters": parts(model) | {"total": counts["total"], "matmul": counts["matmul"]},
        "flops_per_token": {"palm": palm, "causal": causal},
        "flops": {"palm": palm * tokens, "causal": causal * tokens},
        "tokens_per_step": tokens_per_step,
        "steps": train.steps,
        "tokens": tokens,
        "tokens_per_parameter": tokens / counts["total"],
        "data": data(recipe, tokens),
        "micro_batch": {"recipe": train.micro_batch, "largest": largest, "share": share},
        "memory": {"micro_batch": micro, "parts": by_part(model, micro, setup.how)},
        "memory_at_largest": sum(by_part(model, largest, setup.how).values()),
        "mfu_palm": speed * palm / gpu.bf16,
        "mfu_causal": speed * causal / gpu.bf16,
        "mfu_source": setup.mfu_source,
        "tokens_per_second_per_gpu": speed,
        "tokens_per_second": speed * setup.gpus,
        "seconds_per_step": tokens_per_step / (speed * setup.gpus),
        "seconds": seconds,
        "gpu_hours": hours,
        "power_share": setup.power_share,
        "kwh": hours * gpu.watts * setup.power_share / 1000 if gpu.watts else None,
        "price": setup.price,
        "cost": hours * setup.price if setup.price is not None else None,
    }


def sequences_each(batch: int, gpus: int) -> int:
    """Sequences of a step on each GPU.

    Raises:
        UserError: they cannot be shared out equally.
    """
    if batch % gpus:
        fitting = sorted((n for n in range(1, batch + 1) if batch % n == 0), key=lambda n: abs(n - gpus))[:3]
        near = ", ".join(map(str, sorted(fitting)))
        raise UserError(f"--gpus {gpus}: does not divide pretrain.global_batch ({batch} sequences); {near} would")
    return batch // gpus


def _does_not_fit(recipe: Recipe, setup: Setup, share: int) -> str:
    model, gpu = recipe.model, setup.gpu
    needed = sum(by_part(model, 1, setup.how).values()) / GB
    ways: list[str] = []
    for checkpointing in ("selective", "full"):
        if largest_micro_batch(model, share, gpu.memory, setup.how._replace(checkpointing=checkpointing)):
            ways.append(f"--checkpointing {checkpointing}")
            break
    if setup.how.parallel != "fsdp" and gpu.family != "cpu":
        full = setup.how._replace(checkpointing="full", parallel="fsdp")
        worlds = (n for n in range(2, 65) if recipe.pretrain.global_batch % n == 0)
        count = next((n for n in worlds if sum(by_part(model, 1, full._replace(gpus=n)).values()) <= gpu.memory), None)
        ways += [f"{count} GPUs with --parallel fsdp --checkpointing full"] if count else []
    bigger = [other for other in GPUS if sum(by_part(model, 1, setup.how).values()) <= other.memory]
    ways += [f"--gpu {min(bigger, key=lambda other: other.memory).name!r}"] if bigger else []
    ladder = [name for name in PRESETS if name and _fits_as(name, recipe, setup)]
    ways += [f"model.preset={ladder[-1]}"] if ladder else []
    would = "; ".join(ways) or "nothing in the table"
    return (
        f"{recipe.name} does not fit: with one sequence a pass it takes {needed:,.1f} GB, and {gpu.name} has "
        f"{gpu.memory / GB:,.0f}. What would: {would}"
    )


def _fits_as(preset: str, recipe: Recipe, setup: Setup) -> bool:
    return sum(by_part(as_preset(recipe.model, preset), 1, setup.how).values()) <= setup.gpu.memory


def as_preset(model: Model, preset: str) -> Model:
    """The shape of a preset with the vocabulary and context of `model`."""
    bare = replace(model, preset=preset, layers=0, heads=0, kv_heads=0, hidden=0, ffn=0)
    return expand(bare, model.vocab_size)


def parts(model: Model) -> dict[str, int]:
    """Parameters by part; they sum to the total."""
    d, k = model.hidden, model.kv_heads * model.hidden // model.heads
    return {
        "input embedding": model.vocab_size * d,
        "attention": model.layers * (2 * d * d + 2 * d * k),
        "SwiGLU": model.layers * 3 * d * model.ffn,
        "norms": (2 * model.layers + 1) * d,
        "output head": 0 if model.tied_embeddings else model.vocab_size * d,
    }


def data(recipe: Recipe, tokens: int) -> dict[str, Any]:
    """Tokens that the recipe says its sources have, beside those that are asked for."""
    sized = [source for source in recipe.corpus.sources if source.tokens]
    epochs = {source.name: source.weight * tokens / source.tokens for source in sized if source.tokens}
    return {
        "sources": len(recipe.corpus.sources),
        "sized": len(sized),
        "available": sum(source.tokens or 0 for source in sized),
        "epochs": epochs,
    }


def over_gpus(recipe: Recipe, remake: Callable[[Gpu], Setup]) -> list[dict[str, Any]]:
    """The same training on every GPU of the table; a row without `plan` where it does not fit."""
    rows = []
    for gpu in GPUS:
        try:
            rows.append({"name": gpu.name, "plan": plan(recipe, remake(gpu))})
        except UserError as error:
            rows.append({"name": gpu.name, "problem": str(error)})
    return rows


def over_sizes(recipe: Recipe, setup: Setup) -> list[dict[str, Any]]:
    """The recipe's batch, steps and tokens with every preset shape."""
    rows = []
    for name in PRESETS:
        shaped = replace(recipe, model=as_preset(recipe.model, name))
        try:
            rows.append({"name": name, "plan": plan(shaped, setup)})
        except UserError as error:
            rows.append({"name": name, "problem": str(error)})
    return rows
