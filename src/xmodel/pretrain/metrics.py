"""What a run tells while it trains: metrics.jsonl, and TensorBoard where it is installed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from xmodel.console import JsonLines, read_json_lines
from xmodel.files import atomic_write


class Metrics:
    """metrics.jsonl, and TensorBoard where it is installed."""

    def __init__(self, run_folder: Path, last_step: int, tensorboard: bool) -> None:
        """Rows after `last_step` come from a process that was killed; they will be made again, and are removed."""
        path = run_folder / "metrics.jsonl"
        rows = read_json_lines(path)
        kept = [row for row in rows if row["step"] <= last_step]
        with atomic_write(path, "w") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        self.lines = JsonLines(path)
        self.board: Any = None
        if tensorboard:
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(run_folder / "tensorboard"), purge_step=last_step + 1)

    def write(self, row: dict[str, Any]) -> None:
        self.lines.write(row)
        if self.board is None:
            return
        name = "/".join(str(row[key]) for key in ("kind", "set", "language") if key in row)
        for key, value in row.items():
            if isinstance(value, int | float) and key not in ("step", "time"):
                self.board.add_scalar(f"{name}/{key}", value, row["step"])
