"""The head-to-head: every subject in a process of its own, all of them in each round, so that a busy moment of the
machine falls on one cell of one round and not on a model.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from xmodel.console import duration, log
from xmodel.errors import MachineError

GRACE_SECONDS = 60  # beyond its share of the time, for a model that is being opened or compiled
FIGURES = (
    "first_token_seconds",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "step_tokens_per_second",
    "peak_bytes",
)


class Settings(NamedTuple):
    """What is measured, and how.

    Attributes:
        cells: (sequences, tokens of each prompt).
        new_tokens: generated for each sequence; the first belongs to the prefill, the others to decoding.
        train: (sequences, tokens of each) of a training step; None: none is made.
        rounds: how often every cell is measured; a figure is the median.
        layers: cut every model to so many; 0: whole.
        threads: of a CPU; 0: as torch chooses.
        seconds: for everything; cells that find no time left say so.
    """

    device: str
    dtype: str
    cells: tuple[tuple[int, int], ...]
    new_tokens: int
    train: tuple[int, int] | None = None
    rounds: int = 1
    layers: int = 0
    threads: int = 0
    compiled: bool = False
    seconds: float = 3600.0


def compare(subjects: Sequence[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """Measure the subjects side by side.

    Args:
        subjects: each a name, an engine, and an architecture or a folder (see engines.open_model).

    Returns:
        settings, seconds, load (of the machine, before and after) and subjects: of each its name, engine, facts, an
        error if it could not be opened, cells and train. A figure is {median, least, most, rounds}; a round without it is
        None.

    Raises:
        MachineError: a process failed for another reason than memory or time.
    """
    started, load = time.monotonic(), os.getloadavg()[0]
    facts: dict[int, dict[str, Any]] = {}
    rows: dict[tuple[int, str, int], list[dict[str, Any]]] = {}
    kinds = ["infer"] * bool(settings.cells) + ["train"] * (settings.train is not None)
    turns = [
        (number, (place + number) % len(subjects), kind)
        for number in range(settings.rounds)
        for kind in kinds
        for place in range(len(subjects))
    ]
    for turn, (number, place, kind) in enumerate(turns):
        left = settings.seconds - (time.monotonic() - started)
        share = max(0.0, left) / (len(turns) - turn)
        subject = subjects[place]
        log(
            f"compare: round {number + 1} of {settings.rounds}, {subject['name']} in {subject['engine']}, {kind} "
            f"({duration(max(0.0, left))} left)"
        )
        cells = list(enumerate(settings.cells)) if kind == "infer" else [(0, settings.train or (0, 0))]
        if left <= 0:
            found = {cell: {"error": "no time left"} for cell, _ in cells}
        else:
            about, found = _measured(subject, settings, kind, cells, share, left)
            if kind == "infer" or place not in facts:
                facts[place] = facts.get(place, {}) | about
        for cell, row in found.items():
            rows.setdefault((place, kind, cell), []).append(row)
    result = []
    for place, subject in enumerate(subjects):
        one = {"name": subject["name"], "engine": subject["engine"]} | facts.get(place, {})
        if (per_token := one.get("kv_bytes_per_token")) is not None:
            lengths = sorted({context + settings.new_tokens for _, context in settings.cells})
            one["kv_bytes_at"] = {str(length): per_token * length for length in lengths}
        one["cells"] = [
            {"batch": batch, "context": context} | _summed_up(rows.get((place, "infer", cell), []))
            for cell, (batch, context) in enumerate(settings.cells)
        ]
        if settings.train is not None:
            one["train"] = _summed_up(rows.get((place, "train", 0), []))
        result.append(one)
    return {
        "settings": settings._asdict(),
        "seconds": round(time.monotonic() - started, 1),
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
        "subjects": result,
    }


def _summed_up(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One cell over its rounds: medians of those that were measured; the error where none was."""
    good = [row for row in rows if "error" not in row]
    if not good:
        return {"error": rows[0]["error"] if rows else "not measured"}
    found: dict[str, Any] = {"cache": sorted({row["cache"] for row in good})} if "cache" in good[0] else {}
    for name in FIGURES:
        rounds = [row.get(name) for row in rows]
        if values := [value for value in rounds if value is not None]:
            median, least, most = statistics.median(values), min(values), max(values)
            found[name] = {"median": median, "least": least, "most": most, "rounds": rounds}
    return found


def _measured(
    subject: dict[str, Any],
    settings: Settings,
    kind: str,
    cells: list[tuple[int, tuple[int, int]]],
    share: float,
    left: float,
) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """One turn of a subject: its facts, and a row for each cell. A process that is killed is started again without the
    cell that it died of."""
    about: dict[str, Any] = {}
    found: dict[int, dict[str, Any]] = {}
    until = time.monotonic() + min(share + GRACE_SECONDS, left)
    while todo := [(number, cell) for number, cell in cells if number not in found]:
        seconds = until - time.monotonic()
        if seconds <= 0:
            return about, found | {number: {"error": "no time left"} for number, _ in todo}
        job: dict[str, Any] = {
            "subject": subject,
            "device": settings.device,
            "dtype": settings.dtype,
            "layers": settings.layers,
            "threads": settings.threads,
            "compile": settings.compiled,
            "seconds": min(share, seconds),
        }
        if kind == "train":
            assert settings.train is not None
            job["train"] = dict(zip(("micro_batch", "length"), settings.train, strict=True))
        else:
            job |= {"cells": todo, "new_tokens": settings.new_tokens}
        current = todo[0][0]

        def take(row: dict[str, Any]) -> None:
            nonlocal about, current
            what = row.pop("kind")
            if what == "model":
                about = row
            elif what == "failed":
                about = {"error": row["error"]}
                found.update({number: row for number, _ in todo})
            elif what == "begin":
                current = row["cell"]
            else:
                found[row.pop("cell")] = row

        code, late, said = _process(job, seconds, take)
        if late:
            return about, found | {number: {"error": "no time left"} for number, _ in todo if number not in found}
        if code == -9:
            found[current] = {"error": "out of memory"}  # the kernel's answer to it; nobody else sends this signal
        elif code != 0:
            raise MachineError(f"{subject['name']} in {subject['engine']}: the measuring process failed ({said})")
    return about, found


def _process(job: dict[str, Any], seconds: float, take: Callable[[dict[str, Any]], None]) -> tuple[int, bool, str]:
    """Run a worker, and give its rows to `take` as they come: exit code, whether it was stopped, its last line."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        worker = subprocess.Popen(
            [sys.executable, "-m", "xmodel.compare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment,
        )
        late = threading.Event()

        def stop() -> None:
            late.set()
            worker.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            assert worker.stdin is not None
            assert worker.stdout is not None
            with worker.stdin as stream:
                json.dump(job, stream)
            for line in worker.stdout:
                take(json.loads(line))
            code = worker.wait()
        finally:
            timer.cancel()
            worker.kill()
            worker.wait()
        said.seek(0)
        lines = said.read().strip().splitlines()
    return code, late.is_set(), lines[-1] if lines else f"exit code {code}"
