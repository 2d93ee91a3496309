"""What a checkpoint costs: seconds that training waits, seconds until it stands, and the share of a run's time.

    python benchmarks/checkpoint.py --folder /disk/to/measure

A model of 100M parameters with AdamW's state (12 bytes a parameter: 1.2 GB) is saved as `xmodel pretrain` does it:
copied to host memory while training waits, then written, checksummed, synced and renamed by a thread. Beside it, in
turns, what a plain training script does: `torch.save` of both state dicts while training waits, nothing synced or
checked.

From the measured rates follows the share at the reference settings (1.19B parameters, 7 devices of 57,000 tokens/s
each, 3,440,640 tokens a step: 8.6 s): the first rank copies all weights and a seventh of the optimizer's state. A GPU's
copy goes over PCIe, which is faster than the copy within a busy machine's memory. The load average stands beside the
figures.

Last, how long a killed run of the quickstart's shape takes from its start to the end of its first step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from xmodel.console import table
from xmodel.files import checksum, write_json
from xmodel.model.counts import parameters
from xmodel.model.transformer import Transformer
from xmodel.pretrain.checkpoint import Checkpointer, load_checkpoint
from xmodel.pretrain.checkpoint_files import HERE, damage
from xmodel.pretrain.optim import make_optimizer
from xmodel.recipe.settings import Model, Pretrain

SHAPE = Model(
    layers=8, hidden=768, heads=12, kv_heads=4, ffn=2048, vocab_size=32_000, context_length=128, position_table=128
)
REFERENCE = Model(layers=24, hidden=2048, heads=32, kv_heads=4, ffn=5632, vocab_size=32_000, context_length=4096)
DEVICES, STEP_TOKENS, TOKENS_PER_SECOND = 7, 840 * 4096, 400_000
RANKS = Path(__file__).parents[1] / "tests" / "pretrain"
RESUME = """
import sys; sys.path.insert(0, {ranks!r})
from dataclasses import replace; from pathlib import Path
import ranks
from xmodel.pretrain.loop import pretrain
from xmodel.recipe.settings import Model
if not Path({tokens!r}).exists():
    ranks.make_tokens(Path({tokens!r}))
recipe = ranks.recipe(steps={steps}, global_batch=10, micro_batch=10, save_every=2, eval_every=0)
recipe.model = Model(layers=4, hidden=192, heads=6, kv_heads=2, ffn=512, vocab_size=3072, context_length=256,
                     position_table=256)
pretrain(recipe, Path({tokens!r}), Path({run!r}), lambda model: [])
"""


def trained(shape: Model) -> tuple[Transformer, torch.optim.Optimizer]:
    """A model and an optimizer with full state, after one step."""
    model = Transformer(shape)
    model.init_weights(0)
    optimizer = make_optimizer(model, Pretrain())
    tokens = torch.zeros(1, 17, dtype=torch.int64)
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(folder: Path, rounds: int) -> dict[str, float]:
    model, optimizer = trained(SHAPE)
    saver = Checkpointer(folder / "ours", HERE, keep=1)
    kinds = ("blocked", "blocked_processor", "written", "torch_save", "checked", "loaded")
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    saver.save(1, model, optimizer, {})  # the host buffers are made once
    saver.finish()
    path = folder
    for step in range(2, 2 + rounds):
        began = time.thread_time()
        blocked = timed(lambda step=step: saver.save(step, model, optimizer, {}))
        found["blocked"].append(blocked)
        found["blocked_processor"].append(time.thread_time() - began)
        found["written"].append(blocked + timed(saver.finish))
        states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        found["torch_save"].append(timed(lambda states=states: torch.save(states, folder / "plain.pt")))
        path = folder / "ours" / f"step-{step:09d}"
        found["checked"].append(timed(lambda path=path: damage(path)))
        found["loaded"].append(timed(lambda path=path: load_checkpoint(path, model, optimizer)))
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    began = time.process_time()  # of the processor: a busy machine does not matter
    checksum(path / "model.safetensors")
    hashed = (time.process_time() - began) / (path / "model.safetensors").stat().st_size
    middle = {f"{key}_seconds": round(statistics.median(values), 3) for key, values in found.items()}
    return {"bytes": size, **middle, "checksum_MB_per_processor_second": round(1e-6 / hashed)}


def shares(measured: dict[str, float]) -> list[dict[str, Any]]:
    """At the reference settings: bytes of the first rank, and what part of the time training waits."""
    count = parameters(REFERENCE)["total"]
    mine = 4 * count + 8 * count / DEVICES
    copied = mine / (measured["bytes"] / measured["blocked_seconds"])
    written = 12 * count / (measured["bytes"] / (measured["written_seconds"] - measured["blocked_seconds"]))
    step = STEP_TOKENS / TOKENS_PER_SECOND
    return [
        {
            "save_every": every,
            "step_seconds": round(step, 2),
            "blocked_seconds": round(copied, 2),
            "written_seconds": round(written, 1),
            "share_percent": round(100 * copied / (every * step), 4),
            "share_percent_if_all_waited": round(100 * (copied + written) / (every * step), 3),
        }
        for every in (100, 200, 2000)
    ]


def resume(folder: Path) -> dict[str, float]:
    """Seconds from a new process's start to the end of its first step, and its processor time, quickstart's shape."""
    tokens, run = folder / "tokens", folder / "run"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def go(steps: int) -> subprocess.Popen[bytes]:
        code = RESUME.format(ranks=str(RANKS), steps=steps, tokens=str(tokens), run=str(run))
        return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, env=environment)

    assert go(4).wait() == 0
    for newest in (run / "checkpoints").glob("step-000000004"):
        shutil.rmtree(newest)
    before, started = os.times().children_user, time.perf_counter()
    process = go(4)
    while True:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        if [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3]:
            break
        time.sleep(0.005)
    seconds = time.perf_counter() - started
    process.wait()
    return {"seconds": round(seconds, 1), "processor_seconds": round(os.times().children_user - before, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: the temporary one)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "checkpoint.json")
    options = parser.parse_args()
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        measured = measure(Path(scratch), options.rounds)
        again = resume(Path(scratch))
    table_of = shares(measured)
    print(table(["figure", "value"], [[key, f"{value:,}"] for key, value in measured.items()]))
    print(f"\nresume, quickstart's shape: first step after {again['seconds']} s\n")
    print(table(list(table_of[0]), [list(row.values()) for row in table_of]))
    facts = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    facts["load_average"] = load
    result = {"parameters": parameters(SHAPE)["total"], "rounds": options.rounds, "versions": facts}
    write_json(options.out, result | {"measured": measured, "reference": table_of, "resume": again})


if __name__ == "__main__":
    main()
