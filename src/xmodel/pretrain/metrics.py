"""What a run tells while it trains: metrics.jsonl, and the trackers of `pretrain.trackers`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xmodel.console import JsonLines, read_json_lines
from xmodel.files import atomic_write
from xmodel.pretrain.trackers import Tracker, installed, open_tracker
from xmodel.recipe.settings import Recipe


class Metrics:
    """metrics.jsonl and the trackers of a run; made by `opened_metrics`. Ranks that write nothing have one too."""

    def __init__(self, run_folder: Path, recipe: Recipe, writes: bool) -> None:
        self.run_folder, self.recipe, self.writes = run_folder, recipe, writes
        self.names = installed(recipe.pretrain.trackers)
        self.lines: JsonLines | None = None
        self.trackers: list[Tracker] = []

    def begin(self, last_step: int) -> None:
        """Open everything, to go on after `last_step` (-1: from the start).

        Rows after it come from a process that was killed; they will be made again, and are removed. May be called again
        to go on from another step.
        """
        if not self.writes:
            return
        self.close()
        path = self.run_folder / "metrics.jsonl"
        kept = [row for row in read_json_lines(path) if row["step"] <= last_step]
        with atomic_write(path, "w") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        self.lines = JsonLines(path)
        self.trackers = [open_tracker(name, self.run_folder, self.recipe, last_step) for name in self.names]

    def write(self, row: dict[str, Any]) -> None:
        """Write one row: its kind, its step, figures. The time is put to it."""
        if self.lines is None:
            return
        self.lines.write(row | {"time": time.time()})
        for write, _ in self.trackers:
            write(row)

    def close(self) -> None:
        if self.lines is not None:
            self.lines.close()
        for _, end in self.trackers:
            end()
        self.lines, self.trackers = None, []


@contextmanager
def opened_metrics(run_folder: Path, recipe: Recipe, writes: bool) -> Iterator[Metrics]:
    """The run's metrics, closed at the end whatever happens.

    Raises:
        UserError: a tracker of the recipe is not installed.
    """
    metrics = Metrics(run_folder, recipe, writes)
    try:
        yield metrics
    finally:
        metrics.close()
