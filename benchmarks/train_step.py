"""One training step, side by side: this model and Hugging Face transformers' Llama, eager and compiled, fp32 and bf16.

    python benchmarks/train_step.py                                   # the CPU table of README.md
    python benchmarks/train_step.py --shape quickstart                # about the shape that `make quickstart` trains
    python benchmarks/train_step.py --device cuda --shape reference   # the 1.1B model

Every cell trains the same weights on the same batches with AdamW (fused) and gradients clipped at 1.0. On a CPU the
cells take turns, one step a round, so that a busy moment of the machine falls on all of them; a ratio is the median
over rounds of the ratio within a round. On CUDA, where the models do not fit side by side, they run one after another.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="train-step-")  # the compile times below are cold

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from xmodel.console import table
from xmodel.files import write_json
from xmodel.model.config import to_hf
from xmodel.model.counts import flops_per_token, parameters
from xmodel.model.transformer import Transformer, compile_model
from xmodel.pretrain.optim import clip_grad_norm, guarded_step, make_optimizer
from xmodel.recipe.settings import Model, Pretrain

SHAPES = {  # name: shape, sequences in a step
    "small": (Model(layers=6, hidden=256, heads=8, kv_heads=2, ffn=704, vocab_size=8192, context_length=512), 8),
    "quickstart": (Model(layers=6, hidden=256, heads=4, kv_heads=2, ffn=768, vocab_size=3072, context_length=256), 16),
    "reference": (
        Model(layers=24, hidden=2048, heads=32, kv_heads=4, ffn=5632, vocab_size=32000, context_length=4096),
        4,
    ),
}
WARMUP = 3  # steps of every cell before the timed ones
Cell = tuple[str, str, str]  # library, mode, precision
Step = Callable[[torch.Tensor], torch.Tensor]  # tokens [B, T] -> mean loss
MODES = list(itertools.product(("eager", "compiled"), ("fp32", "bf16")))
CELLS: list[Cell] = [(library, *mode) for library in ("transformers", "xmodel") for mode in MODES]
OURS: Cell = ("xmodel", "compiled", "bf16")


def our_step(shape: Model, mode: str, precision: str, device: str) -> Step:
    """A training step as `xmodel pretrain` makes it."""
    model = Transformer(shape)
    model.init_weights(seed=0)
    model.to(device)
    model.compute_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if mode == "compiled":
        compile_model(model)
    optimizer = make_optimizer(model, Pretrain(peak_lr=6e-4))

    def step(tokens: torch.Tensor) -> torch.Tensor:
        targets = torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], -100)), dim=1)
        loss = model.loss(tokens, targets) / tokens[:, 1:].numel()
        loss.backward()
        guarded_step(optimizer, clip_grad_norm(model.parameters(), 1.0))
        optimizer.zero_grad()
        return loss.detach()

    return step


def transformers_step(shape: Model, mode: str, precision: str, device: str) -> Step:
    """A training step as transformers' documentation writes it; the same initial weights."""
    ours = Transformer(shape)
    ours.init_weights(seed=0)
    model = LlamaForCausalLM(LlamaConfig(**to_hf(shape)))
    model.load_state_dict(ours.state_dict())
    model.train().to(torch.device(device))  # type: ignore[arg-type] (its annotation)
    run: Any = torch.compile(model) if mode == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = run(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


LIBRARIES = {"xmodel": our_step, "transformers": transformers_step}


def measure(
    cells: Sequence[Cell], shape: Model, batch: int, device: str, rounds: int, clock: Callable[[], float]
) -> dict[Cell, dict[str, Any]]:
    """Per cell: seconds of the first step (compilation included) and of each timed step, and the last loss."""
    generator = torch.Generator().manual_seed(1)
    size = (WARMUP + rounds, batch, shape.context_length)
    batches = torch.randint(shape.vocab_size, size, generator=generator).to(device)
    results: dict[Cell, dict[str, Any]] = {cell: {"seconds": []} for cell in cells}
    for group in [cells] if device == "cpu" else [[cell] for cell in cells]:  # who takes turns with whom
        steps = {cell: LIBRARIES[cell[0]](shape, *cell[1:], device) for cell in group}
        for number, cell in itertools.product(range(WARMUP + rounds), group):
            start = clock()
            loss = steps[cell](batches[number]).item()  # .item() waits for the device
            took = clock() - start
            if number == 0:
                results[cell]["first_step_seconds"] = took
            if number >= WARMUP:
                results[cell]["seconds"].append(took)
            results[cell]["loss"] = loss
        steps.clear()
        gc.collect()
    return results


def cpu_name() -> str:
    """The CPU's name and, of the instructions that matter for bf16, which it has."""
    path = Path("/proc/cpuinfo")
    info = path.read_text() if path.exists() else ""
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    return ", ".join([*(names[:1] or [platform.processor()]), *(x for x in ("avx512_bf16", "amx_bf16") if x in info)])


def paired(results: dict[Cell, dict[str, Any]], slow: Cell, fast: Cell) -> list[float]:
    """How many times faster `fast` is than `slow`, round by round."""
    return [a / b for a, b in zip(results[slow]["seconds"], results[fast]["seconds"], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument("--batch", type=int, help="sequences in a step (default: the shape's)")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of every cell")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--cells", nargs="+", default=[""], help="only cells whose name has one of these words in it")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count processor time: for a shared machine, with --threads 1"
    )
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/train-step-DEVICE[-SHAPE].json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape, batch = SHAPES[options.shape]
    batch = options.batch or batch
    cells = [cell for cell in CELLS if any(word in "/".join(cell) for word in options.cells)]
    clock = time.process_time if options.cpu_time else time.perf_counter
    results = measure(cells, shape, batch, options.device, options.rounds, clock)

    palm, causal = flops_per_token(shape, shape.context_length)
    rows = []
    for cell in cells:
        ratios = paired(results, cells[0], cell)
        rate = batch * shape.context_length / statistics.median(results[cell]["seconds"])
        results[cell] |= {"ratio": statistics.median(ratios), "tokens_per_second": rate}
        rows.append(
            [
                *cell,
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f}-{max(ratios):.2f}",
                f"{rate:,.0f}",
                f"{rate * palm / 1e12:.3g} / {rate * causal / 1e12:.3g}",
                f"{results[cell]['first_step_seconds']:.1f}",
                f"{results[cell]['loss']:.4f}",
            ]
        )
    summary = {
        f"{'/'.join(fast)} over {'/'.join(slow)}": statistics.median(paired(results, slow, fast))
        for slow in cells
        if slow[0] == "transformers"
        for fast in dict.fromkeys((OURS, ("xmodel", *slow[1:])))
        if fast in results
    }
    machine = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else cpu_name(),
        "threads": options.threads,
        "clock": "processor time" if options.cpu_time else "wall time",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    print("; ".join(f"{key} {value}" for key, value in machine.items()))
    print(
        f"{parameters(shape)['total']:,} parameters: {shape.layers} layers, hidden {shape.hidden}, heads {shape.heads}"
        f"/{shape.kv_heads}, ffn {shape.ffn}, vocabulary {shape.vocab_size}; {batch} x {shape.context_length} tokens "
        f"a step; AdamW fused, clip 1.0; {options.rounds} rounds; ratio to {'/'.join(cells[0])}"
    )
    flops = "TFLOP/s palm / causal"
    print(table(["library", "mode", "precision", "ratio", "range", "tokens/s", flops, "first step s", "loss"], rows))
    for name, ratio in summary.items():
        print(f"{ratio:5.2f} x  {name}")
    suffix = options.device if options.shape == "small" else f"{options.device}-{options.shape}"
    out = options.out or Path(__file__).parent / "results" / f"train-step-{suffix}.json"
    settings = {"shape": vars(shape), "batch": batch, "rounds": options.rounds, "baseline": "/".join(cells[0])}
    named = {"/".join(cell): result for cell, result in results.items()}
    write_json(out, {"machine": machine, **settings, "cells": named, "summary": summary})
    print(f"written to {out}")


if __name__ == "__main__":
    main()
