"""How a training run stands, from the files of its directory alone: no torch, and nothing that a running job notices.

metrics.jsonl of a long run has tens of megabytes: it is mapped and read from its end.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from xmodel.console import count, duration, table
from xmodel.files import read_json
from xmodel.recipe.settings import Recipe

RECENT = 120  # log lines that speeds and warnings are taken from
WINDOW = 20  # newest log lines whose loss is compared with those before
SIGMAS = 4.0  # standard errors by which their means must differ
WAIT = 0.05  # share of the time spent waiting for data that is worth a warning
SILENCE = 600.0  # seconds without a log line that are never worth one

Row = dict[str, Any]


def status(folder: Path, recipe: Recipe) -> Row:
    """Everything that the files of a run tell about its training; what is not known is None.

    Returns:
        state: "not started", "training", "stopped", "done", or "unknown" (another machine holds the lock); step, steps,
        tokens, loss, tokens_per_second, mfu_palm, mfu_causal, seconds_left, skipped_steps, data_wait, memory_peak,
        last_row_age; validation (row by language); checkpoint (name, step, age), checkpoint_bytes, process, warnings.
    """
    now, settings = time.time(), recipe.pretrain
    rows = last_rows(folder / "metrics.jsonl")
    train = [row for row in rows["train"] if row["step"] > rows["start"].get("step", -1)]
    last = train[-1] if train else (rows["train"] or [{}])[-1]
    process = owner(folder / ".lock")
    note_path = folder / "stages" / "pretrain.json"
    note = read_json(note_path) if note_path.exists() else {}
    found: Row = {
        "run": str(folder),
        "state": _state(note.get("status"), process, bool(rows["train"])),
        "step": last.get("step", 0),
        "steps": settings.steps,
        "process": process,
        "last_row_age": now - last["time"] if last else None,
        "seconds_left": None,
        "validation": rows["validation"],
    }
    names = ("tokens", "loss", "tokens_per_second", "mfu_palm", "mfu_causal", "skipped_steps", "data_wait")
    found |= {name: last.get(name) for name in (*names, "memory_peak")}
    if len(train) > 1 and found["step"] < settings.steps:
        by_step = (train[-1]["time"] - train[0]["time"]) / (train[-1]["step"] - train[0]["step"])
        found["seconds_left"] = by_step * (settings.steps - found["step"])  # evaluations and checkpoints are in it
    if train:
        found["tokens_per_second"] = median(row["tokens_per_second"] for row in train[-WINDOW:])
    found |= _checkpoints(folder / "checkpoints", now)
    found["warnings"] = _warnings(found, train, recipe, folder)
    return found


def _state(noted: str | None, process: Row | None, begun: bool) -> str:
    if noted == "done":
        return "done"
    if noted == "running" and process is not None:
        return {True: "training", False: "stopped", None: "unknown"}[process["alive"]]
    return "stopped" if begun else "not started"


def last_rows(path: Path) -> dict[str, Any]:
    """The newest `RECENT` training rows, the newest start, and the newest validation of each language."""
    found: dict[str, Any] = {"train": [], "start": {}, "validation": {}}
    if not path.exists() or not path.stat().st_size:
        return found
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for row in _backwards(text, "train"):
            found["train"].insert(0, row)
            if len(found["train"]) == RECENT:
                break
        found["start"] = next(_backwards(text, "start"), {})
        for row in _backwards(text, "validation"):
            if row["language"] in found["validation"]:
                break
            found["validation"][row["language"]] = row
    return found


def _backwards(text: mmap.mmap, kind: str) -> Iterator[Row]:
    """The rows of one kind, newest first; a last line that is still being written is passed over."""
    end = len(text)
    while (start := text.rfind(b'{"kind": "%s"' % kind.encode(), 0, end)) >= 0:
        stop = text.find(b"\n", start)
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(text[start : stop if stop >= 0 else len(text)])
        end = start


def owner(lock: Path) -> Row | None:
    """Who the lock file names: pid, host, since, and whether that process lives (None: it is on another machine).

    The lock itself is not touched, or a run that starts at this moment would find it taken.
    """
    text = lock.read_text(encoding="utf-8") if lock.exists() else ""
    match = re.fullmatch(r"process (\d+) on (\S+), since (.*)", text.strip())
    if match is None:
        return None
    pid, host, since = int(match[1]), match[2], match[3]
    return {"pid": pid, "host": host, "since": since, "alive": _alive(pid) if host == socket.gethostname() else None}


def _alive(pid: int) -> bool:
    """Whether the process lives and is ours: numbers are given out again."""
    command = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self/cmdline").exists():
        with contextlib.suppress(OSError):
            return b"xmodel" in command.read_bytes()
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _checkpoints(folder: Path, now: float) -> Row:
    found = sorted(folder.glob("step-*[0-9]"))
    sizes = [sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in found]
    newest = None
    if found:
        name = found[-1].name
        newest = {"name": name, "step": int(name.removeprefix("step-")), "age": now - found[-1].stat().st_mtime}
    return {"checkpoint": newest, "checkpoints": len(found), "checkpoint_bytes": sum(sizes)}


def _warnings(found: Row, train: list[Row], recipe: Recipe, folder: Path) -> list[str]:
    warnings: list[str] = []
    if found["state"] == "stopped":
        warnings.append(f"no process works on it; `xmodel pretrain {folder}` goes on from the newest checkpoint")
    if found["state"] in ("training", "unknown") and len(train) > 2:
        usual = median(later["time"] - row["time"] for row, later in pairwise(train))
        if found["last_row_age"] > max(SILENCE, 10 * usual):
            silence = duration(found["last_row_age"])
            warnings.append(f"no progress: the last log line is {silence} old, where one comes every {duration(usual)}")
    if rising := loss_rises([row["loss"] for row in train]):
        warnings.append(f"loss rises: {rising[0]:.4f} -> {rising[1]:.4f} (means of the last {WINDOW} log lines)")
    waits = [row["data_wait"] for row in train[-WINDOW:] if "data_wait" in row]
    if waits and mean(waits) > WAIT:
        warnings.append(
            f"waiting for data takes {mean(waits):.0%} of the time: is the disk slow, or are cores missing?"
        )
    if len(train) > 1:
        skipped = train[-1]["skipped_steps"] - train[0]["skipped_steps"]
        if skipped > 0.01 * (train[-1]["step"] - train[0]["step"]):
            warnings.append(f"{skipped} of the last {train[-1]['step'] - train[0]['step']} steps were skipped")
    saved = found["checkpoint"]["step"] if found["checkpoint"] else 0
    if found["step"] - saved > 2 * recipe.pretrain.save_every:
        warnings.append(f"the newest checkpoint is {found['step'] - saved} steps old, twice pretrain.save_every")
    if found["checkpoints"] and found["state"] != "done":
        each, free = found["checkpoint_bytes"] / found["checkpoints"], shutil.disk_usage(folder).free
        if free < 2 * each:
            warnings.append(f"the disk has room for {free / each:.1f} checkpoints; two are needed to replace one")
    return warnings


def loss_rises(losses: list[float]) -> tuple[float, float] | None:
    """(mean before, mean of the newest `WINDOW`) where the newest are higher by more than chance explains."""
    new, old = losses[-WINDOW:], losses[:-WINDOW]
    if len(old) < WINDOW or not all(map(math.isfinite, losses)):
        return None
    old = old[-2 * WINDOW :]
    error = math.hypot(stdev(new) / math.sqrt(len(new)), stdev(old) / math.sqrt(len(old)))
    return (mean(old), mean(new)) if mean(new) - mean(old) > SIGMAS * error else None


def told(found: Row) -> str:
    """The status as a table, and a line for each warning."""

    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.1%}"

    step, steps = found["step"], found["steps"]
    process = found["process"]
    lives = {True: "alive", False: "gone", None: "cannot be seen from here"}
    rows = [("state", found["state"]), ("step", f"{step:,} of {steps:,} ({step / steps:.1%})")]
    if found["loss"] is not None:
        mfu = f"MFU {share(found['mfu_palm'])} PaLM, {share(found['mfu_causal'])} causal"
        rows += [
            ("loss", f"{found['loss']:.4f} after {count(found['tokens'])} tokens"),
            (
                "speed",
                f"{count(found['tokens_per_second'])} tokens/s, {mfu}, waits for data {share(found['data_wait'])}",
            ),
            ("last log line", f"{duration(found['last_row_age'])} ago"),
            ("skipped steps", f"{found['skipped_steps']:,}"),
        ]
    if found["seconds_left"] is not None and found["state"] in ("training", "unknown"):
        rows.append(("time left", duration(found["seconds_left"])))
    if found["memory_peak"]:
        rows.append(("memory", f"{found['memory_peak'] / 2**30:.1f} GiB at most"))
    for language, row in sorted(found["validation"].items()):
        figures = f"loss {row['loss']:.4f}, {row['bits_per_byte']:.4f} bits/byte at step {row['step']:,}"
        rows.append((f"validation {language}", figures))
    if found["checkpoint"]:
        newest, size = found["checkpoint"], found["checkpoint_bytes"] / 1e9
        kept = f"{found['checkpoints']} take {size:.3g} GB"
        rows.append(("checkpoint", f"{newest['name']}, {duration(newest['age'])} ago; {kept}"))
    if process:
        since = f"{process['pid']} on {process['host']} since {process['since']}"
        rows.append(("process", f"{since}: {lives[process['alive']]}"))
    return "\n".join([table([found["run"], ""], rows), *(f"warning: {line}" for line in found["warnings"])])


def line(found: Row) -> str:
    """The status in one line, for logs."""
    parts = [f"{found['state']}: step {found['step']:,}/{found['steps']:,}"]
    if found["loss"] is not None:
        parts += [f"loss {found['loss']:.4f}", f"{count(found['tokens_per_second'])} tokens/s"]
    if found["seconds_left"] is not None:
        parts.append(f"{duration(found['seconds_left'])} left")
    return ", ".join(parts + [f"warning: {text}" for text in found["warnings"]])
