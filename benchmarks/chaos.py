"""Kill a training at random moments, again and again, and compare its end with the undisturbed run's, bit for bit.

    python benchmarks/chaos.py                  # 20 kills of one process, of two (DDP) and of two (FSDP2)
    python benchmarks/chaos.py --kills 5 --steps 40 --out /tmp/chaos.json

The training is the tests' tiny one (tests/pretrain/ranks.py): what is tried is files, processes and order, not speed.
A process is killed by SIGKILL before its first step, after a few steps, or while it writes a checkpoint; with two, both
are killed, or one of them (the other has to end by itself), or one is asked to stop by SIGTERM (both have to save).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from xmodel.console import table
from xmodel.files import write_json

DRIVER = Path(__file__).parents[1] / "tests" / "pretrain" / "ranks.py"
RUNS = {"1 process": (1, "ddp"), "2 processes, ddp": (2, "ddp"), "2 processes, fsdp": (2, "fsdp")}


def losses(folder: Path) -> list[tuple[Any, ...]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "loss", "grad_norm", "param_norm", "language", "bits_per_byte")
    return [tuple(row.get(key) for key in keys) for row in rows if row["kind"] in ("train", "validation")]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:09d}" / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each run")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "chaos.json")
    options = parser.parse_args()

    rows = []
    for name in options.runs:
        world, parallel = RUNS[name]
        settings = {"steps": options.steps, "parallel": parallel, "save_every": 2, "eval_every": 10, "spike_sigma": 6.0}
        with tempfile.TemporaryDirectory() as scratch:
            here = Path(scratch)
            run = {"world": world, "settings": settings}
            runs = [
                run | {"folder": str(here / "undisturbed")},
                run | {"folder": str(here / "killed"), "kills": options.kills, "seed": options.seed},
            ]
            write_json(here / "job.json", {"tokens": str(here / "tokens"), "runs": runs})
            began = time.perf_counter()
            result = subprocess.run(
                [sys.executable, str(DRIVER), str(here / "job.json")], capture_output=True, text=True, check=False
            )
            if result.returncode:
                sys.exit(result.stderr)
            one, other = (weights(here / folder, options.steps) for folder in ("undisturbed", "killed"))
            rows.append(
                {
                    "run": name,
                    **json.loads(result.stdout.splitlines()[-1]),
                    "steps": options.steps,
                    "losses_equal": losses(here / "undisturbed") == losses(here / "killed"),
                    "weights_equal": all(tensor.equal(other[key]) for key, tensor in one.items()),
                    "seconds": round(time.perf_counter() - began, 1),
                }
            )
    headers = list(rows[0])
    print(table(headers, [[row[key] for key in headers] for row in rows]))
    facts = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
    write_json(
        options.out, {"settings": {"kills": options.kills, "seed": options.seed}, "versions": facts, "runs": rows}
    )


if __name__ == "__main__":
    main()
