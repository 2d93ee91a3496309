"""One training step, side by side: this model, transformers' Llama, litgpt's, nanochat's and a plain PyTorch one.

    python benchmarks/train_step.py                                   # the CPU table of README.md
    python benchmarks/train_step.py --table options                   # with and without each of our options
    python benchmarks/train_step.py --shape quickstart                # about the shape that `make quickstart` trains
    python benchmarks/train_step.py --device cuda --shape reference   # the 1.1B model: peers, options and a profile

A cell is LIBRARY/MODE/PRECISION[/OPTION=VALUE...]; `--cells` takes any. Every Llama trains the same batches with fused
AdamW and gradients clipped at 1.0; nanochat's model and step are as they are, at our width, depth and vocabulary. On a
CPU the cells take turns, one step a round, so that a busy moment of the machine falls on all of them; a ratio is the
median over rounds of the ratio within a round. On CUDA, where models do not fit side by side, they run one by one.

Peers run in processes of their own: transformers in the environment of this script, the others only when given:

    python -m venv PEERS && PEERS/bin/pip install torch==VERSION_OF_THIS_ENVIRONMENT transformers pyyaml
    PEERS/bin/pip install --no-deps litgpt lightning lightning-utilities torchmetrics jsonargparse typeshed-client
    python benchmarks/train_step.py --litgpt PEERS/bin/python --nanochat CHECKOUT_OF_KARPATHY_NANOCHAT
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from xmodel.console import table
from xmodel.files import write_json
from xmodel.model.counts import flops_per_token, parameters
from xmodel.pretrain.flops import peak_flops
from xmodel.recipe.settings import Model

SIDES: tuple[str, ...] = ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab_size", "context_length")
SHAPES = {  # name: sides of the model, sequences in a step
    "tiny": ((2, 64, 4, 2, 176, 512, 128), 2),
    "small": ((6, 256, 8, 2, 704, 8192, 512), 8),
    "quickstart": ((6, 256, 4, 2, 768, 3072, 256), 16),
    "reference": ((24, 2048, 32, 4, 5632, 32_000, 4096), 4),
}
OURS, USUAL = "xmodel/compiled/bf16", "transformers/eager/fp32"
TABLES = {
    ("peers", "cpu"): [
        *(f"{library}/{mode}/{dtype}" for library in ("transformers", "xmodel")
          for mode, dtype in itertools.product(("eager", "compiled"), ("fp32", "bf16"))),
        "plain/compiled/bf16",
        "litgpt/compiled/bf16", "litgpt/compiled/bf16-true",
        "nanochat/compiled/bf16", "nanochat/compiled/bf16/optimizer=adamw",
    ],
    ("options", "cpu"): [
        OURS, "xmodel/eager/bf16", "xmodel/compiled/fp32", f"{OURS}/attention=flash", f"{OURS}/loss=plain",
        f"{OURS}/checkpointing=selective", f"{OURS}/checkpointing=full",
        "xmodel/eager/bf16/checkpointing=selective", "xmodel/eager/bf16/checkpointing=full",
        f"{OURS}/gc=on", f"{OURS}/data=inline", f"{OURS}/data=ahead",
    ],
    # What matters most comes first: cells that the time limit leaves no room for are left out.
    ("peers", "cuda"): [
        "transformers/eager/bf16", OURS, "xmodel/compiled/fp8", "litgpt/compiled/bf16", "plain/compiled/bf16",
        f"{OURS}/batch=8", "xmodel/compiled/fp8/batch=8", f"{OURS}/attention=flash", f"{OURS}/attention=fa3",
        "xmodel/eager/bf16", f"{OURS}/checkpointing=selective", f"{OURS}/checkpointing=full",
        "transformers/compiled/bf16", "nanochat/compiled/bf16/optimizer=adamw", f"{OURS}/batch=14",
        f"{OURS}/checkpointing=full/batch=24", f"{OURS}/loss=plain", f"{OURS}/gc=on",
    ],
}  # fmt: skip
TABLES["options", "cuda"] = [name for name in TABLES["peers", "cuda"] if name.startswith("xmodel")]


class Worker:
    """The other end of train_step_worker.py."""

    def __init__(self, python: str, extra_path: str = "") -> None:
        own = str(Path(__file__).resolve().parents[1] / "src")
        paths = [own, *([extra_path] if extra_path else []), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "NANOCHAT_DTYPE": "bfloat16"}
        env.pop("OMP_NUM_THREADS", None)  # torch.set_num_threads decides
        script = Path(__file__).with_name("train_step_worker.py")
        self.process = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=env,
        )  # fmt: skip

    def ask(self, do: str, cell: str, **more: Any) -> dict[str, Any]:
        """The answer to one request; `error` in it says why there is none."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, "cell": cell} | more) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"error": f"its process ended ({self.process.poll()})"}


