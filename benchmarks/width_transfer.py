"""Where the best learning rate lies at widths 128, 256 and 512, with `model.width_base: 128` and without.

    python benchmarks/width_transfer.py
    python benchmarks/width_transfer.py --optimizer muon --seeds 0,1,2 --steps 400

Llamas of two layers over the bytes of the standard library's modules, trained for a few steps at a constant rate after
a short warm-up. A cell is the mean training loss of the last quarter of the steps. The optimum of a row is read off a
parabola through the best rate and its neighbours, in log2 of the rate. The results file is written after every cell.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sysconfig
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from xmodel.console import table
from xmodel.files import read_json, write_json
from xmodel.model.transformer import Transformer
from xmodel.pretrain.optim import clip_grad_norm, guarded_step, make_optimizer, set_learning_rate
from xmodel.pretrain.schedule import learning_rate
from xmodel.recipe.settings import Model, Pretrain
from xmodel.run import versions

BASE, HEAD, CONTEXT, BATCH = 128, 32, 64, 6
MODULES = ("argparse", "ast", "datetime", "decimal", "inspect", "pathlib", "statistics", "tarfile", "typing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="128,256,512")
    parser.add_argument("--log2-rates", default="-11,-10,-9,-8,-7")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "width_transfer.json")
    options = parser.parse_args()

    widths = [int(value) for value in options.widths.split(",")]
    rates = [int(value) for value in options.log2_rates.split(",")]
    results: dict[str, Any] = read_json(options.results) if options.results.exists() else {"cells": []}
    results["versions"] = versions()
    for width in widths:
        for on in (False, True) if width != BASE else (True,):  # at the base width they are one
            for rate in rates:
                for seed in map(int, options.seeds.split(",")):
                    key = {"optimizer": options.optimizer, "steps": options.steps, "width": width, "transfer": on}
                    key |= {"log2_rate": rate, "seed": seed}
                    if not any(cell.items() >= key.items() for cell in results["cells"]):
                        loss = trained(width, on, 2.0**rate, seed, options.steps, options.optimizer)
                        results["cells"].append(key | {"loss": round(loss, 4)})
                        write_json(options.results, results)
    same = {"optimizer": options.optimizer, "steps": options.steps}
    cells = [cell for cell in results["cells"] if cell.items() >= same.items()]
    print(shown(cells, rates))


def text() -> torch.Tensor:
    """uint8: the bytes of some of the standard library's modules."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [folder / f"{name}.py" for name in MODULES]
    content = b"".join(file.read_bytes() for file in files if file.exists())
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def trained(width: int, transfer: bool, rate: float, seed: int, steps: int, optimizer_name: str) -> float:
    """Mean loss of the last quarter of the steps, in nats per byte."""
    heads = width // HEAD
    shape = Model(layers=2, hidden=width, heads=heads, kv_heads=heads, ffn=5 * width // 2, vocab_size=256)
    shape.context_length, shape.width_base = CONTEXT, BASE if transfer else 0
    settings = Pretrain(
        optimizer=optimizer_name,  # type: ignore[arg-type]
        peak_lr=rate,
        schedule="constant",
        warmup_steps=steps // 10,
        steps=steps,
    )
    model = Transformer(shape)
    model.init_weights(seed)
    model.compute_dtype = torch.bfloat16
    optimizer = make_optimizer(model, settings)
    data, generator, losses = text(), torch.Generator().manual_seed(seed), []
    for step in range(1, steps + 1):
        set_learning_rate(optimizer, learning_rate(step, settings))
        starts = torch.randint(len(data) - CONTEXT - 1, (BATCH,), generator=generator)
        rows = torch.stack([data[start : start + CONTEXT + 1] for start in starts.tolist()]).long()
        loss = model.loss(rows[:, :-1], rows[:, 1:]) / (BATCH * CONTEXT)
        loss.backward()
        guarded_step(optimizer, clip_grad_norm(model.parameters(), settings.clip))
        optimizer.zero_grad()
        losses.append(loss.item())
    last = losses[-(steps // 4) :]
    return statistics.mean(last) if all(map(math.isfinite, last)) else math.inf


def optimum(losses: dict[int, float]) -> float:
    """log2 of the best rate: the vertex of the parabola through the best cell and its neighbours."""
    best = min(losses, key=lambda rate: losses[rate])
    if best - 1 not in losses or best + 1 not in losses:
        return float(best)
    left, middle, right = (losses[best + offset] for offset in (-1, 0, 1))
    return best + 0.5 * (left - right) / (left - 2 * middle + right)


def shown(cells: list[dict[str, float]], rates: list[int]) -> str:
    lines = []
    for width, transfer in sorted({(cell["width"], cell["transfer"]) for cell in cells}, key=lambda k: (k[1], k[0])):
        losses = {}
        for rate in rates:
            found = [
                cell["loss"]
                for cell in cells
                if (cell["width"], cell["transfer"], cell["log2_rate"]) == (width, transfer, rate)
            ]
            if found:
                losses[rate] = statistics.mean(found)
        name = "base" if width == BASE else "with" if transfer else "without"
        row = [name, str(width), *(f"{losses[rate]:.3f}" if rate in losses else "" for rate in rates)]
        lines.append([*row, f"2^{optimum(losses):.2f}"])
    return table(["transfer", "width", *(f"2^{rate}" for rate in rates), "best rate"], lines)


if __name__ == "__main__":
    main()
