"""An optimizer step by itself: this Muon, torch.optim.Muon and fused AdamW, on the weights of one model.

    python benchmarks/muon_step.py                     # 8.4 million parameters on a CPU
    python benchmarks/muon_step.py --device cuda --shape reference

torch.optim.Muon takes the same matrices at the same scale (match_rms_adamw) and fused AdamW the rest, as ours does. The
three take turns; the median of the rounds is shown, in processor time on a CPU and in time on CUDA.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from xmodel.console import table
from xmodel.files import write_json
from xmodel.model.counts import parameters
from xmodel.model.transformer import Transformer
from xmodel.model.width import kind
from xmodel.pretrain.optim import guarded_step, make_optimizer
from xmodel.recipe.settings import Model, Pretrain
from xmodel.run import hardware, versions

SHAPES = {
    "small": Model(layers=6, hidden=256, heads=8, kv_heads=2, ffn=704, vocab_size=8192, context_length=512),
    "reference": Model(layers=24, hidden=2048, heads=32, kv_heads=4, ffn=5632, vocab_size=32000, context_length=4096),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()

    steps = {name: make(SHAPES[options.shape], options.device) for name, make in MAKERS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.rounds + 2):
        for name, step in steps.items():
            spent = timed(step, options.device)
            if turn >= 2:
                seconds[name].append(spent)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [[name, f"{1e3 * value:.1f}", f"{value / medians['xmodel']:.2f}"] for name, value in medians.items()]
    print(table(["optimizer", "ms a step", "of xmodel's Muon"], rows))
    name = f"muon_step-{options.shape}-{options.device}"
    facts = {"shape": options.shape, "device": options.device, "rounds": options.rounds}
    facts |= {"parameters": parameters(SHAPES[options.shape])["total"], "threads": torch.get_num_threads()}
    facts |= {"ms": {key: round(1e3 * value, 2) for key, value in medians.items()}}
    facts |= {"spread_ms": {key: round(1e3 * statistics.stdev(values), 2) for key, values in seconds.items()}}
    write_json(
        Path(__file__).parent / "results" / f"{name}.json", facts | {"versions": versions(), "hardware": hardware()}
    )


def timed(step: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        started = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - started
    started = time.process_time()
    step()
    return time.process_time() - started


def with_gradients(shape: Model, device: str) -> Transformer:
    model = Transformer(shape)
    model.init_weights(0)
    model.to(device)
    for number, p in enumerate(model.parameters()):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(number)).to(device) * 1e-3
    return model


def ours(optimizer: str) -> Callable[[Model, str], Callable[[], None]]:
    def make(shape: Model, device: str) -> Callable[[], None]:
        made = make_optimizer(with_gradients(shape, device), Pretrain(optimizer=optimizer))  # type: ignore[arg-type]
        norm = torch.ones((), device=device)
        return lambda: guarded_step(made, norm)

    return make


def torchs(shape: Model, device: str) -> Callable[[], None]:
    named = dict(with_gradients(shape, device).named_parameters())
    matrices = [p for name, p in named.items() if kind(name) == "hidden"]
    others = [p for name, p in named.items() if kind(name) != "hidden"]
    muon = torch.optim.Muon(matrices, lr=6e-4, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=6e-4, fused=True)

    def step() -> None:
        muon.step()
        adamw.step()

    return step


MAKERS = {"xmodel": ours("muon"), "torch.optim.Muon": torchs, "fused AdamW": ours("adamw")}

if __name__ == "__main__":
    main()