def measure(names: list[str], options: argparse.Namespace, shape: dict[str, Any], batch: int) -> dict[str, Any]:
    """Per cell: seconds of the first step (compilation included) and of each timed one, loss, memory; or an error."""
    pythons = {"litgpt": options.litgpt or sys.executable}
    begun, results, workers = time.perf_counter(), {}, {}
    facts = {"shape": shape, "batch": batch, "device": options.device, "threads": options.threads}
    clock = "process_time" if options.cpu_time else "perf_counter"

    def worker(name: str) -> Worker:
        library = name.split("/")[0]
        key = library if library in ("litgpt", "nanochat") else "ours"
        if key not in workers:
            workers[key] = Worker(pythons.get(library, sys.executable), options.nanochat if key == "nanochat" else "")
        return workers[key]

    def step(name: str, number: int) -> None:
        found = results[name]
        if "error" in found:
            return
        answer = worker(name).ask("step", name, number=number, clock=clock)
        if "error" in answer:
            found["error"] = answer["error"]
            return
        if number == 0:
            found["first_step_seconds"] = answer["seconds"]
        elif number > options.warmup:
            found["seconds"].append(answer["seconds"])
        found |= {key: answer[key] for key in ("loss", "tokens", "peak_bytes") if answer[key]}

    def over(name: str) -> bool:
        late = time.perf_counter() - begun > options.seconds
        if late:
            results[name]["error"] = f"left out: {options.seconds} seconds were over"
        return late

    for group in [names] if options.plan == "cpu" else [[name] for name in names]:  # who takes turns with whom
        for name in group:
            results[name] = {"seconds": []}
            if not over(name):
                results[name] |= worker(name).ask("open", name, **facts)
                step(name, 0)
        for number in range(1, options.warmup + options.rounds + 1):
            for name in group:
                step(name, number)
        for name in group:
            if "error" not in results[name] and name.startswith("xmodel") and options.device == "cpu":
                results[name] |= worker(name).ask("kept", name)
            if name == OURS and "error" not in results[name]:
                results[name] |= worker(name).ask("profile", name)
        for name in group:
            if "error" not in results[name]:
                worker(name).ask("close", name, device=options.device)
            print(f"{name}: {results[name].get('error', 'measured')}", file=sys.stderr)
    for each in workers.values():
        assert each.process.stdin is not None
        each.process.stdin.close()
        each.process.wait()
    return results


def cpu_name() -> str:
    """The CPU's name and, of the instructions that matter for bf16, which it has."""
    path = Path("/proc/cpuinfo")
    info = path.read_text() if path.exists() else ""
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    return ", ".join([*(names[:1] or [platform.processor()]), *(x for x in ("avx512_bf16", "amx_bf16") if x in info)])


