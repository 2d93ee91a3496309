"""A process that measures one model: `python -m xmodel.compare.worker`, a job as JSON on standard input, rows out.

A process of its own for each model, so that no model meets the memory, the caches or the compiled code of another.

Legend of the shape suffixes: B sequences, T tokens of each.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xmodel.compare.engines import Opened, open_model
from xmodel.errors import XmodelError

TRIAL_TOKENS = 4  # new tokens of the run that warms up, and of those that choose the cache
TRAIN_STEPS = 3  # measured, behind one that warms up
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|std::bad_alloc")


def measure(job: dict[str, Any], tell: Callable[..., None]) -> None:
    """Carry out a job.

    Args:
        job: subject, device, dtype, layers, threads, compile; cells: [batch, context] each, and new_tokens, for
            inference, or train: {micro_batch, length}; seconds: when to stop beginning cells.
        tell: called with the fields of each row.
    """
    started = time.monotonic()
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    training = job.get("train") is not None
    try:
        opened = open_model(
            job["subject"],
            device=job["device"],
            dtype=job["dtype"],
            layers=job["layers"],
            training=training,
            compiled=job["compile"],
        )
    except XmodelError as error:
        tell(kind="failed", error=str(error))
        return
    except Exception as error:
        if not _out_of_memory(error):
            raise
        tell(kind="failed", error="out of memory")
        return
    tell(kind="model", threads=torch.get_num_threads(), device=_device_name(job["device"]), **opened.facts)
    work: list[tuple[int, Callable[[], dict[str, Any]]]] = (
        [(0, lambda: _train(opened, job))]
        if training
        else [
            (number, lambda batch=batch, context=context: _infer(opened, job, batch, context))
            for number, (batch, context) in job["cells"]
        ]
    )
    for number, cell in work:
        tell(kind="begin", cell=number)
        if time.monotonic() - started > job["seconds"]:
            tell(kind="cell", cell=number, error="no time left")
            continue
        try:
            _forget_peak(job["device"])
            found = cell()
            found["peak_bytes"] = _peak(job["device"])
        except Exception as error:
            if not _out_of_memory(error):
                raise
            found = {"error": "out of memory"}
        tell(kind="cell", cell=number, **found)
        gc.collect()
        if job["device"] == "cuda":
            torch.cuda.empty_cache()


def _infer(opened: Opened, job: dict[str, Any], batch: int, context: int) -> dict[str, Any]:
    new = job["new_tokens"]
    if context + new > opened.positions:
        return {"error": f"longer than its {opened.positions:,} positions"}
    generator = torch.Generator().manual_seed(batch * context)
    ids_BT = torch.randint(100, opened.config["vocab_size"], (batch, context), generator=generator).to(job["device"])
    _timed(opened, ids_BT, TRIAL_TOKENS, opened.caches[0])
    cache = opened.caches[0]
    if len(opened.caches) > 1:  # the faster one, as somebody who cares would set it; the slower is not reported
        _timed(opened, ids_BT, TRIAL_TOKENS, opened.caches[1])
        trials = {name: _timed(opened, ids_BT, max(TRIAL_TOKENS, new // 2), name) for name in opened.caches}
        cache = min(trials, key=lambda name: trials[name][-1])
    elif job["compile"]:
        _timed(opened, ids_BT, new, cache)  # the shapes that will be measured
    moments = _timed(opened, ids_BT, new, cache)
    first, decode = moments[0], moments[-1] - moments[0]
    return {
        "cache": cache,
        "first_token_seconds": first,
        "prefill_tokens_per_second": batch * context / first,
        "decode_tokens_per_second": batch * (new - 1) / decode,
    }


def _timed(opened: Opened, ids_BT: Tensor, new_tokens: int, cache: str) -> list[float]:
    """Seconds from the call to each new token's arrival on the host."""
    if ids_BT.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    moments = opened.generate(ids_BT, new_tokens, cache)
    assert len(moments) == new_tokens, f"{len(moments)} tokens, not {new_tokens}"
    return [moment - started for moment in moments]


def _train(opened: Opened, job: dict[str, Any]) -> dict[str, Any]:
    """Forward, backward and AdamW, without data loading: the median of some steps."""
    batch, length = job["train"]["micro_batch"], job["train"]["length"]
    if length > opened.positions:
        return {"error": f"longer than its {opened.positions:,} positions"}
    optimizer = torch.optim.AdamW(opened.module.parameters(), lr=1e-5, fused=True)
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(100, opened.config["vocab_size"], (batch, length + 1), generator=generator)
    ids_BT = ids_BT.to(job["device"])
    seconds = []
    for _ in range(1 + TRAIN_STEPS):
        if ids_BT.is_cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        opened.loss(ids_BT).backward()
        optimizer.step()
        optimizer.zero_grad()
        if ids_BT.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return {"step_tokens_per_second": batch * length / statistics.median(seconds[1:])}


def _out_of_memory(error: Exception) -> bool:
    named = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return named or (isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.search(str(error))))


def _forget_peak(device: str) -> None:
    """Begin to look for the peak anew, at what is held now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM becomes VmRSS


def _peak(device: str) -> int | None:
    """Bytes: on CUDA of all tensors; on a CPU of the process, Python and its libraries included (VmHWM)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):  # not ru_maxrss, which a child inherits from its parent
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else None
    return None


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def main() -> None:
    """Rows go to the process that started this one; whatever libraries print goes to standard error."""
    rows = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process is the one to go

    def tell(**row: Any) -> None:
        rows.write(json.dumps(row) + "\n")
        rows.flush()

    measure(json.load(sys.stdin), tell)


if __name__ == "__main__":
    main()