def ratio(results: dict[str, Any], slow: str, fast: str) -> list[float]:
    """How many times more tokens a second `fast` makes than `slow`, round by round."""
    a, b = results[slow], results[fast]
    return [x / y * b["tokens"] / a["tokens"] for x, y in zip(a["seconds"], b["seconds"], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument("--table", choices=("peers", "options"), default="peers", help="which cells")
    parser.add_argument("--plan", choices=("cpu", "cuda"), help="cells and their order (default: of --device)")
    parser.add_argument("--cells", nargs="+", help="these cells, in place of a table")
    parser.add_argument("--batch", type=int, help="sequences in a step (default: the shape's)")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of every cell")
    parser.add_argument("--warmup", type=int, default=1, help="steps after the first that are not timed")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=380, help="begin no cell after this time")
    parser.add_argument("--litgpt", help="python of an environment with litgpt", default="")
    parser.add_argument("--nanochat", help="checkout of nanochat", default="")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count processor time: for a shared machine, with --threads 1"
    )
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/train-step-DEVICE[-SHAPE][-TABLE].json")
    options = parser.parse_args()
    options.plan = options.plan or options.device
    sides, batch = SHAPES[options.shape]
    shape: dict[str, Any] = dict(zip(SIDES, sides, strict=True))
    batch = options.batch or batch
    names = options.cells or [
        name
        for name in TABLES[options.table, options.plan]
        if (options.litgpt or not name.startswith("litgpt")) and (options.nanochat or not name.startswith("nanochat"))
    ]
    results = measure(names, options, shape, batch)

    model = Model(**shape)
    palm, causal = flops_per_token(model, model.context_length)
    peak, source = peak_flops(torch.device(options.device), torch.bfloat16)
    done = [name for name in names if results[name]["seconds"]]
    base = (
        next((name for name in ((OURS, USUAL) if options.table == "options" else (USUAL,)) if name in done), None)
        or done[0]
    )
    rows = []
    for name in done:
        cell = results[name]
        ratios = ratio(results, base, name)
        speed = cell["tokens"] / statistics.median(cell["seconds"])
        cell |= {"ratio": statistics.median(ratios), "tokens_per_second": speed}
        shares = ["", ""]
        # nanochat is another model, with other formulas; and the peak is measured by the clock on the wall.
        if not name.startswith("nanochat") and not options.cpu_time:
            cell |= {"mfu_palm": speed * palm / peak, "mfu_causal": speed * causal / peak}
            shares = [f"{cell['mfu_palm']:.1%}", f"{cell['mfu_causal']:.1%}"]
        memory = cell.get("peak_bytes") or cell.get("kept_bytes")
        rows.append(
            [
                name,
                f"{cell['ratio']:.2f}",
                f"{min(ratios):.2f}-{max(ratios):.2f}",
                f"{speed:,.0f}",
                *shares,
                f"{memory / 1e6:,.0f}" if memory else "",
                f"{cell['first_step_seconds']:.1f}",
                f"{cell['loss']:.4f}",
            ]
        )
    ours = [OURS, "xmodel/compiled/fp8"] if options.table == "peers" else []
    summary = {
        f"{fast} over {slow}": statistics.median(ratio(results, slow, fast))
        for fast in ours
        for slow in done
        if fast in done and not slow.startswith("xmodel")
    }
    machine = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else cpu_name(),
        "threads": options.threads,
        "clock": "processor time" if options.cpu_time else "wall time",
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
    }
    for name in done:
        machine |= results[name].pop("versions", {})
    print("; ".join(f"{key} {value}" for key, value in machine.items()))
    print(
        f"{parameters(model)['total']:,} parameters: {', '.join(f'{key} {value}' for key, value in shape.items())}; "
        f"{batch} x {shape['context_length']} tokens a step; AdamW fused, clip 1.0; {options.rounds} rounds; ratio to "
        f"{base}; MFU against {peak / 1e12:.3g} TFLOP/s ({source})"
    )
    memory = "peak MB" if options.device == "cuda" else "kept MB"
    print(table(["cell", "ratio", "range", "tokens/s", "MFU palm", "causal", memory, "first step s", "loss"], rows))
    for name in names:
        if "error" in results[name]:
            print(f"{name}: {results[name]['error']}")
    for name, value in summary.items():
        print(f"{value:5.2f} x  {name}")
    for name in done:
        if "profile" in results[name]:
            shares = ", ".join(f"{group} {share:.0%}" for group, share in results[name]["profile"].items())
            print(f"where the time of {name} goes: {shares}")
    device = torch.cuda.get_device_name().lower().split() if options.device == "cuda" else ["cpu"]
    parts = [
        "train-step",
        *(word for word in device if word != "nvidia"),
        *([options.shape] if options.shape not in ("small", "reference") else []),
    ]
    parts += ["options"] if options.table == "options" else []
    out = options.out or Path(__file__).parent / "results" / f"{'-'.join(parts)}.json"
    settings = {"shape": shape, "batch": batch, "rounds": options.rounds, "baseline": base}
    peaks = {"peak_flops": peak, "peak_source": source}
    write_json(out, {"machine": machine, **settings, **peaks, "cells": results, "summary": summary})
    print(f"written to {out}")


if __name__ == "__main__":
    main()
